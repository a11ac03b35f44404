package live

import (
	"context"

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

// another reports whether the policy has other rules, and urgent whether there is
// something that no policy holds back.
func (c *Change) another() bool { return c.Policy != nil && !c.SameRules }
func (c *Change) urgent() bool  { return c.Quarantine != nil || c.Classifier != nil }

// parts are the last good ones of each kind, of which a state is made.
type parts struct {
	policy     *allowlist.Policy // nil: none was ever loaded
	inForce    *allowlist.Policy // policy, or while that is held the one before it
	held       bool              // policy is not in force: it would close too much
	quarantine *allowlist.QuarantineList
	classifier *allowlist.Classifier // nil: one that knows the special-purpose ranges only
}

// take takes up what has come anew.
func (p *parts) take(c Change) {
	if c.Policy != nil {
		p.policy = c.Policy
	}
	if c.Quarantine != nil {
		p.quarantine = c.Quarantine
	}
	if c.Classifier != nil {
		p.classifier = c.Classifier
	}
}

// complete reports whether a state can be made.
func (p *parts) complete() bool { return p.policy != nil && p.quarantine != nil }

// whole is a policy with what goes over it.
func (p *parts) whole(policy *allowlist.Policy) *allowlist.Policy {
	return policy.WithClassifier(p.classifier).WithQuarantine(p.quarantine)
}

// Effect is what became of the last policy.
type Effect uint8

// The effects. Unchanged means that no policy was put in force again or held:
// there was nothing new, or only what goes over the one in force while another
// is held.
const (
	Unchanged Effect = iota
	InForce
	Held
)

// Apply puts in force what has come anew. A policy that would close more than it
// may is held, and stays so until it is confirmed or yet another one comes; what
// may not wait for that, a quarantine or an address of the host, goes over the one
// that stays. Nothing is in force before a policy and a quarantine list have come:
// a list alone allows nothing, and one that was never read nobody.
func (e *Enforcer) Apply(ctx context.Context, c Change) Effect {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parts.take(c)
	if !c.another() && !c.urgent() {
		return Unchanged
	}
	effect := Unchanged
	if c.another() || !e.parts.held {
		if effect = e.newest(ctx, !c.another()); effect != Held {
			return effect
		}
	}
	if c.urgent() && e.parts.complete() {
		e.put(ctx, e.parts.whole(e.parts.inForce), true)
	}
	return effect
}

// Confirm does as Apply, and holds nothing: neither what comes with it nor what
// is held since before.
func (e *Enforcer) Confirm(ctx context.Context, c Change) Effect {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parts.take(c)
	if !c.another() && !c.urgent() && !e.parts.held {
		return Unchanged
	}
	return e.newest(ctx, true)
}

// TrustChanged puts the policy in force once more, as a new generation, after the
// trust in identities has changed. It is never held.
func (e *Enforcer) TrustChanged(ctx context.Context) Enforcement {
	e.mu.Lock()
	defer e.mu.Unlock()
	var p *allowlist.Policy
	if s := e.cfg.Current.Load(); s != nil {
		p = s.Policy
	}
	return e.swap(ctx, p)
}

// newest puts the last policy in force, or holds it unless sure.
func (e *Enforcer) newest(ctx context.Context, sure bool) Effect {
	if !e.parts.complete() {
		return Unchanged
	}
	e.parts.held = e.put(ctx, e.parts.whole(e.parts.policy), sure).Held
	if e.parts.held {
		return Held
	}
	e.parts.inForce = e.parts.policy
	return InForce
}
