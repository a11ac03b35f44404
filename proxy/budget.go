package proxy

import "github.com/exeat-dev/exeat/allowlist"

// spend counts the request against the budget of its identity, denied or not,
// and returns the reason of the decision. What is refused before any rule is
// looked at stays what it is.
func (x *exchange) spend() allowlist.Reason {
	reason := x.decision.Reason
	if reason == allowlist.PolicyUnavailable || reason == allowlist.QuarantinedIdentity {
		return reason
	}
	if x.proxy.cfg.Budgets.Request(x.conn.Caller.ID) {
		return reason
	}
	x.open.Rule, x.open.RuleAt = "", ""
	return allowlist.RateLimited
}

// take takes what the request needs from the budgets of its identity, before
// anything is looked up.
func (x *exchange) take() (reason allowlist.Reason) {
	take := x.proxy.cfg.Budgets.Open
	if x.isPlain() && x.decision.Upgrade == allowlist.NoUpgrade {
		take = x.proxy.cfg.Budgets.Exchange
	}
	x.lease, reason = take(x.state.Policy, x.conn.Caller.ID)
	return reason
}

// release gives back what take took, if it has not been yet.
func (x *exchange) release() {
	if x.lease != nil {
		x.lease.Close()
		x.lease = nil
	}
}
