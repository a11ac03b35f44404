package gateway

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/live"
)

// inForce holds the state in force and changes it.
type inForce struct {
	cfg      *Config
	budgets  *limit.Budgets
	current  live.Current
	registry live.Registry
	enforcer *live.Enforcer
	verifier *identity.Verifier // nil without an identity provider

	confirmed   atomic.Bool           // Reload was called, and the policy has not been read since
	filesError  atomic.Pointer[error] // last error of the policy files; nil after a policy was read from them
	closeIdle   func()                // closes the idle connections to origins; set before anything is served
	quarantined []string              // patterns of the state in force; used by enforced only

	last *identity.Snapshot // last snapshot that was recorded; used by rotate only

	changing sync.Mutex  // held while a change is applied and counted: policies and addresses of the host may change at the same time
	reported live.Effect // last result for the policy in force that was passed to Metrics.Loaded; Unchanged if none was
}

func newInForce(cfg *Config, budgets *limit.Budgets) (*inForce, error) {
	s := &inForce{cfg: cfg, budgets: budgets}
	var err error
	if cfg.Identity != nil {
		s.last = cfg.Identity.Snapshot()
		if s.verifier, err = identity.NewVerifier(cfg.Identity); err != nil {
			return nil, err
		}
	}
	s.enforcer, err = live.NewEnforcer(live.EnforcerConfig{
		Current: &s.current, Registry: &s.registry, Trusts: s.trusts,
		CloseAtExpiry: cfg.CloseAtExpiry, MaxRevoke: cfg.MaxRevoke, Enforced: s.enforced,
	})
	return s, err
}

// trusts reports whether certificates of an open tunnel still lead to a trusted
// authority. Without an identity provider no certificate does.
func (s *inForce) trusts(certs []*x509.Certificate) bool {
	return s.verifier != nil && s.verifier.Trusts(certs)
}

// first applies what the policy provider has loaded before Serve. Nothing is open yet, so
// that there is nothing to hold.
func (s *inForce) first(ctx context.Context) {
	s.confirm(ctx, s.cfg.Policy.Loaded())
}

// loaded applies a later load. An error in the policy or the quarantine list leaves that
// part as it was, and does not affect the other one. If Reload was called before, the load
// also confirms the policy, so that nothing is held any longer. A load does not confirm
// while the files have an error: the operator may have meant to replace the policy, and
// not to end what it forbids.
func (s *inForce) loaded(ctx context.Context, c live.Change, err error) {
	confirmed := s.confirmed.Swap(false)
	switch {
	case err != nil:
		s.filesError.Store(&err)
		s.cfg.Log.LogAttrs(ctx, slog.LevelError, "the new policy is not used, the last good one stays", slog.Any("error", err))
		s.cfg.Metrics.Loaded(LoadRefused)
		s.cfg.Recorder.Event(audit.Record{Event: audit.EventPolicyReload, Detail: "refused: " + err.Error()})
	case c.Policy != nil:
		s.filesError.Store(nil)
	case confirmed && s.filesError.Load() != nil: // the error is in a record already
		s.cfg.Log.LogAttrs(ctx, slog.LevelError, "the policy files have the same error as before, the last good policy stays", slog.Any("error", *s.filesError.Load()))
	}
	if confirmed && s.filesError.Load() == nil {
		s.confirm(ctx, c)
		return
	}
	s.apply(ctx, c)
}

// apply applies a change and counts it.
func (s *inForce) apply(ctx context.Context, c live.Change) {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.count(c, s.enforcer.Apply(ctx, c))
}

// confirm applies a change without holding anything, and counts it.
func (s *inForce) confirm(ctx context.Context, c live.Change) {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.count(c, s.enforcer.Confirm(ctx, c))
}

// count reports the result of a load to Metrics.Loaded: once when the policy is loaded, and
// again when a later change or confirmation finds that nothing is held any longer. A change
// of only the quarantine list or the host's addresses is not a load. A hold that
// Enforcer.Run has ended is reported with the next change.
func (s *inForce) count(c live.Change, e live.Effect) {
	if c.Policy != nil && !c.SameRules {
		s.reported = live.Unchanged
	}
	if e == live.Unchanged || e == s.reported {
		return
	}
	s.reported = e
	if e == live.Held {
		s.cfg.Metrics.Loaded(LoadHeld)
		return
	}
	s.cfg.Metrics.Loaded(LoadInForce)
}

// enforced records the effects of a new state, or of a date that passed.
func (s *inForce) enforced(ctx context.Context, e live.Enforcement) {
	rec := audit.Record{Event: audit.EventPolicyReload, Duration: e.Took}
	rec.Policy, rec.Quarantine, rec.Generation = e.State.Policy.Version(), e.State.Policy.QuarantineVersion(), e.State.Generation
	rec.Detail = fmt.Sprintf("closed %d of %d tunnels", e.Closed, e.Open)
	if why := e.Occasion.String(); why != "" {
		rec.Detail += "; " + why
	}
	if !e.Held.IsZero() {
		rec.Detail += "; held: " + heldText(e.Held)
	}
	s.cfg.Recorder.Event(rec)
	s.closeIdle()
	s.budgets.Apply(e.State.Policy)
	s.noteQuarantine(e.State)
	s.cfg.Metrics.Enforced(e)
	attrs := []slog.Attr{
		slog.String("policy", rec.Policy), slog.String("quarantine", rec.Quarantine), slog.Uint64("generation", rec.Generation),
		slog.Int("closed", e.Closed), slog.Int("tunnels", e.Open),
	}
	if e.Held.IsZero() {
		s.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "in force", attrs...)
		return
	}
	attrs = append(attrs, slog.Int("held", e.Held.Entries), slog.Int("held_identities", e.Held.Identities), slog.Int("identities", e.Held.OfIdentities))
	s.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "in force for everything new; it would close tunnels of more identities than policy.max_revoke allows, which stay open: SIGHUP closes them", attrs...)
}

// heldText describes the entries whose end is held.
func heldText(h live.Hold) string {
	return fmt.Sprintf("%d that it forbids stay open, of %d of %d identities", h.Entries, h.Identities, h.OfIdentities)
}

// notes returns the line of /readyz about what is held. It does not make the gateway
// unready.
func (s *inForce) notes() []string {
	held := s.enforcer.Held()
	if held.IsZero() {
		return nil
	}
	return []string{"policy: " + s.current.Load().Policy.Version() + " is in force, and held: " + heldText(held) + "; SIGHUP closes them"}
}

// mostNamed bounds the patterns of each kind that a record of the quarantine names.
const mostNamed = 10

// noteQuarantine records which identities a new state adds to the quarantine and which
// it releases. It is called for one state at a time.
func (s *inForce) noteQuarantine(state *live.State) {
	before, now := s.quarantined, state.Policy.Quarantined()
	if s.quarantined = now; slices.Equal(before, now) {
		return
	}
	var detail strings.Builder
	fmt.Fprintf(&detail, "%d in force", len(now))
	for _, change := range []struct {
		word        string
		from, other []string
	}{{"added", now, before}, {"released", before, now}} {
		var names []string
		for _, name := range change.from {
			if _, stays := slices.BinarySearch(change.other, name); !stays {
				names = append(names, name)
			}
		}
		if more := len(names) - mostNamed; more > 0 {
			names = append(names[:mostNamed], fmt.Sprintf("%d more", more))
		}
		if len(names) > 0 {
			fmt.Fprintf(&detail, "; %s: %s", change.word, strings.Join(names, ", "))
		}
	}
	s.cfg.Recorder.Event(audit.Record{
		Event: audit.EventQuarantine, Policy: state.Policy.Version(), Quarantine: state.Policy.QuarantineVersion(),
		Generation: state.Generation, Detail: detail.String(),
	})
}

// rotate records a new snapshot and, if other authorities are trusted now, ends the
// tunnels that depend on one that was removed.
func (s *inForce) rotate(ctx context.Context) {
	before, after := s.last, s.cfg.Identity.Snapshot()
	if after == before {
		return
	}
	s.last = after
	s.cfg.Recorder.Event(audit.Record{
		Event: audit.EventIdentityRotate, Identity: after.ID(),
		Detail: "valid until " + after.NotAfter().UTC().Format(time.RFC3339),
	})
	if !after.SameTrust(before) {
		s.enforcer.TrustChanged(ctx)
	}
}
