package live

import (
	"context"
	"crypto/x509"
	"errors"
	"runtime"
	"slices"
	"sync"
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
	// CloseAtExpiry also ends tunnels whose caller's SVID has expired, within
	// a second.
	CloseAtExpiry bool
	// MaxRevoke is the share of the open tunnels, above 0 and up to 1, that a
	// new policy may close; one that would close more is held. Zero means any.
	MaxRevoke float64
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
	// Held means that the policy would have closed Closed tunnels, which is
	// more than it may: it is not in force, and nothing was closed.
	Held bool
	// Took is the time from the swap until the last tunnel was told to end;
	// zero if Held.
	Took time.Duration
}

// Enforcer puts states in force, one at a time, and ends the tunnels that they
// forbid. It is safe for concurrent use.
type Enforcer struct {
	cfg   EnforcerConfig
	dates chan struct{} // a new state may have other dates

	mu     sync.Mutex // held while a state is put in force
	looked time.Time  // by when every date that has passed was obeyed
	parts  parts      // what the next state is made of
}

// NewEnforcer returns an enforcer; Run makes dates count.
func NewEnforcer(cfg EnforcerConfig) (*Enforcer, error) {
	if cfg.Current == nil || cfg.Registry == nil {
		return nil, errors.New("enforcer: a current state and a registry are required")
	}
	return &Enforcer{cfg: cfg, dates: make(chan struct{}, 1)}, nil
}

// put puts a policy in force. What it forbids is told to end before put returns;
// what it allows is not touched. A policy that would close more than it may is
// held instead, unless sure. A nil policy denies everything. It is called with mu
// held.
func (e *Enforcer) put(ctx context.Context, p *allowlist.Policy, sure bool) Enforcement {
	if !sure && e.cfg.MaxRevoke > 0 {
		if open, closed := e.count(&State{Policy: p}); exceeds(closed, open, e.cfg.MaxRevoke) {
			held := Enforcement{State: e.cfg.Current.Load(), Open: open, Closed: closed, Held: true}
			e.tell(ctx, held)
			return held
		}
	}
	return e.swap(ctx, p)
}

// exceeds reports whether n is more than a share of total. A share such as
// 0.29 is a little less than what it stands for, so that 29 of 100 needs grace.
func exceeds(n, total int, share float64) bool {
	const grace = 1e-6
	return float64(n) > share*float64(total)+grace
}

// swap makes a policy the current state and ends what it forbids. Whoever
// registers a tunnel after the swap looks at the state again by itself; who did
// before is found in the registry.
func (e *Enforcer) swap(ctx context.Context, p *allowlist.Policy) Enforcement {
	now := time.Now()
	done := e.enforce(ctx, e.cfg.Current.Swap(p, now), now)
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

// Run ends tunnels when a date passes that allowed them, until ctx is done.
func (e *Enforcer) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.dates:
		case <-timer.C:
		}
		timer.Reset(e.look(ctx))
	}
}

// look enforces the state in force again if a date has passed, and returns the
// time until the next look.
func (e *Enforcer) look(ctx context.Context) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, state := time.Now(), e.cfg.Current.Load()
	if state == nil {
		return lookAtDates
	}
	if e.passed(state, now) {
		// A request that was decided before the date and is not yet registered
		// must find another state than the one that it was decided by.
		e.enforce(ctx, e.cfg.Current.renew(), now)
	}
	e.looked = now // also if the clock was set back: its dates pass once more
	wait := lookAtDates
	if e.cfg.CloseAtExpiry {
		wait = lookAtExpiries
	}
	if at, ok := state.Policy.NextEnd(now); ok {
		wait = min(wait, time.Until(at))
	}
	return wait
}

// passed reports whether a date of the policy has passed since the last look,
// or that of an open tunnel's SVID at any time.
func (e *Enforcer) passed(state *State, now time.Time) bool {
	if at, ok := state.Policy.NextEnd(e.looked); ok && !at.After(now) {
		return true
	}
	return e.cfg.CloseAtExpiry &&
		slices.ContainsFunc(e.cfg.Registry.standing(), func(entry *Entry) bool { return entry.expired(now) })
}

// atOnce is how many tunnels are told to end before others may run: those that
// end all want the processor now, and the network is not polled while somebody
// waits for it, so that the survivors would wait behind all of them.
const atOnce = 8

// enforce ends what a state that is in force forbids.
func (e *Enforcer) enforce(ctx context.Context, state *State, now time.Time) Enforcement {
	e.looked = now
	j, standing := e.judge(state, now), e.cfg.Registry.standing()
	done := Enforcement{State: state, Open: len(standing)}
	for _, entry := range standing {
		if !e.end(j, entry) {
			continue
		}
		done.Closed++
		if done.Closed%atOnce == 0 {
			runtime.Gosched()
		}
	}
	done.Took = time.Since(now)
	e.tell(ctx, done)
	return done
}

// end ends an entry if it is forbidden, and reports whether it was. One that
// becomes another while it is judged is judged as that, too: it asked the policy
// after the swap, and nobody about its certificates.
func (e *Enforcer) end(j *judge, entry *Entry) bool {
	for {
		d, changes := entry.judged()
		why := j.forbids(entry, &d)
		if entry.changed(changes) {
			continue
		}
		return why != allowlist.NoReason && e.cfg.Registry.tell(entry, EndedBy(why), why)
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

// count returns how many tunnels there are and how many of them a state would
// end.
func (e *Enforcer) count(state *State) (open, closed int) {
	j, standing := e.judge(state, time.Now()), e.cfg.Registry.standing()
	for _, entry := range standing {
		if d, _ := entry.judged(); j.forbids(entry, &d) != allowlist.NoReason {
			closed++
		}
	}
	return len(standing), closed
}

func (e *Enforcer) tell(ctx context.Context, done Enforcement) {
	if e.cfg.Enforced != nil {
		e.cfg.Enforced(ctx, done)
	}
}
