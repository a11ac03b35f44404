// Package live holds the state that is in force, and everything that lasts longer
// than one decision.
//
// A [State] is immutable: a policy, which includes the quarantine list and the classifier
// of addresses, a generation and a load time. A request loads one from [Current] and
// decides everything by it. The [Registry] holds
// every [Entry]. The [Enforcer] puts states in force and ends those entries
// that a state forbids.
package live

import (
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// State is the policy of one generation. The zero value denies everything as
// policy-unavailable.
type State struct {
	Policy *allowlist.Policy
	// Generation counts the states of this process from 1.
	Generation uint64
	// Loaded is when the state came into force. Since is when a policy of this version
	// came into force; later states with the same version keep it.
	Loaded, Since time.Time
}

// Decide decides a request by the policy of this state. A nil state denies.
func (s *State) Decide(req allowlist.Request) allowlist.Decision {
	if s == nil {
		return (*allowlist.Policy)(nil).Decide(req)
	}
	return s.Policy.Decide(req)
}

// DecideName decides a DNS query by the policy of this state. A nil state denies.
func (s *State) DecideName(req allowlist.NameRequest) allowlist.NameDecision {
	if s == nil {
		return (*allowlist.Policy)(nil).DecideName(req)
	}
	return s.Policy.DecideName(req)
}

// Knows returns the reason for which this state refuses every request of an identity,
// or NoReason if the decision depends on the request. A nil state refuses everything.
func (s *State) Knows(id spiffeid.ID, proof allowlist.Proof) allowlist.Reason {
	if s == nil {
		return allowlist.PolicyUnavailable
	}
	return s.Policy.Knows(id, proof)
}

// Limiting returns the policy whose limits are in force. It is nil for a nil state;
// then the default limits are in force.
func (s *State) Limiting() *allowlist.Policy {
	if s == nil {
		return nil
	}
	return s.Policy
}

// Current holds the state in force. The zero value holds none and denies everything.
// It is safe for concurrent use.
type Current struct {
	state atomic.Pointer[State]
}

// Load returns the state in force; nil before the first Swap.
func (c *Current) Load() *State { return c.state.Load() }

// renew replaces the state in force by an equal copy and returns it. A request that
// compares pointers then sees that it must decide again, here because a date has
// passed. It returns nil if no state is in force. It must not run concurrently with
// itself or with Swap.
func (c *Current) renew() *State {
	old := c.state.Load()
	if old == nil {
		return nil
	}
	next := *old
	c.state.Store(&next)
	return &next
}

// Swap puts a policy in force as the next generation and returns its state.
// It must not be called concurrently with itself.
func (c *Current) Swap(p *allowlist.Policy, now time.Time) *State {
	next := &State{Policy: p, Generation: 1, Loaded: now, Since: now}
	if old := c.state.Load(); old != nil {
		next.Generation = old.Generation + 1
		if old.Policy.Version() == p.Version() {
			next.Since = old.Since
		}
	}
	c.state.Store(next)
	return next
}
