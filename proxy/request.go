package proxy

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// session is the requests of one connection.
type session struct {
	proxy  *Proxy
	conn   *listen.Conn
	wire   audit.Wire     // of its front, for the record
	logins forward.Logins // connections to origins that belong to this connection of the caller's
}

// Handle implements front.Handler.
func (s *session) Handle(ctx context.Context, read *front.Request) front.Answer {
	s.conn.Ask()
	return s.handle(ctx, read)
}

// handle answers what was read.
func (s *session) handle(ctx context.Context, read *front.Request) (a front.Answer) {
	x := &request{session: s, read: read, asked: read.Asked, detail: read.Detail, cause: read.Cause, late: !s.conn.Begin()}
	defer func() {
		if cause := recover(); cause != nil {
			s.proxy.Panicked(ctx, cause, debug.Stack())
			x.place.leave()
			a = abandon(ctx, x)
		}
		if a.Kind == front.Forwarded { // the others end when they were written, and a tunnel with its connection
			s.conn.End()
		}
	}()
	x.begin(ctx)
	return x.answer(ctx)
}

// unasked records the refusal of a caller that is over a limit and has left, or said
// nothing, before it could be told.
func (s *session) unasked(ctx context.Context) {
	reason, detail, key := overLimit(&s.conn.Caller)
	if s.conn.Asked() || reason == allowlist.NoReason || s.conn.GaveWay() {
		return
	}
	answer := s.handle(ctx, &front.Request{Client: s.conn.Conn, Reason: reason, Detail: detail, Cause: key.Says(detail)})
	answer.Done(errUnasked)
}

// overLimit returns which limit of connections a caller is over, whatever it asks, and
// what it is told.
func overLimit(c *listen.Caller) (reason allowlist.Reason, detail string, key limit.Key) {
	detail, key = c.OverLimit()
	switch {
	case key == limit.NoKey:
		return allowlist.NoReason, "", key
	case c.Busy:
		return allowlist.Busy, detail, key
	}
	return allowlist.RateLimited, detail, key
}

// errUnasked is why an answer to no request was not sent.
var errUnasked = errors.New("nothing was asked")

// request is one request on its way through the gateway, whatever wire it came
// by. It is made for that request and belongs to one goroutine.
type request struct {
	*session

	read   *front.Request
	caller listen.Caller // by the trust of when the state was taken

	open     *audit.Open
	asked    allowlist.Request
	state    *live.State
	decision allowlist.Decision
	bound    bound  // how an address literal came to be allowed, if by its names
	detail   string // what the caller is told in place of the reason's own text; "" is nothing
	cause    string // what the record says in place of that; "" is the same
	failure  allowlist.Cause
	lease    *limit.Lease     // what it has of its budgets; nil before it took any, or once its tunnel has it
	place    *place           // in the registry; nil before it has one, or once its tunnel has it
	late     bool             // its connection was closed for want of a slot before it was read
	sent     bool             // a byte of it may have gone out
	cut      allowlist.Reason // why the gateway ended what was sent; NoReason if it did not

	afterRefusal func() // what follows the record of a refusal; nil is nothing

	unresolved resolve.Failure // what the resolver said of the last look-up; zero if it did not fail
}

// begin opens the record: from here on there is exactly one.
func (x *request) begin(ctx context.Context) {
	read := x.read
	start := audit.Start{Listener: x.conn.Listener, Protocol: audit.ProtocolConnect, Wire: x.wire, Accept: x.conn.AcceptTrace}
	if read.Method != "" && !front.IsConnect(read.Method) {
		start.Protocol = audit.ProtocolHTTP
	}
	if read.Head != nil {
		start.TraceParent = read.Head.Get("Traceparent")
	}
	x.open = x.proxy.cfg.Recorder.Begin(ctx, start)
	x.open.Client = x.conn.Caller.Addr
	x.renew()
	x.open.SetMethod(read.Method)
	x.decision.Request, x.open.Dest = read.Asked, read.Asked.Dest
	if x.open.Dest.Host.IsZero() { // refused: whether or not its target was parsed
		x.open.Dest = allowlist.Glimpse(read.Target, front.IsConnect(read.Method))
	}
}

// answer takes the request from its head to the answer.
func (x *request) answer(ctx context.Context) front.Answer {
	if reason := x.admit(); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	if reason := x.take(); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	defer x.release()
	switch {
	case x.read.StopsHere:
		return own(ctx, x)
	case x.read.IsPlain():
		return carry(ctx, x)
	}
	res, reason := connect(ctx, x)
	if reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	return open(ctx, x, opening{conn: res.Conn, to: reached{res.Addr, res.Way}, status: http.StatusOK})
}

// renew takes the state in force and makes sure that the caller is who it is by
// the trust of now, in this order: when an authority goes, another state follows,
// and whoever took the one before looks again.
func (x *request) renew() {
	x.state = x.proxy.cfg.Current.Load()
	x.conn.Renew()
	x.caller = x.conn.Caller
	x.open.Identity, x.open.Source = x.caller.ID, x.caller.Source
}

// admit decides: everything that can be said without a look-up.
func (x *request) admit() allowlist.Reason {
	switch {
	case x.late: // that is why nothing more came of it
		x.cause = limit.KeyConnections.Says("the connection was closed for another one")
		return allowlist.Busy
	case x.read.Reason != allowlist.NoReason:
		return x.read.Reason
	case x.proxy.draining.Load():
		return allowlist.Draining
	}
	if reason, detail, key := overLimit(&x.caller); reason != allowlist.NoReason {
		x.detail, x.cause = detail, key.Says(detail)
		return reason
	}
	now := time.Now()
	if reason := x.identify(now); reason != allowlist.NoReason {
		return reason
	}
	x.decide(now)
	return x.spend()
}

// identify refuses a caller without an identity, or with one that has expired
// since the handshake.
func (x *request) identify(now time.Time) allowlist.Reason {
	if x.caller.Reason != allowlist.NoReason {
		x.detail = x.caller.Detail
		return x.caller.Reason
	}
	if !x.caller.NotAfter.IsZero() && now.After(x.caller.NotAfter) {
		x.detail = "certificate expired " + x.caller.NotAfter.UTC().Format(time.RFC3339)
		return allowlist.IdentityExpired
	}
	return allowlist.NoReason
}

// decide asks the state that renew took, once. An upgrade that was dropped stays
// so, whatever states follow: the request has only the budget of a plain one.
func (x *request) decide(now time.Time) {
	x.asked.ID, x.asked.Source, x.asked.Time = x.caller.ID, x.caller.Source, now
	x.decision = x.state.Decide(x.asked)
	if x.decision.Upgrade == allowlist.NoUpgrade {
		x.asked.Upgrade = allowlist.NoUpgrade
	}
	bind(x, now)
	if x.decision.Reason == allowlist.MalformedTarget {
		if err := allowlist.CheckPath(x.asked.Path); err != nil {
			x.detail = err.Error()
		}
	}
	x.open.SetDecision(x.decision)
	if x.state != nil {
		x.open.Generation = x.state.Generation
	}
	x.open.Decide = time.Since(now)
}

// spend counts the request against the budget of its identity, denied or not,
// and returns the reason of the decision. What is refused before any rule is
// looked at stays what it is.
func (x *request) spend() allowlist.Reason {
	reason := x.decision.Reason
	if reason == allowlist.PolicyUnavailable || reason == allowlist.QuarantinedIdentity {
		return reason
	}
	if x.proxy.cfg.Budgets.Request(x.caller.Holder()) {
		return reason
	}
	x.open.Rule, x.open.RuleAt, x.open.Ticket = "", "", ""
	x.cause = limit.KeyRequestsPerIdentity.String()
	return allowlist.RateLimited
}

// take takes what the request needs from the budgets of its identity, before
// anything is looked up.
func (x *request) take() (reason allowlist.Reason) {
	take := x.proxy.cfg.Budgets.Open
	if x.read.IsPlain() && x.decision.Upgrade == allowlist.NoUpgrade {
		take = x.proxy.cfg.Budgets.Exchange
	}
	var over limit.Key
	x.lease, reason, over = take(x.state.Policy, x.caller.Holder())
	x.cause = over.String()
	return reason
}

// release returns the lease to the budgets. It does nothing if the lease was
// returned or handed to a tunnel.
func (x *request) release() {
	if x.lease != nil {
		x.lease.Close()
		x.lease = nil
	}
}

// again makes the decision on the state and by the trust of now.
func (x *request) again() allowlist.Reason {
	now := time.Now()
	x.renew()
	if reason := x.identify(now); reason != allowlist.NoReason {
		return reason
	}
	x.decide(now)
	return x.decision.Reason
}

// dialed records what came of a dial.
func (x *request) dialed(ctx context.Context, start time.Time, res dial.Result, err error) allowlist.Reason {
	x.open.Address, x.open.Dropped, x.open.Refused = res.Addr, res.Dropped, res.Refused
	if res.Dropped > 0 {
		x.open.Class = res.Class
	}
	reason := allowlist.ReasonOf(err)
	x.unresolved = resolve.FailureOf(err)
	failed := reason
	if x.place.why() != allowlist.NoReason {
		failed = allowlist.NoReason // it was cancelled, the destination is not to blame
	}
	x.open.Dialed(ctx, start, res.Resolve, res.Dial, failed)
	if reason == allowlist.ResolvedAddressDenied {
		x.open.Class = res.Class
	}
	if failed != allowlist.NoReason {
		blame(x, err)
	}
	return reason
}

// dnsError returns what a caller is told of the name servers that had no answer: their
// code, and never which they are.
func dnsError(reason allowlist.Reason, f resolve.Failure) refusal.DNSError {
	if reason != allowlist.ResolveFailed {
		return refusal.DNSError{}
	}
	return refusal.DNSError{RCode: f.RCode, Extended: f.Extended, HasExtended: f.HasExtended}
}

// blame notes what an error says, for the record, and its cause.
func blame(x *request, err error) {
	x.cause, x.failure = cmp.Or(allowlist.DetailOf(err), x.cause), allowlist.CauseOf(err)
}

// unwritten says that an answer could not be sent.
func unwritten(err error) string { return "writing the answer: " + err.Error() }

// refuse makes a refusal of a reason. Its record ends when it was written, and
// only then the request leaves the registry, so that a shutdown waits for it.
func (x *request) refuse(ctx context.Context, reason allowlist.Reason) front.Answer {
	x.release() // what is refused needs no tunnel, and the answer may take its time
	reason = x.note(reason)
	if reason.Info().Status != 0 {
		if err := x.open.Commit(context.WithoutCancel(ctx)); err != nil { // what cannot be recorded is not even refused by its name
			reason, x.detail, x.cause, x.failure = allowlist.AuditUnavailable, "", err.Error(), allowlist.NoCause
			x.note(reason)
		}
	}
	x.decision.ID, x.decision.Reason = x.caller.ID, reason
	return front.Answer{
		Kind: front.Refused, Last: x.caller.Excess,
		Refusal: refusal.Refusal{
			Reason: reason, Cause: x.failure, Decision: x.decision, DecisionID: x.open.ID, TraceID: x.open.TraceID(),
			Detail: x.detail, Realm: x.caller.Realm,
			DNS: dnsError(reason, x.unresolved),
		},
		Done: func(err error) {
			defer x.conn.End()
			if x.afterRefusal != nil {
				defer x.afterRefusal()
			}
			defer x.place.leave()
			if err != nil {
				x.open.Status = 0 // nobody has it
			}
			x.open.End()
		},
	}
}

// own has the front answer a request that policy allows and that may not be
// forwarded. Nothing is looked up and no connection is made.
func own(ctx context.Context, x *request) front.Answer {
	x.open.Status, x.open.Detail = http.StatusOK, "answered by the gateway: Max-Forwards is 0"
	if x.open.Commit(context.WithoutCancel(ctx)) != nil {
		x.open.Detail = ""
		return x.refuse(ctx, allowlist.AuditUnavailable)
	}
	return front.Answer{Kind: front.Own, Done: func(err error) {
		defer x.conn.End()
		if err != nil {
			x.cause = unwritten(err)
			x.unanswered(allowlist.NoReason)
		}
		x.open.End()
	}}
}

// note records the answer that is about to be sent, and returns its reason. A
// request that was sent on is not refused any more: it was cut off, and may have
// been carried out.
func (x *request) note(reason allowlist.Reason) allowlist.Reason {
	if x.sent && saysUnsent(reason) {
		x.detail, x.cut, reason = live.EndedBy(reason).String(), reason, allowlist.CutOff
		x.cause, x.failure = "", allowlist.NoCause
	}
	rec := x.open
	rec.Reason, rec.Status, rec.Verdict = reason, reason.Info().Status, reason.Verdict()
	if x.sent || reason == allowlist.RateLimited && x.caller.Limited { // a source's limit is the gateway's own state
		rec.Verdict = allowlist.Fail
	}
	if rec.Verdict == allowlist.Deny {
		rec.WouldReason = allowlist.NoReason
	}
	if detail := cmp.Or(x.cause, x.detail); detail != "" {
		rec.SetDetail(detail)
	}
	return reason
}

// unanswered notes that no answer could be sent, because the client has left or,
// if there is a reason, because the request was ended meanwhile.
func (x *request) unanswered(why allowlist.Reason) {
	if why == allowlist.NoReason {
		why = allowlist.ClientGone
	}
	x.note(why)
	x.open.Status = 0
}

// abandon refuses a request that panicked, unless its record has ended: then
// there is nothing to say any more.
func abandon(ctx context.Context, x *request) (a front.Answer) {
	if x.open == nil || x.open.Ended() {
		return front.Answer{Kind: front.Forwarded, End: front.Close}
	}
	defer func() { // the answer is a courtesy: nothing more may come of it
		if recover() != nil {
			a = front.Answer{Kind: front.Forwarded, End: front.Close}
		}
	}()
	x.detail, x.cause, x.failure = "", errPanicked.Error(), allowlist.NoCause
	return x.refuse(ctx, allowlist.InternalError)
}

// saysUnsent reports whether an answer with the reason says that nothing of the
// request has left.
func saysUnsent(reason allowlist.Reason) bool {
	switch reason.Info().Status {
	case http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true
	}
	return false
}
