package live

import (
	"context"
	"crypto/x509"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// EnforcerConfig configures an Enforcer. Current and Registry are required.
type EnforcerConfig struct {
	Current  *Current
	Registry *Registry
	// Trusts reports whether a chain that was verified in a handshake still leads to a
	// trusted authority; see identity.Verifier. If it is nil, no chain is trusted.
	Trusts func(certs []*x509.Certificate) bool
	// CloseAtExpiry also ends tunnels whose caller's identity has expired, whatever
	// its proof was, within a second.
	CloseAtExpiry bool
	// MaxRevoke bounds from how many identities a new policy may take a tunnel or
	// exchange; see Apply.
	MaxRevoke MaxRevoke
	// Enforced is called after every enforcement, in order. It must not call the
	// enforcer. It may be nil.
	Enforced func(ctx context.Context, e Enforcement)
}

// Enforcement describes what a new state, or a date that has passed, has ended.
type Enforcement struct {
	// Occasion is why the enforcement was made.
	Occasion Occasion
	// State is the state in force afterwards.
	State *State
	// Open is how many entries were judged, including requests that are still being
	// dialled. Closed is how many of them were told to end. Neither counts entries
	// that were told to end before.
	Open, Closed int
	// Held counts the entries that the state forbids but that were not told to end.
	Held Hold
	// Took is the time from the swap until the last tunnel was told to end.
	Took time.Duration
}

// Occasion is why the open entries are judged.
type Occasion uint8

// The occasions. The zero value is that another policy, quarantine list or address of
// the host has come.
const (
	OccasionState Occasion = iota
	OccasionDate           // a date of the policy, or of an SVID, has passed
	OccasionHeld           // entries have ended or changed while others were held
	OccasionTrust          // other authorities are trusted
)

// String returns the words for the occasion in records, and "" for OccasionState.
func (o Occasion) String() string {
	switch o {
	case OccasionDate:
		return "a date has passed"
	case OccasionHeld:
		return "what was held was judged again"
	case OccasionTrust:
		return "other authorities are trusted"
	case OccasionState:
	}
	return ""
}

// Enforcer puts states in force, one at a time, and ends the tunnels that they
// forbid. It is safe for concurrent use.
type Enforcer struct {
	cfg       EnforcerConfig
	dates     chan struct{} // receives when a new state may have other dates
	entryLeft chan struct{} // receives when an entry was removed or changed while something is held
	held      atomic.Pointer[Hold]

	mu      sync.Mutex // locked while a state is put in force
	checked time.Time  // every date before this time has been enforced
	parts   parts      // the parts of the next state
}

// NewEnforcer returns an enforcer. It enforces dates only while Run runs.
func NewEnforcer(cfg EnforcerConfig) (*Enforcer, error) {
	if cfg.Current == nil || cfg.Registry == nil {
		return nil, errors.New("enforcer: a current state and a registry are required")
	}
	return &Enforcer{cfg: cfg, dates: make(chan struct{}, 1), entryLeft: make(chan struct{}, 1)}, nil
}

// Held counts the entries whose end is held, as of the last judgement.
func (e *Enforcer) Held() Hold {
	if h := e.held.Load(); h != nil {
		return *h
	}
	return Hold{}
}

// lastEnforced returns the policy that was last enforced completely, with the current
// classifier and quarantine list. It is nil if nothing may be held.
func (e *Enforcer) lastEnforced() *State {
	if e.cfg.MaxRevoke.Share <= 0 || !e.parts.held() || e.parts.enforced == nil {
		return nil
	}
	return &State{Policy: e.parts.withParts(e.parts.enforced)}
}

// put makes a policy the current state, and ends the entries that it forbids before it
// returns. A
// tunnel that was registered before the swap is found in the registry; one that is
// registered later decides again by itself. A nil policy denies everything. The caller
// holds mu.
func (e *Enforcer) put(ctx context.Context, why Occasion, p *allowlist.Policy) Enforcement {
	now := time.Now()
	done := e.enforce(e.cfg.Current.Swap(p, now), now)
	done = e.notify(ctx, why, done)
	select {
	case e.dates <- struct{}{}:
	default: // a signal is pending
	}
	return done
}

// The longest intervals between two checks of the clock. A timer alone does not do: the
// clock may be set, the machine may be suspended, and a tunnel may open whose SVID
// expires before the next date.
const (
	dateInterval   = time.Minute
	expiryInterval = time.Second
)

// heldInterval is how long the enforcer waits, while something is held, from the end of an
// entry until it judges the others again. It bounds how often they are judged.
const heldInterval = 100 * time.Millisecond

// Run ends tunnels when the date passes until which they were allowed, and judges the held
// entries again when others have ended, until ctx is done.
func (e *Enforcer) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	next, left := time.Now(), false // next is when the timer fires; left says whether an entry was removed or changed since the last check
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.entryLeft:
			left = true
			if soon := time.Now().Add(heldInterval); soon.Before(next) {
				next = soon
				timer.Reset(heldInterval)
			}
			continue
		case <-e.dates:
		case <-timer.C:
		}
		wait := e.check(ctx, left)
		next, left = time.Now().Add(wait), false
		timer.Reset(wait)
	}
}

// check enforces the state in force again if a date has passed, or if an entry has left
// while something is held. It returns the time until the next check.
func (e *Enforcer) check(ctx context.Context, left bool) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, state := time.Now(), e.cfg.Current.Load()
	if state == nil {
		return dateInterval
	}
	switch {
	case e.datePassed(state, now):
		// A request that was decided before the date and is not registered yet must
		// find another state than the one by which it was decided.
		e.notify(ctx, OccasionDate, e.enforce(e.cfg.Current.renew(), now))
	case left && e.lastEnforced() != nil:
		if done := e.enforce(state, now); done.Closed > 0 || done.Held.IsZero() {
			e.notify(ctx, OccasionHeld, done)
		}
	}
	e.checked = now // also if the clock was set back, so that its dates are enforced again
	wait := dateInterval
	if e.cfg.CloseAtExpiry {
		wait = expiryInterval
	}
	if at, ok := e.parts.nextEnd(state, now); ok {
		wait = min(wait, time.Until(at))
	}
	return wait
}

// datePassed reports whether a date of a policy has passed since the last check, or the
// caller's identity of an open entry has expired.
func (e *Enforcer) datePassed(state *State, now time.Time) bool {
	if at, ok := e.parts.nextEnd(state, e.checked); ok && !at.After(now) {
		return true
	}
	return e.cfg.CloseAtExpiry &&
		slices.ContainsFunc(e.cfg.Registry.notEnded(), func(entry *Entry) bool { return entry.expired(now) })
}

// endBatch is how many tunnels are told to end before the enforcer yields the processor.
// Each tunnel that ends needs processor time now, and the runtime does not poll the
// network while goroutines are ready to run, so that tunnels which survive would wait
// for all that end.
const endBatch = 8

// enforce ends the entries that the state in force forbids, unless their end is held. It
// first ends those whose end may not be held, and counts the identities of the others.
// Then it ends the others as well, unless they belong to more identities than MaxRevoke
// allows.
func (e *Enforcer) enforce(state *State, now time.Time) Enforcement {
	e.checked = now
	j := e.judge(state, now)
	if j.lastEnforced != nil { // before the count, so that an entry which leaves during it causes another judgement
		e.cfg.Registry.setEntryLeft(e.entryLeft)
	}
	entries := e.cfg.Registry.notEnded()
	done := Enforcement{State: state, Open: len(entries)}
	var lost losses
	for _, entry := range entries {
		e.end(j, entry, &lost, &done)
	}
	if done.Held = lost.hold(e.cfg.MaxRevoke); done.Held.IsZero() {
		j.lastEnforced = nil
		for _, entry := range lost.entries {
			e.end(j, entry, nil, &done)
		}
		e.parts.enforced = e.parts.policy
		e.cfg.Registry.setEntryLeft(nil)
	}
	held := done.Held
	e.held.Store(&held)
	done.Took = time.Since(now)
	return done
}

// end ends an entry if it is forbidden, or adds it to lost if its end may be held. An
// entry that was changed meanwhile is judged again: its own check after the swap covers
// the policy, but not its certificates.
func (e *Enforcer) end(j *judge, entry *Entry, lost *losses, done *Enforcement) {
	for {
		d, changes := entry.judged()
		why, held, mustGreet := j.forbids(entry, &d)
		switch {
		case entry.changed(changes):
			continue
		case why != allowlist.NoReason && !held:
			if e.cfg.Registry.tell(entry, EndedBy(why), why, j.state) {
				if done.Closed++; done.Closed%endBatch == 0 {
					runtime.Gosched()
				}
			}
		default:
			if j.lastEnforced != nil {
				lost.add(entry, &d, held)
			}
			if mustGreet && !held {
				entry.hurry()
			}
		}
		return
	}
}

// EndedBy returns the close reason for a request or tunnel that ends because of a
// policy reason. It is Revoked for every reason that has no close reason of its own:
// a new state no longer allows the entry.
func EndedBy(why allowlist.Reason) tunnel.Reason {
	switch why { //nolint:exhaustive // all other reasons are Revoked
	case allowlist.QuarantinedIdentity:
		return tunnel.Quarantined
	case allowlist.Draining:
		return tunnel.Drain
	case allowlist.UploadLimit:
		return tunnel.Limit
	}
	return tunnel.Revoked
}

// notify calls Enforced with an enforcement and its occasion, and returns it.
func (e *Enforcer) notify(ctx context.Context, why Occasion, done Enforcement) Enforcement {
	done.Occasion = why
	if e.cfg.Enforced != nil {
		e.cfg.Enforced(ctx, done)
	}
	return done
}
