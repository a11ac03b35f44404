package live

import (
	"context"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// Change holds the parts of a state that are new. A nil field is unchanged.
type Change struct {
	Policy *allowlist.Policy
	// SameRules says that Policy is the same policy as before. It was read together
	// with a quarantine list that has changed.
	SameRules  bool
	Quarantine *allowlist.QuarantineList
	Classifier *allowlist.Classifier
}

// hasOtherRules reports whether the policy has other rules. urgent reports whether the
// quarantine list or the classifier is new; both apply to every policy.
func (c *Change) hasOtherRules() bool { return c.Policy != nil && !c.SameRules }
func (c *Change) urgent() bool        { return c.Quarantine != nil || c.Classifier != nil }

// parts holds the last valid part of each kind; a state is made from them.
type parts struct {
	policy *allowlist.Policy // the policy in force; nil if none was ever loaded
	since  time.Time         // when the rules of policy were loaded
	// enforced is the last policy that was enforced completely: everything that it
	// forbade was ended. It differs from policy while the end of something is held.
	enforced   *allowlist.Policy
	quarantine *allowlist.QuarantineList
	classifier *allowlist.Classifier // nil means one that knows the special-purpose ranges only
}

// merge replaces the parts that are new.
func (p *parts) merge(c Change) {
	switch {
	case c.hasOtherRules():
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

// held reports whether something may stay open that the policy in force forbids.
func (p *parts) held() bool { return p.enforced != p.policy }

// nextEnd returns the next date at which a rule ends, of the policy in force and, while
// something is held, of the policy that was enforced last. ok is false if there is none.
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

// complete reports whether all parts are there that a state needs.
func (p *parts) complete() bool { return p.policy != nil && p.quarantine != nil }

// withParts returns a policy with the classifier and the quarantine list.
func (p *parts) withParts(policy *allowlist.Policy) *allowlist.Policy {
	return policy.WithClassifier(p.classifier).WithQuarantine(p.quarantine)
}

// Effect says what a change has led to.
type Effect uint8

// The effects. Unchanged: no new state is in force. InForce: a new state is in force,
// and everything that it forbids was told to end. Held: a new state is in force for new
// requests, and some of what it forbids stays open.
const (
	Unchanged Effect = iota
	InForce
	Held
)

// Apply puts a change in force. Every open entry that the new policy forbids is told to
// end, unless these belong to more identities than MaxRevoke allows. In that case only
// those entries end which the last enforced policy forbids as well, and those which may
// not wait: their identity is in quarantine or no longer trusted, or a date has ended
// their rule. The others are held until Confirm is called, or until MaxRevoke allows the
// end of those that are left, because some have ended or a further change allows them.
//
// No state is in force before both a policy and a quarantine list have been read: a
// list alone allows nothing, and without a list nobody knows who is in quarantine.
func (e *Enforcer) Apply(ctx context.Context, c Change) Effect {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.enforceDates(ctx)
	e.parts.merge(c)
	if !c.hasOtherRules() && !c.urgent() {
		return Unchanged
	}
	return e.putNewest(ctx)
}

// Confirm does what Apply does, but holds nothing, neither what the change forbids nor
// what was held before.
func (e *Enforcer) Confirm(ctx context.Context, c Change) Effect {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parts.merge(c)
	if !c.hasOtherRules() && !c.urgent() && !e.parts.held() {
		return Unchanged
	}
	if e.parts.complete() {
		e.parts.enforced = e.parts.policy
	}
	return e.putNewest(ctx)
}

// TrustChanged puts the policy in force again, as a new generation, after the trusted
// authorities have changed.
func (e *Enforcer) TrustChanged(ctx context.Context) Enforcement {
	e.mu.Lock()
	defer e.mu.Unlock()
	var p *allowlist.Policy
	if s := e.cfg.Current.Load(); s != nil {
		p = s.Policy
	}
	return e.put(ctx, OccasionTrust, p)
}

// enforceDates ends what a date has forbidden since Run last checked the dates, while
// something is held. This matters when the clock was set: for a policy that comes later
// the date would lie before its arrival, and the end could be held.
func (e *Enforcer) enforceDates(ctx context.Context) {
	if now, state := time.Now(), e.cfg.Current.Load(); state != nil && e.parts.held() && e.datePassed(state, now) {
		e.notify(ctx, OccasionDate, e.enforce(e.cfg.Current.renew(), now))
	}
}

// putNewest puts the current parts in force.
func (e *Enforcer) putNewest(ctx context.Context) Effect {
	if !e.parts.complete() {
		return Unchanged
	}
	if done := e.put(ctx, OccasionState, e.parts.withParts(e.parts.policy)); !done.Held.IsZero() {
		return Held
	}
	return InForce
}
