package dns

import (
	"context"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// prepare writes the response of a refused query, and commits the record of a query that
// is refused or must be recorded before it is answered.
func (x *exchange) prepare(ctx context.Context) {
	refusal := x.ruling.refuses()
	if x.kind == noQuery || !refusal && !x.server.cfg.Recorder.Required() {
		return
	}
	x.begin(ctx, x.skipsSpan())
	id := x.pending.ID
	if refusal {
		x.refuse(id)
	}
	x.fillRecord(ctx)
	if x.response.silent { // nothing is sent, so nothing need wait for the record; all callers share the loop that would wait
		return
	}
	switch err := x.pending.Commit(context.WithoutCancel(ctx)); {
	case err != nil:
		x.ruling.fail(allowlist.AuditUnavailable, err.Error())
		x.refuse(id)
		x.fillRecord(ctx)
	case x.pending.ID != id: // the record was merged into that of an identical denial
		x.refuse(x.pending.ID)
	}
}

// finishRecord ends the record, or only counts the query if no record of it is written.
func (x *exchange) finishRecord(ctx context.Context, err error) {
	if x.pending == nil {
		noSpan := x.skipsSpan()
		if noSpan && err == nil { // true for most queries; this path allocates nothing
			rec := &x.pendingStorage.Record
			*rec = audit.Record{
				Time: x.start, Event: audit.EventDecision, Listener: x.transport.listener, Protocol: audit.ProtocolDNS, Wire: x.transport.wire,
			}
			if describe(rec, x); x.server.cfg.Recorder.CountOnly(rec) {
				return
			}
		}
		x.begin(ctx, noSpan)
		x.fillRecord(ctx)
	}
	if err != nil {
		x.pending.DNS.Code, x.pending.DNS.Answered = "", nil // the client did not get it
		if v := x.pending.Verdict; v == allowlist.Allow || v == allowlist.Observe {
			x.pending.Verdict, x.pending.Reason = allowlist.Fail, allowlist.ClientGone // a denial stays a denial
			x.pending.SetDetail("writing the answer: " + err.Error())
		}
	}
	x.pending.End()
}

// begin begins the record, and its span unless noSpan is set.
func (x *exchange) begin(ctx context.Context, noSpan bool) {
	x.pending = &x.pendingStorage
	x.server.cfg.Recorder.Reopen(ctx, x.pending, audit.Start{
		Time: x.start, Listener: x.transport.listener, Protocol: audit.ProtocolDNS, Wire: x.transport.wire, NoSpan: noSpan,
	})
}

// skipsSpan reports whether the query has no span: it was allowed and answered, and only
// some of such queries have one.
func (x *exchange) skipsSpan() bool {
	every := x.server.cfg.SpanEvery
	if every <= 1 || x.ruling.decision.Verdict != allowlist.Allow || x.ruling.reason != allowlist.NoReason {
		return false
	}
	return x.server.counts.allowed.Add(1)%every != 1
}

// fillRecord writes everything that is known into the record.
func (x *exchange) fillRecord(ctx context.Context) {
	describe(&x.pending.Record, x)
	x.pending.DNS.Answered = nil
	if !x.response.silent {
		x.pending.DNS.Answered = addressesOf(x.answered[:0], x.response.buf[min(x.transport.prefix, len(x.response.buf)):], x.query.questionLen)
	}
	if x.lookupTime > 0 {
		x.pending.Dialed(ctx, x.start, x.lookupTime, 0, x.pending.Reason)
	}
}

// describe writes the results of each step into a record.
func describe(rec *audit.Record, x *exchange) {
	why, sent := &x.ruling, &x.response
	rec.Client, rec.Identity, rec.Proof = x.caller.Addr, x.caller.ID, x.caller.Proof
	rec.SetAttributed(x.attributed)
	rec.Dest = allowlist.Destination{Host: x.query.host}
	if why.state != nil {
		rec.SetNameDecision(&why.decision)
		rec.Generation = why.state.Generation
	}
	if why.detail != "" {
		rec.Detail = why.detail
	}
	if why.reason != allowlist.NoReason {
		rec.Verdict, rec.Reason, rec.WouldReason = why.reason.Verdict(), why.reason, allowlist.NoReason
		if why.overLimit { // the refusal depends on the state of the gateway, not on a limit of queries
			rec.Verdict = allowlist.Fail
		}
	}
	rec.Decide, rec.Resolve, rec.Class, rec.Refused = why.decideTime, x.lookupTime, why.class, why.dropped
	rec.DNS = audit.DNS{Type: x.query.typ, Answers: sent.answers, Filtered: sent.filtered, Origin: sent.origin}
	if !sent.silent {
		rec.DNS.Code = codeText(sent.code)
	}
}

// codeText returns the word for a response code in records.
func codeText(code int) string {
	switch code {
	case codeNoError:
		return "NOERROR"
	case codeFormErr:
		return "FORMERR"
	case codeServFail:
		return "SERVFAIL"
	case codeNXDomain:
		return "NXDOMAIN"
	case codeNotImp:
		return "NOTIMP"
	case codeRefused:
		return "REFUSED"
	case codeBadVers:
		return "BADVERS"
	}
	return ""
}
