package proxy

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"runtime/debug"
	"sync"
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

// session handles the requests of one connection of a caller. Over HTTP/2 they come at the
// same time.
type session struct {
	ctx    context.Context //nolint:containedctx // context of the connection, for tunnels, which outlast that of their request
	proxy  *Proxy
	conn   *listen.Conn
	socks5 bool           // the client of the connection speaks SOCKS5
	logins forward.Logins // connections to origins that belong to this connection; of HTTP/1.x only

	mu sync.Mutex // held while the caller is verified again, or looked at
}

// Handle implements front.Handler. While the proxy drains, a query is refused as any other
// request is.
func (s *session) Handle(ctx context.Context, read *front.Request) front.Answer {
	if read.Query != nil && !s.proxy.draining.Load() {
		return s.answerQuery(ctx, read)
	}
	s.conn.MarkUsed()
	return s.handle(ctx, read)
}

// handle answers a request that was read, or one that refuseSilent has made for a
// connection without a request.
func (s *session) handle(ctx context.Context, read *front.Request) (a front.Answer) {
	x := &request{session: s, read: read, asked: read.Asked, detail: read.Detail, cause: read.Cause}
	x.place = s.takePlace(read.Stream)
	defer func() {
		if cause := recover(); cause != nil {
			s.proxy.Panicked(ctx, cause, debug.Stack())
			x.registration.remove()
			a = abandon(ctx, x)
		}
		if a.Kind == front.Forwarded { // other answers end after they were written
			x.place.leave()
		}
	}()
	x.begin(ctx)
	return x.answer(ctx)
}

// refuseSilent records the refusal of a caller that is over a limit, if it has left or sent no
// request before it could be refused.
func (s *session) refuseSilent(ctx context.Context) {
	reason, detail, key := overLimit(&s.conn.Caller)
	if s.conn.Used() || reason == allowlist.NoReason || s.conn.LostSlot() {
		return
	}
	answer := s.handle(ctx, &front.Request{
		Client: s.conn.Conn, Reason: reason, Detail: detail, Cause: key.WithDetail(detail), SOCKS5: s.socks5,
	})
	answer.Done(errNoRequest)
}

// overLimit returns the limit of connections that a caller is over, and the reason and the
// detail to refuse each of its requests with. The reason is NoReason if it is over none.
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

// errNoRequest is passed to Done when a refusal is not sent because there was no request.
var errNoRequest = errors.New("nothing was asked")

// request is one request on its way through the gateway. It is used by one goroutine. Its
// steps, in their order, are the methods begin, admit and reserve, the function connect or
// forwardPlain, and the function open or the method refuse.
type request struct {
	*session

	read         *front.Request
	caller       listen.Caller       // the caller as verified right after state was loaded
	certificates []*x509.Certificate // the chain by which it was verified; nil without one

	pending      *audit.Pending
	asked        allowlist.Request
	state        *live.State // state that makes the decision, loaded by renew; nil while none is in force
	decision     allowlist.Decision
	bound        boundNames       // the names by which an address literal is allowed; zero if there are none
	detail       string           // replaces the reason's text for the caller; "" leaves that text
	cause        string           // replaces detail in the record; "" means detail
	failure      allowlist.Cause  // cause of the refusal, if its reason has several
	lease        *limit.Lease     // use of the budgets; nil before it is taken and after a tunnel has got it
	registration *registration    // nil before there is one and after a tunnel has got it
	place        *place           // the slots that the request has
	sent         bool             // a byte of the request may have gone out
	cutReason    allowlist.Reason // why the gateway has ended the request after it was sent; NoReason if it has not

	afterRefusal func() // called after the record of a refusal has ended; may be nil

	unresolved resolve.Failure // error of the last look-up; zero if it did not fail
}

// begin begins the record of the request. From here on the request has exactly one.
func (x *request) begin(ctx context.Context) {
	read := x.read
	start := audit.Start{Listener: x.conn.Listener, Protocol: audit.ProtocolConnect, Wire: audit.WireH1, Accept: x.conn.AcceptTrace}
	if read.Stream {
		start.Wire = audit.WireH2
	}
	switch {
	case read.SOCKS5:
		start.Protocol, start.Wire = audit.ProtocolSOCKS5, audit.WireTCP
	case read.Method != "" && !front.IsConnect(read.Method):
		start.Protocol = audit.ProtocolHTTP
	}
	if read.Head != nil {
		start.TraceParent, start.Attributed = read.Head.Get("Traceparent"), read.Head.Get(audit.AttributedField)
	}
	x.pending = x.proxy.cfg.Recorder.Begin(ctx, start)
	x.renew()
	x.pending.Client = x.caller.Addr
	x.pending.SetMethod(read.Method)
	x.decision.Request, x.pending.Dest = read.Asked, read.Asked.Dest
	if x.pending.Dest.Host.IsZero() { // the request will be refused: record what its target may mean
		x.pending.Dest = allowlist.Glimpse(read.Target, read.SOCKS5 || front.IsConnect(read.Method))
	}
}

// answer decides the request, carries it out and returns the answer.
func (x *request) answer(ctx context.Context) front.Answer {
	if reason := x.admit(); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	if reason := x.reserve(); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	defer x.release()
	switch {
	case x.read.StopsHere:
		return answerAsFinalRecipient(ctx, x)
	case x.read.IsPlain():
		return forwardPlain(ctx, x)
	}
	res, reason := connect(ctx, x)
	if reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	return open(ctx, x, opening{conn: res.Conn, upstream: resolvedAddr{res.Addr, res.Way}, status: http.StatusOK})
}

// renew loads the state in force and then verifies the caller against the current trust
// bundles. The order matters: when an authority is removed, a new state follows, and a
// request that has loaded the state before it will be decided again.
func (x *request) renew() {
	x.state = x.proxy.cfg.Current.Load()
	verified := x.verify()
	x.caller, x.certificates = verified.Caller, verified.Certificates
	x.pending.Identity, x.pending.Proof = x.caller.ID, x.caller.Proof
}

// admit makes every decision that is possible before a look-up. It returns the reason to
// refuse the request, or NoReason.
func (x *request) admit() allowlist.Reason {
	switch {
	case x.place.denied != "": // if the head could not be read, this is why
		x.cause = limit.KeyConnections.WithDetail(x.place.denied)
		return allowlist.Busy
	case x.read.Reason != allowlist.NoReason:
		return x.read.Reason
	case x.proxy.draining.Load():
		return allowlist.Draining
	}
	if reason, detail, key := overLimit(&x.caller); reason != allowlist.NoReason {
		x.detail, x.cause = detail, key.WithDetail(detail)
		return reason
	}
	now := time.Now()
	if reason := x.identify(now); reason != allowlist.NoReason {
		return reason
	}
	x.decide(now)
	return x.spend()
}

// identify returns the reason to refuse a caller without an identity, or with one that has
// expired since the handshake, and NoReason for any other caller.
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

// decide decides the request by the state that renew has loaded. An upgrade that was once
// dropped is not decided again under later states, because the request has only the budget
// of a plain one.
func (x *request) decide(now time.Time) {
	x.asked.ID, x.asked.Proof, x.asked.Time = x.caller.ID, x.caller.Proof, now
	x.decision = x.state.Decide(x.asked)
	if x.decision.Upgrade == allowlist.NoUpgrade {
		x.asked.Upgrade = allowlist.NoUpgrade
	}
	decideByBoundNames(x, now)
	if x.decision.Reason == allowlist.MalformedTarget {
		if err := allowlist.CheckPath(x.asked.Path); err != nil {
			x.detail = err.Error()
		}
	}
	x.pending.SetDecision(x.decision)
	if x.state != nil {
		x.pending.Generation = x.state.Generation
	}
	x.pending.Decide = time.Since(now)
}

// spend counts the request, allowed or denied, against the budget of its identity. It
// returns the reason of the decision, or RateLimited. It does not count a request that was
// refused before a rule was checked.
func (x *request) spend() allowlist.Reason {
	reason := x.decision.Reason
	if reason == allowlist.PolicyUnavailable || reason == allowlist.QuarantinedIdentity {
		return reason
	}
	if x.proxy.cfg.Budgets.Request(x.caller.Holder()) {
		return reason
	}
	x.pending.Rule, x.pending.RuleAt, x.pending.Ticket = "", "", ""
	x.cause = limit.KeyRequestsPerIdentity.String()
	return allowlist.RateLimited
}

// reserve takes what the request needs from the budgets of its identity. It is called before
// the look-up.
func (x *request) reserve() (reason allowlist.Reason) {
	take := x.proxy.cfg.Budgets.Open
	if x.read.IsPlain() && x.decision.Upgrade == allowlist.NoUpgrade {
		take = x.proxy.cfg.Budgets.Exchange
	}
	var over limit.Key
	x.lease, reason, over = take(x.state.Policy, x.caller.Holder())
	x.cause = over.String()
	return reason
}

// release gives the lease back to the budgets. It does nothing if the lease was given back
// before, or belongs to a tunnel.
func (x *request) release() {
	if x.lease != nil {
		x.lease.Close()
		x.lease = nil
	}
}

// decideAgain decides the request by the state in force, for the caller as verified now.
func (x *request) decideAgain() allowlist.Reason {
	now := time.Now()
	x.renew()
	if reason := x.identify(now); reason != allowlist.NoReason {
		return reason
	}
	x.decide(now)
	return x.decision.Reason
}

// dialed notes the result of a dial for the record, and returns the reason of err.
func (x *request) dialed(ctx context.Context, start time.Time, res dial.Result, err error) allowlist.Reason {
	x.pending.Address, x.pending.Dropped, x.pending.Refused = res.Addr, res.Dropped, res.Refused
	if res.Dropped > 0 {
		x.pending.Class = res.Class
	}
	reason := allowlist.ReasonOf(err)
	x.unresolved = resolve.FailureOf(err)
	failed := reason
	if x.registration.endReason() != allowlist.NoReason {
		failed = allowlist.NoReason // the dial was cancelled, and did not fail because of the destination
	}
	x.pending.Dialed(ctx, start, res.Resolve, res.Dial, failed)
	if reason == allowlist.ResolvedAddressDenied {
		x.pending.Class = res.Class
	}
	if failed != allowlist.NoReason {
		noteError(x, err)
	}
	return reason
}

// dnsError returns the codes of the name servers' error, for the answer to the caller. It
// does not reveal which name servers they were.
func dnsError(reason allowlist.Reason, f resolve.Failure) refusal.DNSError {
	if reason != allowlist.ResolveFailed {
		return refusal.DNSError{}
	}
	return refusal.DNSError{RCode: f.RCode, Extended: f.Extended, HasExtended: f.HasExtended}
}

// noteError notes the text of an error for the record, and its cause.
func noteError(x *request, err error) {
	x.cause, x.failure = cmp.Or(allowlist.DetailOf(err), x.cause), allowlist.CauseOf(err)
}

// writeErrorText returns the text for the record of an answer that could not be sent.
func writeErrorText(err error) string { return "writing the answer: " + err.Error() }

// refuse returns a refusal with a reason. The record ends after the refusal was written.
// The request leaves the registry only after that, so that a shutdown waits for it.
func (x *request) refuse(ctx context.Context, reason allowlist.Reason) front.Answer {
	x.release() // before the answer is written, which may take long
	reason = x.noteRefusal(reason)
	if reason.Info().Status != 0 {
		if err := x.pending.Commit(context.WithoutCancel(ctx)); err != nil { // even a refusal is not sent with its reason if it cannot be recorded
			reason, x.detail, x.cause, x.failure = allowlist.AuditUnavailable, "", err.Error(), allowlist.NoCause
			x.noteRefusal(reason)
		}
	}
	x.decision.ID, x.decision.Reason = x.caller.ID, reason
	return front.Answer{
		Kind: front.Refused, Last: x.caller.Excess,
		Refusal: refusal.Refusal{
			Reason: reason, Cause: x.failure, Decision: x.decision, DecisionID: x.pending.ID, TraceID: x.pending.TraceID(),
			Detail: x.detail, Realm: x.caller.Realm,
			DNS: dnsError(reason, x.unresolved),
		},
		Done: func(err error) {
			defer x.place.leave()
			if x.afterRefusal != nil {
				defer x.afterRefusal()
			}
			defer x.registration.remove()
			if err != nil {
				x.pending.Status = 0 // the client has not got it
			}
			x.pending.End()
		},
	}
}

// answerAsFinalRecipient answers a request that is allowed but may not be forwarded any
// further. Nothing is looked up and no connection is made.
func answerAsFinalRecipient(ctx context.Context, x *request) front.Answer {
	x.pending.Status, x.pending.Detail = http.StatusOK, "answered by the gateway: Max-Forwards is 0"
	if x.pending.Commit(context.WithoutCancel(ctx)) != nil {
		x.pending.Detail = ""
		return x.refuse(ctx, allowlist.AuditUnavailable)
	}
	response := front.FinalRecipientResponse(x.read)
	if note := noteOf(x); note != "" {
		if response.Fields == nil {
			response.Fields = make(http.Header)
		}
		response.Fields.Set("Proxy-Status", note)
	}
	return front.Answer{Kind: front.Local, Response: response, WasAllowed: true, Done: func(err error) {
		defer x.place.leave()
		if err != nil {
			x.cause = writeErrorText(err)
			x.noteUnanswered(allowlist.NoReason)
		}
		x.pending.End()
	}}
}

// noteOf returns what the answer to a request says of a decision that only observes; "" if
// there is nothing to say.
func noteOf(x *request) string {
	return refusal.Note(x.decision, x.pending.ID, x.proxy.cfg.Front.Disclosure)
}

// noteRefusal writes a refusal that is about to be sent into the record, and returns its
// reason. The reason becomes CutOff if the request has already gone out: the origin may
// have carried it out, so that it can no longer be refused.
func (x *request) noteRefusal(reason allowlist.Reason) allowlist.Reason {
	if x.sent && saysUnsent(reason) {
		x.detail, x.cutReason, reason = live.EndedBy(reason).String(), reason, allowlist.CutOff
		x.cause, x.failure = "", allowlist.NoCause
	}
	rec := x.pending
	rec.Reason, rec.Status, rec.Verdict = reason, reason.Info().Status, reason.Verdict()
	if x.sent || reason == allowlist.RateLimited && x.caller.Limited { // a limit of a source address is no denial by policy
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

// noteUnanswered notes that no answer could be sent: for the reason why, or because the
// client has left if why is NoReason.
func (x *request) noteUnanswered(why allowlist.Reason) {
	if why == allowlist.NoReason {
		why = allowlist.ClientGone
	}
	x.noteRefusal(why)
	x.pending.Status = 0
}

// abandon refuses a request after a panic. If the record has already ended, abandon only
// makes the front close the connection.
func abandon(ctx context.Context, x *request) (a front.Answer) {
	if x.pending == nil || x.pending.Ended() {
		return front.Answer{Kind: front.Forwarded, End: front.Close}
	}
	defer func() { // another panic must not prevent the end of the connection
		if recover() != nil {
			a = front.Answer{Kind: front.Forwarded, End: front.Close}
		}
	}()
	x.detail, x.cause, x.failure = "", errPanicked.Error(), allowlist.NoCause
	return x.refuse(ctx, allowlist.InternalError)
}

// saysUnsent reports whether an answer with the reason means that nothing of the request
// has gone out.
func saysUnsent(reason allowlist.Reason) bool {
	switch reason.Info().Status {
	case http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true
	}
	return false
}
