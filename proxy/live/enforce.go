package live

import (
	"context"
	"crypto/x509"
	"errors"
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
	// CloseAtExpiry also ends tunnels whose caller's SVID has expired.
	CloseAtExpiry bool
	// MaxRevoke is the share of the open tunnels, above 0 and up to 1, that a
	// new policy may close; one that would close more is held. Zero means any.
	MaxRevoke float64
	// Enforced is told of every enforcement, in order; nil is nobody.
	Enforced func(ctx context.Context, e Enforcement)
}

// Enforcement is what one state, or the passing of a date, did.
type Enforcement struct {
	State *State
	// Open is how many tunnels were looked at, Closed how many of them ended.
	Open, Closed int
	// Held means that the policy would have closed Closed tunnels, which is
	// more than it may: it is not in force, and nothing was closed.
	Held bool
	// Took is the time from the swap until the last tunnel was told to end.
	Took time.Duration
}

// Enforcer puts states in force, one at a time, and ends the tunnels that they
// forbid. It is safe for concurrent use.
type Enforcer struct {
	cfg   EnforcerConfig
	mu    sync.Mutex
	dates chan struct{} // a new state may have other dates
}

// NewEnforcer returns an enforcer; Run makes dates count.
func NewEnforcer(cfg EnforcerConfig) (*Enforcer, error) {
	if cfg.Current == nil || cfg.Registry == nil {
		return nil, errors.New("enforcer: a current state and a registry are required")
	}
	return &Enforcer{cfg: cfg, dates: make(chan struct{}, 1)}, nil
}

// Put puts a policy in force. Tunnels that it forbids are told to end before
// Put returns; those that it allows are not touched. A policy that would close
// more than it may is held instead, unless sure.
func (e *Enforcer) Put(ctx context.Context, p *allowlist.Policy, sure bool) Enforcement {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !sure && e.cfg.MaxRevoke > 0 {
		open, forbidden := e.judge(&State{Policy: p}, time.Now())
		if float64(len(forbidden)) > e.cfg.MaxRevoke*float64(open) {
			held := Enforcement{State: e.cfg.Current.Load(), Open: open, Closed: len(forbidden), Held: true}
			e.tell(ctx, held)
			return held
		}
	}
	return e.enforce(ctx, func(now time.Time) *State { return e.cfg.Current.Swap(p, now) })
}

// Again puts the policy in force once more, as a new generation: after the
// trust in identities has changed.
func (e *Enforcer) Again(ctx context.Context) Enforcement {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.enforce(ctx, func(now time.Time) *State {
		var p *allowlist.Policy
		if s := e.cfg.Current.Load(); s != nil {
			p = s.Policy
		}
		return e.cfg.Current.Swap(p, now)
	})
}

// The longest times between two looks at the clock: it may be set, and a
// tunnel may open whose SVID expires before the next date.
const (
	lookAtDates    = time.Hour
	lookAtExpiries = time.Second
)

// Run ends tunnels when a date passes that allowed them, until ctx is done.
func (e *Enforcer) Run(ctx context.Context) {
	looked := time.Now()
	for {
		timer := time.NewTimer(e.untilLook(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-e.dates:
			timer.Stop()
		case <-timer.C:
		}
		now := time.Now()
		if e.passed(looked, now) {
			e.mu.Lock()
			e.enforce(ctx, func(time.Time) *State { return e.cfg.Current.Load() })
			e.mu.Unlock()
		}
		looked = now
	}
}

func (e *Enforcer) untilLook(now time.Time) time.Duration {
	wait := lookAtDates
	if e.cfg.CloseAtExpiry {
		wait = lookAtExpiries
	}
	if s := e.cfg.Current.Load(); s != nil {
		if at, ok := s.Policy.NextEnd(now); ok {
			wait = min(wait, at.Sub(now))
		}
	}
	return wait
}

// passed reports whether a date of the policy, or of a tunnel's SVID, lies
// after the last look and not after now.
func (e *Enforcer) passed(last, now time.Time) bool {
	if s := e.cfg.Current.Load(); s != nil {
		if at, ok := s.Policy.NextEnd(last); ok && !at.After(now) {
			return true
		}
	}
	return e.cfg.CloseAtExpiry && slices.ContainsFunc(e.cfg.Registry.all(), func(t *Tunnel) bool { return t.expired(now) })
}

func (t *Tunnel) expired(now time.Time) bool { return !t.NotAfter.IsZero() && now.After(t.NotAfter) }

// enforce makes a state the current one and ends what it forbids. Whoever
// registers a tunnel after the swap looks at the state again by itself.
func (e *Enforcer) enforce(ctx context.Context, swap func(now time.Time) *State) Enforcement {
	start := time.Now()
	state := swap(start)
	open, forbidden := e.judge(state, start)
	for _, f := range forbidden {
		f.tunnel.End(f.reason, f.why)
	}
	done := Enforcement{State: state, Open: open, Closed: len(forbidden), Took: time.Since(start)}
	select {
	case e.dates <- struct{}{}:
	default:
	}
	e.tell(ctx, done)
	return done
}

func (e *Enforcer) tell(ctx context.Context, done Enforcement) {
	if e.cfg.Enforced != nil {
		e.cfg.Enforced(ctx, done)
	}
}

// forbidden is a tunnel that a state does not allow, and why.
type forbidden struct {
	tunnel *Tunnel
	reason tunnel.Reason
	why    allowlist.Reason
}

func (e *Enforcer) judge(state *State, now time.Time) (open int, list []forbidden) {
	all := e.cfg.Registry.all()
	for _, t := range all {
		if why := e.forbids(state, t, now); why != allowlist.NoReason {
			reason := tunnel.Revoked
			if why == allowlist.QuarantinedIdentity {
				reason = tunnel.Quarantined
			}
			list = append(list, forbidden{t, reason, why})
		}
	}
	return len(all), list
}

// forbids is the decision over a live tunnel: the same as for a new request,
// on the address that it has. An SVID that has merely expired is no reason by
// itself, an authority that is no longer trusted is.
func (e *Enforcer) forbids(state *State, t *Tunnel, now time.Time) allowlist.Reason {
	req := t.Request
	req.Time = now
	d := state.Decide(req)
	switch {
	case !d.Allowed():
		return d.Reason
	case t.Addr.IsValid() && d.CheckAddr(t.Addr) != nil:
		return allowlist.ResolvedAddressDenied
	case t.Certificates == nil:
		return allowlist.NoReason
	case e.cfg.Trusts == nil || !e.cfg.Trusts(t.Certificates):
		return allowlist.IdentityUntrusted
	case e.cfg.CloseAtExpiry && t.expired(now):
		return allowlist.IdentityExpired
	}
	return allowlist.NoReason
}
