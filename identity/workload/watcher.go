package workload

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"

	"github.com/exeat-dev/exeat/identity"
)

// watcher makes snapshots from the agent's updates. Its methods are called by one
// goroutine; only current, refused, first, missing and silent may be used by others.
type watcher struct {
	address string
	current atomic.Pointer[identity.Snapshot]
	refused atomic.Bool     // the last snapshot lacks something that the agent sent last
	first   chan struct{}   // closed after the first snapshot
	closed  <-chan struct{} // no error is reported after it is closed

	report  func(Event)
	foreign map[spiffeid.TrustDomain]*x509bundle.Bundle // sound bundles of the last update
	lost    bool

	missing missing // why there is no first snapshot yet
}

func newWatcher(address string, closed <-chan struct{}, cfg Config) *watcher {
	w := &watcher{address: address, first: make(chan struct{}), closed: closed, report: cfg.Report}
	if w.report == nil {
		w.report = func(Event) {}
	}
	w.missing.tell = cfg.Waiting
	return w
}

// OnX509ContextUpdate is called with every identity and bundle that the agent has for
// us.
func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	before := w.current.Load()
	w.found(before)
	generation := uint64(1)
	if before != nil {
		generation = before.Generation() + 1
	}
	bundles, sound := w.bundles(update)
	snap, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: certificateOf(update.DefaultSVID()),
		Bundles:     bundles,
		Generation:  generation,
	})
	w.refused.Store(err != nil || !sound)
	switch {
	case err != nil:
		w.refuse(before, err)
	case before != nil && same(before, snap):
		// The agent repeats its last update after an absence.
	default:
		w.current.Store(snap)
		w.report(Event{Kind: Updated, Snapshot: snap})
		if before == nil {
			close(w.first)
		}
	}
}

// bundles returns the sound bundles of an update, and our own bundle in any case. The
// bundle of another trust domain must not hold back the rest: an unsound one is
// replaced by the last sound one, and sound is false then. An empty one means that the
// trust domain has no authorities, and is left out.
func (w *watcher) bundles(update *workloadapi.X509Context) (all []*x509bundle.Bundle, sound bool) {
	sound = true
	own := update.DefaultSVID().ID.TrustDomain()
	foreign := make(map[spiffeid.TrustDomain]*x509bundle.Bundle)
	for _, bundle := range update.Bundles.Bundles() {
		td := bundle.TrustDomain()
		switch {
		case td == own:
			all = append(all, bundle)
			continue
		case bundle.Empty():
			continue
		}
		if err := identity.CheckBundle(bundle); err != nil {
			sound = false
			w.report(Event{Kind: BundleRefused, Err: err})
			if bundle = w.foreign[td]; bundle == nil {
				continue
			}
		}
		foreign[td] = bundle
		all = append(all, bundle)
	}
	w.foreign = foreign
	return all, sound
}

// OnX509ContextWatchError is called with every update that cannot be read, and with
// every failed attempt to reach the agent.
func (w *watcher) OnX509ContextWatchError(err error) {
	select {
	case <-w.closed:
		return
	default:
	}
	before := w.current.Load()
	if _, ended := status.FromError(err); !ended && !errors.Is(err, io.EOF) {
		w.found(before)
		w.refused.Store(true)
		w.refuse(before, err)
		return
	}
	switch {
	case before == nil:
		w.missing.set(w.cause(err))
	case !w.lost:
		w.lost = true
		w.report(Event{Kind: AgentLost, Err: plain(err)})
	}
}

// found is called when the agent has answered.
func (w *watcher) found(before *identity.Snapshot) {
	if before != nil && w.lost {
		w.lost = false
		w.report(Event{Kind: AgentBack})
	}
}

func (w *watcher) refuse(before *identity.Snapshot, err error) {
	if before == nil {
		w.missing.set(fmt.Errorf("what it sent cannot be used: %w; check what the agent knows of this workload", err))
		return
	}
	w.report(Event{Kind: Refused, Err: err})
}

func certificateOf(svid *x509svid.SVID) tls.Certificate {
	out := tls.Certificate{PrivateKey: svid.PrivateKey}
	for _, cert := range svid.Certificates {
		out.Certificate = append(out.Certificate, cert.Raw)
	}
	return out
}

// same compares everything but the generation. Equal certificates have equal keys.
func same(a, b *identity.Snapshot) bool {
	return slices.EqualFunc(a.Certificate().Certificate, b.Certificate().Certificate, bytes.Equal) && a.SameTrust(b)
}

// plain returns the error without the wrapping of gRPC, as one short line of printable
// ASCII.
func plain(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the agent ended the stream")
	}
	const most = 300
	answer := status.Convert(err)
	text := answer.Message()
	if text == "" {
		text = answer.Code().String()
	}
	return errors.New(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text[:min(len(text), most)]))
}
