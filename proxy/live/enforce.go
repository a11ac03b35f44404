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

// EnforcerConfig says over what an Enforcer rules. Current and Registry are
// required.
type EnforcerConfig struct {
	Current  *Current
	Registry *Registry
	// Trusts reports whether certificates that were verified in a handshake
	// still lead to an authority that is trusted; see identity.Verifier. nil
	// trusts none.
	Trusts func(certs []*x509.Certificate) bool
	// CloseAtExpiry also ends tunnels whose caller's identity has expired, whatever
	// proved it, within a second.
	CloseAtExpiry bool
	// MaxRevoke bounds what a new policy may end of what is open; see Apply.
	MaxRevoke MaxRevoke
	// Enforced is told of every enforcement, in order, and must not call the
	// enforcer; nil is nobody.
	Enforced func(ctx context.Context, e Enforcement)
}

// Enforcement is what one state, or the passing of a date, did.
type Enforcement struct {
	// State is the one in force afterwards.
	State *State
	// Open is how many tunnels were looked at, those that are still being
	// dialled included, and Closed how many of them were told to end. Neither
	// counts tunnels that were told before and are on their way.
	Open, Closed int
	// Held is what the state forbids although it was not told to end.
	Held Hold
	// Took is the time from the swap until the last tunnel was told to end.
	Took time.Duration
}

// Enforcer puts states in force, one at a time, and ends the tunnels that they
// forbid. It is safe for concurrent use.
type Enforcer struct {
	cfg   EnforcerConfig
	dates chan struct{} // a new state may have other dates
	left  chan struct{} // an entry has left, or changed, while a policy is held
	held  atomic.Pointer[Hold]

	mu     sync.Mutex // held while a state is put in force
	looked time.Time  // by when every date that has passed was obeyed
	parts  parts      // what the next state is made of
}

// NewEnforcer returns an enforcer; Run makes dates count.
func NewEnforcer(cfg EnforcerConfig) (*Enforcer, error) {
	if cfg.Current == nil || cfg.Registry == nil {
		return nil, errors.New("enforcer: a current state and a registry are required")
	}
	return &Enforcer{cfg: cfg, dates: make(chan struct{}, 1), left: make(chan struct{}, 1)}, nil
}

// Held returns what is held now, as it was when it was judged last.
func (e *Enforcer) Held() Hold {
	if h := e.held.Load(); h != nil {
		return *h
	}
	return Hold{}
}

// before returns the state that was last enforced whole, with what goes over every
// policy now; nil if the one in force must not be held.
func (e *Enforcer) before() *State {
	if e.cfg.MaxRevoke.Share <= 0 || !e.parts.held() || e.parts.enforced == nil {
		return nil
	}
	return &State{Policy: e.parts.whole(e.parts.enforced)}
}

// put makes a policy the current state and ends what it forbids, before it returns;
// what it allows is not touched. Whoever registers a tunnel after the swap looks at
// the state again by itself; who did before is found in the registry. A nil policy
// denies everything. It is called with mu held.
func (e *Enforcer) put(ctx context.Context, p *allowlist.Policy) Enforcement {
	now := time.Now()
	done := e.enforce(e.cfg.Current.Swap(p, now), now)
	e.tell(ctx, done)
	select {
	case e.dates <- struct{}{}:
	default: // Run has not yet looked at the dates of the state before
	}
	return done
}

// The longest times between two looks at the clock. It may be set, or stand
// still with the whole machine, and a tunnel may open whose SVID expires before
// the next date.
const (
	lookAtDates    = time.Minute
	lookAtExpiries = time.Second
)

// lookAtHeld is the time from when something ends while a policy is held until what
// is left is judged again. It is judged no more often than that.
const lookAtHeld = 100 * time.Millisecond

// Run ends tunnels when a date passes that allowed them, and judges again what is
// held as it becomes less, until ctx is done.
func (e *Enforcer) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	next, left := time.Now(), false // when the timer fires, and whether something has left since it did
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.left:
			left = true
			if soon := time.Now().Add(lookAtHeld); soon.Before(next) {
				next = soon
				timer.Reset(lookAtHeld)
			}
			continue
		case <-e.dates:
		case <-timer.C:
		}
		wait := e.look(ctx, left)
		next, left = time.Now().Add(wait), false
		timer.Reset(wait)
	}
}

// look enforces the state in force again if a date has passed, or something has left
// while a policy is held, and returns the time until the next look.
func (e *Enforcer) look(ctx context.Context, left bool) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, state := time.Now(), e.cfg.Current.Load()
	if state == nil {
		return lookAtDates
	}
	switch {
	case e.passed(state, now):
		// A request that was decided before the date and is not yet registered
		// must find another state than the one that it was decided by.
		e.tell(ctx, e.enforce(e.cfg.Current.renew(), now))
	case left && e.before() != nil:
		if done := e.enforce(state, now); done.Closed > 0 || done.Held.IsZero() {
			e.tell(ctx, done)
		}
	}
	e.looked = now // also if the clock was set back: its dates pass once more
	wait := lookAtDates
	if e.cfg.CloseAtExpiry {
		wait = lookAtExpiries
	}
	if at, ok := e.parts.nextEnd(state, now); ok {
		wait = min(wait, time.Until(at))
	}
	return wait
}

// passed reports whether a date of a policy has passed since the last look, or
// that of an open tunnel's SVID at any time.
func (e *Enforcer) passed(state *State, now time.Time) bool {
	if at, ok := e.parts.nextEnd(state, e.looked); ok && !at.After(now) {
		return true
	}
	return e.cfg.CloseAtExpiry &&
		slices.ContainsFunc(e.cfg.Registry.standing(), func(entry *Entry) bool { return entry.expired(now) })
}

// atOnce is how many tunnels are told to end before others may run: those that
// end all want the processor now, and the network is not polled while somebody
// waits for it, so that the survivors would wait behind all of them.
const atOnce = 8

// enforce ends what a state that is in force forbids, as far as that is not held.
func (e *Enforcer) enforce(state *State, now time.Time) Enforcement {
	e.looked = now
	j := e.judge(state, now)
	if j.before != nil { // before anything is counted: whoever leaves behind that may be the last that was too much
		e.cfg.Registry.tellLeft(e.left)
	}
	standing := e.cfg.Registry.standing()
	done := Enforcement{State: state, Open: len(standing)}
	var lost losses
	for _, entry := range standing {
		e.end(j, entry, &lost, &done)
	}
	if done.Held = lost.hold(e.cfg.MaxRevoke); done.Held.IsZero() {
		j.before = nil
		for _, entry := range lost.entries {
			e.end(j, entry, nil, &done)
		}
		e.parts.enforced = e.parts.policy
		e.cfg.Registry.tellLeft(nil)
	}
	held := done.Held
	e.held.Store(&held)
	done.Took = time.Since(now)
	return done
}

// end ends an entry if it is forbidden, or counts it if that may be held. One that
// becomes another while it is judged is judged as that, too: it asked the policy
// after the swap, and nobody about its certificates.
func (e *Enforcer) end(j *judge, entry *Entry, lost *losses, done *Enforcement) {
	for {
		d, changes := entry.judged()
		why, held, hello := j.forbids(entry, &d)
		switch {
		case entry.changed(changes):
			continue
		case why != allowlist.NoReason && !held:
			if e.cfg.Registry.tell(entry, EndedBy(why), why) {
				if done.Closed++; done.Closed%atOnce == 0 {
					runtime.Gosched()
				}
			}
		default:
			if j.before != nil {
				lost.add(entry, &d, held)
			}
			if hello && !held {
				entry.hurry()
			}
		}
		return
	}
}

// EndedBy returns what ends a request or tunnel that is under way when it may
// not go on for a reason. Any reason that has no word of its own is that of a
// state which allows less than the one before.
func EndedBy(why allowlist.Reason) tunnel.Reason {
	switch why { //nolint:exhaustive // see above
	case allowlist.QuarantinedIdentity:
		return tunnel.Quarantined
	case allowlist.Draining:
		return tunnel.Drain
	case allowlist.UploadLimit:
		return tunnel.Limit
	}
	return tunnel.Revoked
}

func (e *Enforcer) tell(ctx context.Context, done Enforcement) {
	if e.cfg.Enforced != nil {
		e.cfg.Enforced(ctx, done)
	}
}
