package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// ruling says whether the caller gets the resolver's answer, and why if not. The zero
// value refuses.
type ruling struct {
	reason      allowlist.Reason // why the resolver's answer is not sent; NoReason if only the decision says whether it is
	detail      string           // detail of the reason, for the record
	state       *live.State      // state that made the decision; nil if no decision was made
	decision    allowlist.NameDecision
	decideTime  time.Duration    // how long the decision took
	inspect     bool             // value of Config.Inspect
	overLimit   bool             // says that the caller has more connections than it may
	lookupsFull bool             // says that the query was not looked up because too many wait for servers
	failure     resolve.Failure  // what the resolver returned about a look-up that failed
	aliasReason allowlist.Reason // why an alias in the answer was refused
	aliasTarget allowlist.Host   // the name that this alias leads to
	class       allowlist.Class  // class of an address in the answer that was refused
	dropped     []netip.Addr     // the first addresses in the answer that were refused
}

// refuses reports whether the caller does not get the resolver's answer.
func (r *ruling) refuses() bool { return r.reason != allowlist.NoReason || !r.decision.Allowed() }

// fail replaces the ruling by a fault of the gateway.
func (r *ruling) fail(reason allowlist.Reason, detail string) {
	r.reason, r.aliasReason, r.detail, r.failure = reason, allowlist.NoReason, detail, resolve.Failure{}
}

// setDecision sets the decision of a state about a query.
func (r *ruling) setDecision(state *live.State, caller *listen.Caller, q *query, now time.Time) {
	r.state = state
	r.decision = state.DecideName(allowlist.NameRequest{
		ID: caller.ID, Proof: caller.Proof, Host: q.host, Type: q.typ, Time: now,
	})
	r.decideTime = time.Since(now)
}

// decide makes every decision that is possible before a look-up. It spends the query
// from the caller's budget, and returns the reason to refuse it, or NoReason.
func (x *exchange) decide() allowlist.Reason {
	caller, state := &x.caller, x.server.cfg.Current.Load()
	if isOverLimit(caller) {
		x.ruling.refuseOverLimit(&x.transport, caller)
		return x.ruling.reason
	}
	if over := x.server.cfg.Budgets.Query(state.Limiting(), caller.Holder()); over != limit.NoKey {
		x.ruling.detail = over.String()
		return allowlist.RateLimited
	}
	x.ruling.detail = x.query.problem
	switch x.kind {
	case malformed, noQuery:
		return allowlist.MalformedHeader
	case notImplemented:
		return allowlist.MethodNotAllowed
	case unknownVersion:
		x.ruling.detail = "EDNS version " + strconv.Itoa(int(x.query.version))
		return allowlist.UnsupportedVersion
	case noHost, transfer, wellFormedQuery:
	}
	switch {
	case caller.Reason != allowlist.NoReason:
		x.ruling.detail = caller.Detail
		return caller.Reason
	case !caller.NotAfter.IsZero() && x.start.After(caller.NotAfter):
		x.ruling.detail = "certificate expired " + caller.NotAfter.UTC().Format(time.RFC3339)
		return allowlist.IdentityExpired
	case x.kind == transfer:
		return allowlist.TypeNotAllowed
	}
	x.ruling.setDecision(state, caller, &x.query, x.start)
	return x.ruling.decision.Reason
}

// Addr reports whether the caller may see an address. It notes an address that the
// caller may not see, and its class. Addr and Hop implement [resolve.Filter].
func (r *ruling) Addr(addr netip.Addr) bool {
	class := r.decision.CheckAddr(addr)
	if class != allowlist.Public {
		r.class = class
		r.drop(addr)
	}
	return class == allowlist.Public
}

// drop notes a refused address for the record. It is called twice for an address if the
// answer is filtered twice.
func (r *ruling) drop(addr netip.Addr) {
	if r.dropped == nil {
		r.dropped = make([]netip.Addr, 0, audit.MaxAddresses)
	}
	if len(r.dropped) < audit.MaxAddresses && !slices.Contains(r.dropped, addr) {
		r.dropped = append(r.dropped, addr)
	}
}

// Hop reports whether an alias in the answer may lead the caller to a name, and notes
// why not.
func (r *ruling) Hop(name allowlist.Host) bool {
	why := r.decision.CheckHop(name, r.inspect)
	if why != allowlist.NoReason {
		r.aliasReason, r.aliasTarget = why, name
	}
	return why == allowlist.NoReason
}

// follows reports whether a server may be asked for the target of an alias.
func (r *ruling) follows(name allowlist.Host) bool {
	return r.decision.CheckFollow(name, r.inspect) == allowlist.NoReason
}
