package proxy

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// refuse answers with a reason and ends the record. It reports whether the
// connection may carry another request.
func (x *exchange) refuse(ctx context.Context, reason allowlist.Reason) bool {
	x.release() // what is refused needs no tunnel, and the answer may take its time
	rec := x.open
	reason = x.record(reason)
	if reason.Info().Status != 0 && rec.Commit(context.WithoutCancel(ctx)) != nil {
		reason, x.detail = allowlist.AuditUnavailable, "" // what cannot be recorded is not even refused by its name
		x.record(reason)
	}
	x.decision.ID, x.decision.Reason = x.conn.Caller.ID, reason
	keep := x.keeps(reason)
	answer := refusal.Refusal{
		Reason: reason, Decision: x.decision, DecisionID: rec.ID, TraceID: rec.TraceID(),
		Detail: x.detail, Realm: x.conn.Caller.Realm, KeepAlive: keep,
		Bodyless: x.head != nil && x.head.Method == http.MethodHead,
		JSON:     x.head != nil && strings.Contains(x.head.Get("Accept"), "application/problem+json"),
	}.Append(nil, x.proxy.cfg.Disclosure)
	err := x.write(answer)
	if err != nil {
		rec.Status = 0 // nobody has it
	}
	rec.End()
	if x.after != nil {
		x.after()
		x.after = nil
	}
	if err != nil || len(answer) == 0 {
		return false
	}
	if !keep {
		x.linger()
	}
	return keep
}

// keeps reports whether another request may follow a refusal. Behind a plain
// request that had no body it may; behind a CONNECT only if the caller forgot
// its certificate and has sent nothing that might be read as a request.
func (x *exchange) keeps(reason allowlist.Reason) bool {
	if x.head == nil || x.head.Minor == 0 || x.head.Lists("Connection", "close") {
		return false
	}
	switch reason.Info().Status {
	case http.StatusProxyAuthRequired:
		x.refused++
		return x.refused < maxRefused && x.body == 0 && (x.isPlain() || len(x.reader.Buffered()) == 0)
	case http.StatusForbidden, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout:
		return x.isPlain() && x.body == 0
	}
	return false
}

// record notes the answer that is about to be sent, and returns its reason. A
// request that was sent on is not refused any more: it was cut off, and may have
// been carried out.
func (x *exchange) record(reason allowlist.Reason) allowlist.Reason {
	if x.sent && saysUnsent(reason) {
		x.detail, x.cut, reason = live.EndedBy(reason).String(), reason, allowlist.CutOff
	}
	rec := x.open
	rec.Reason, rec.Status, rec.Verdict = reason, reason.Info().Status, reason.Verdict()
	if x.sent || reason == allowlist.RateLimited && x.conn.Caller.Limited { // a source's limit is the gateway's own state
		rec.Verdict = allowlist.Fail
	}
	if rec.Verdict == allowlist.Deny {
		rec.WouldReason = allowlist.NoReason
	}
	if x.detail != "" {
		rec.Detail = x.detail
	}
	return reason
}

// unanswered notes that no answer could be sent, because the client has left or,
// if there is a reason, because the request was ended meanwhile.
func (x *exchange) unanswered(why allowlist.Reason) {
	if why == allowlist.NoReason {
		why = allowlist.ClientGone
	}
	x.record(why)
	x.open.Status = 0
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

// write sends an answer within the head timeout.
func (x *exchange) write(answer []byte) error {
	if err := x.conn.SetWriteDeadline(time.Now().Add(x.proxy.cfg.HeadTimeout)); err != nil {
		return err
	}
	_, err := x.conn.Write(answer)
	if err != nil {
		// It may have stopped within a TLS record: the caller could read nothing
		// that comes behind, not even a close_notify.
		x.conn.Cut()
	}
	return err
}

// linger ends a connection behind an answer that the caller may not have read
// yet: it may still be sending.
func (x *exchange) linger() {
	x.reader.Release()
	tunnel.Linger(x.conn.Conn)
}

// abandon ends the record of a request that panicked.
func (x *exchange) abandon(ctx context.Context) {
	if x.open == nil || x.open.Ended() {
		return
	}
	defer func() { _ = recover() }() // the answer is a courtesy: nothing more may come of it
	x.detail = ""
	x.refuse(ctx, allowlist.InternalError)
}
