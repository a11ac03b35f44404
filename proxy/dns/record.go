package dns

import (
	"context"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// settle writes the response of a query that is refused, and the record of one
// that may not be answered before it is recorded.
func (x *exchange) settle(ctx context.Context) {
	refusal := x.ruling.refuses()
	if x.kind == noQuery || !refusal && !x.server.cfg.Recorder.Required() {
		return
	}
	x.begin(ctx, x.server.thin(&x.ruling))
	id := x.open.ID
	if refusal {
		x.refuse(id)
	}
	x.fill(ctx)
	if x.response.silent { // nobody is told anything, so that nobody need wait: all callers share the socket
		return
	}
	switch err := x.open.Commit(context.WithoutCancel(ctx)); {
	case err != nil:
		x.ruling.fail(allowlist.AuditUnavailable, err.Error())
		x.refuse(id)
		x.fill(ctx)
	case x.open.ID != id: // it is one with an identical denial before it
		x.refuse(x.open.ID)
	}
}

// note ends the record, or only counts the query if nothing is written of it.
func (x *exchange) note(ctx context.Context, err error) {
	if x.open == nil {
		thin := x.server.thin(&x.ruling)
		if thin && err == nil { // most queries: this allocates nothing
			rec := &x.opened.Record
			*rec = audit.Record{
				Time: x.start, Event: audit.EventDecision, Listener: x.from.listener, Protocol: audit.ProtocolDNS, Wire: x.from.wire,
			}
			if describe(rec, x); x.server.cfg.Recorder.Pass(rec) {
				return
			}
		}
		x.begin(ctx, thin)
		x.fill(ctx)
	}
	if err != nil {
		x.open.DNS.Code, x.open.DNS.Answered = "", nil // nobody has it
		if v := x.open.Verdict; v == allowlist.Allow || v == allowlist.Observe {
			x.open.Verdict, x.open.Reason = allowlist.Fail, allowlist.ClientGone // leaving hides no denial
			x.open.SetDetail("writing the answer: " + err.Error())
		}
	}
	x.open.End()
}

// begin opens the record, and its span unless it is thin.
func (x *exchange) begin(ctx context.Context, thin bool) {
	x.open = &x.opened
	x.server.cfg.Recorder.Reopen(ctx, x.open, audit.Start{
		Time: x.start, Listener: x.from.listener, Protocol: audit.ProtocolDNS, Wire: x.from.wire, NoSpan: thin,
	})
}

// thin reports whether the query has no span: one that was allowed and
// answered, if only some of those have one.
func (s *Server) thin(r *ruling) bool {
	every := s.cfg.SpanEvery
	if every <= 1 || r.decision.Verdict != allowlist.Allow || r.reason != allowlist.NoReason {
		return false
	}
	return s.counts.allowed.Add(1)%every != 1
}

// fill notes everything that is known in the record.
func (x *exchange) fill(ctx context.Context) {
	describe(&x.open.Record, x)
	x.open.DNS.Answered = nil
	if !x.response.silent {
		x.open.DNS.Answered = addressesOf(x.answered[:0], x.response.buf[min(x.from.prefix, len(x.response.buf)):], x.query.asked)
	}
	if x.looked > 0 {
		x.open.Dialed(ctx, x.start, x.looked, 0, x.open.Reason)
	}
}

// describe writes into a record what each step has found out.
func describe(rec *audit.Record, x *exchange) {
	why, sent := &x.ruling, &x.response
	rec.Client, rec.Identity, rec.Source = x.caller.Addr, x.caller.ID, x.caller.Source
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
		if why.over { // no limit of queries: the state of the gateway
			rec.Verdict = allowlist.Fail
		}
	}
	rec.Decide, rec.Resolve, rec.Class, rec.Refused = why.took, x.looked, why.class, why.dropped
	rec.DNS = audit.DNS{Type: x.query.typ, Answers: sent.answers, Filtered: sent.filtered, Source: sent.source}
	if !sent.silent {
		rec.DNS.Code = codeText(sent.code)
	}
}

// codeText is the word for records.
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
