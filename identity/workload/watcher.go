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

// watcher makes snapshots of what the agent sends. Its methods are called by
// one goroutine; only current, first and silent are for everybody.
type watcher struct {
	address string
	current atomic.Pointer[identity.Snapshot]
	first   chan struct{}   // closed with the first snapshot
	closed  <-chan struct{} // nothing is reported after this

	report  func(Event)
	foreign map[spiffeid.TrustDomain]*x509bundle.Bundle // sound, of the last update
	lost    bool

	missing missing // before the first snapshot
}

func newWatcher(address string, closed <-chan struct{}, cfg Config) *watcher {
	w := &watcher{address: address, first: make(chan struct{}), closed: closed, report: cfg.Report}
	if w.report == nil {
		w.report = func(Event) {}
	}
	w.missing.tell = cfg.Waiting
	return w
}

// OnX509ContextUpdate is called with everything the agent knows for us.
func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	before := w.current.Load()
	w.found(before)
	generation := uint64(1)
	if before != nil {
		generation = before.Generation() + 1
	}
	snap, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: certificateOf(update.DefaultSVID()),
		Bundles:     w.bundles(update),
		Generation:  generation,
	})
	switch {
	case err != nil:
		w.refuse(before, err)
	case before != nil && same(before, snap):
		// An agent says everything again when it came back.
	default:
		w.current.Store(snap)
		w.report(Event{Kind: Updated, Snapshot: snap})
		if before == nil {
			close(w.first)
		}
	}
}

// bundles returns those of an update that are sound, and our own whatever it is.
// What another trust domain publishes must not hold back the rest: in place of
// an unsound bundle stands its last one. An empty one is that of a trust domain
// without authorities.
func (w *watcher) bundles(update *workloadapi.X509Context) []*x509bundle.Bundle {
	var all []*x509bundle.Bundle
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
			w.report(Event{Kind: BundleRefused, Err: err})
			if bundle = w.foreign[td]; bundle == nil {
				continue
			}
		}
		foreign[td] = bundle
		all = append(all, bundle)
	}
	w.foreign = foreign
	return all
}

// OnX509ContextWatchError is called with an update that cannot be read, and
// with every attempt to reach the agent that came to nothing.
func (w *watcher) OnX509ContextWatchError(err error) {
	select {
	case <-w.closed:
		return
	default:
	}
	before := w.current.Load()
	if _, ended := status.FromError(err); !ended && !errors.Is(err, io.EOF) {
		w.found(before)
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

// found is called when the agent answered.
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

// same compares everything but the generation. Equal certificates have equal
// keys.
func same(a, b *identity.Snapshot) bool {
	return slices.EqualFunc(a.Certificate().Certificate, b.Certificate().Certificate, bytes.Equal) && a.SameTrust(b)
}

// plain takes the wrapping of gRPC from an error, and whatever does not fit
// into one line.
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
