package live

import (
	"context"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// Change is what has come anew. A nil field has not.
type Change struct {
	Policy *allowlist.Policy
	// SameRules says that Policy differs from the one before in its version only,
	// as it does when a quarantine list beside it has changed.
	SameRules  bool
	Quarantine *allowlist.QuarantineList
	Classifier *allowlist.Classifier
}

// another reports whether the policy has other rules, and urgent whether something
// has changed that goes over every policy.
func (c *Change) another() bool { return c.Policy != nil && !c.SameRules }
func (c *Change) urgent() bool  { return c.Quarantine != nil || c.Classifier != nil }

// parts are the last good ones of each kind, of which a state is made.
type parts struct {
	policy *allowlist.Policy // in force; nil: none was ever loaded
	since  time.Time         // when its rules came
	// enforced is the last policy of which everything was ended that it forbade. It is
	// another one than policy while that is held.
	enforced   *allowlist.Policy
	quarantine *allowlist.QuarantineList
	classifier *allowlist.Classifier // nil: one that knows the special-purpose ranges only
}

// take takes up what has come anew.
func (p *parts) take(c Change) {
	switch {
	case c.another():
		p.policy, p.since = c.Policy, time.Now()
	case c.Policy != nil:
		if !p.held() {
			p.enforced = c.Policy
		}
		p.policy = c.Policy
	}
	if c.Quarantine != nil {
		p.quarantine = c.Quarantine
	}
	if c.Classifier != nil {
		p.classifier = c.Classifier
	}
}

// held reports whether something may be open that the policy forbids.
func (p *parts) held() bool { return p.enforced != p.policy }

// nextEnd returns the next date of the policy in force, or of the one before it
// while that is held; false if there is none.
func (p *parts) nextEnd(state *State, now time.Time) (at time.Time, ok bool) {
	at, ok = state.Policy.NextEnd(now)
	if !p.held() {
		return at, ok
	}
	if other, has := p.enforced.NextEnd(now); has && (!ok || other.Before(at)) {
		return other, true
	}
	return at, ok
}

// complete reports whether a state can be made.
func (p *parts) complete() bool { return p.policy != nil && p.quarantine != nil }

// whole is a policy with what goes over it.
func (p *parts) whole(policy *allowlist.Policy) *allowlist.Policy {
	return policy.WithClassifier(p.classifier).WithQuarantine(p.quarantine)
}

// Effect is what became of a change.
type Effect uint8

// The effects. Unchanged means that nothing was put in force, InForce that what the
// state forbids has ended, and Held that it is in force for everything new, and some
// of what it forbids stays open.
const (
	Unchanged Effect = iota
	InForce
	Held
)

// Apply puts in force what has come anew. What is open and a policy forbids is told
// to end, unless that is more than MaxRevoke allows: then only what the last
// enforced policy forbids as well, and what may not wait for anybody: a quarantine,
// what a date has ended, or who is no longer trusted. That holds until somebody confirms
// it, or what is open or a further change makes it less. Nothing is in force before
// a policy and a quarantine list have come: a list alone allows nothing, and one
// that was never read nobody.
func (e *Enforcer) Apply(ctx context.Context, c Change) Effect {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.obeyDates(ctx)
	e.parts.take(c)
	if !c.another() && !c.urgent() {
		return Unchanged
	}
	return e.newest(ctx)
}

// Confirm does as Apply, and holds nothing: neither what comes with it nor what
// is held since before.
func (e *Enforcer) Confirm(ctx context.Context, c Change) Effect {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parts.take(c)
	if !c.another() && !c.urgent() && !e.parts.held() {
		return Unchanged
	}
	if e.parts.complete() {
		e.parts.enforced = e.parts.policy
	}
	return e.newest(ctx)
}

// TrustChanged puts the policy in force once more, as a new generation, after the
// trust in identities has changed.
func (e *Enforcer) TrustChanged(ctx context.Context) Enforcement {
	e.mu.Lock()
	defer e.mu.Unlock()
	var p *allowlist.Policy
	if s := e.cfg.Current.Load(); s != nil {
		p = s.Policy
	}
	return e.put(ctx, p)
}

// obeyDates ends what a date forbids that has passed since Run looked last, as after the
// clock was set, while a policy is held. To a further policy the date would be one that
// had passed before it came, and the end could be held.
func (e *Enforcer) obeyDates(ctx context.Context) {
	if now, state := time.Now(), e.cfg.Current.Load(); state != nil && e.parts.held() && e.passed(state, now) {
		e.tell(ctx, e.enforce(e.cfg.Current.renew(), now))
	}
}

// newest puts the last policy in force.
func (e *Enforcer) newest(ctx context.Context) Effect {
	if !e.parts.complete() {
		return Unchanged
	}
	if done := e.put(ctx, e.parts.whole(e.parts.policy)); !done.Held.IsZero() {
		return Held
	}
	return InForce
}
