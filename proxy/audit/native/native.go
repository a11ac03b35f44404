// Package native renders audit records in the gateway's own form, one line of
// JSON each, and reads such lines back. docs/records.md describes its fields.
//
// [Render] is an audit.Render with stable names in one order. It leaves out
//   - zero values, except where zero is a value;
//   - verdict and mode if the record is not about a decision, the bytes if it is not
//     about the progress or the end of a tunnel, and the fields of DNS if the protocol
//     is another one;
//   - the answers of a query that was not answered;
//   - a client or an address that is not valid, and the caller's identity in a summary
//     of many callers, for which it writes audit.Other;
//   - fractions of a microsecond, except in the time to decide;
//   - the flags and the state of the trace, and Supersedes.
//
// It writes times in UTC, the default mode for a mode that is not set, a long text
// shortened as [audit.Record] does, and U+FFFD for a byte that is not UTF-8.
//
// [Parse] accepts exactly the lines that Render writes, byte for byte, for defined
// values: Render(Parse(line)) is line, and Parse(Render(r)) is r except for the above.
package native

import (
	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// Render appends the line of a record to dst, without a newline at its end. It
// never returns an error, and allocates nothing for a record whose text is
// printable ASCII. It is safe for concurrent use.
func Render(dst []byte, r *audit.Record) ([]byte, error) {
	l := line{buf: append(dst, '{')}
	l.number("schema", audit.Schema)
	l.time("time", r.Time)
	l.mustText("event", string(r.Event))
	l.text("id", r.ID)
	l.text("instance", r.Instance)
	writeCaller(&l, r)
	writeRequest(&l, r)
	writeDecision(&l, r)
	l.text("stage", r.Stage.String())
	l.text("sni", r.Hello.SNIText())
	l.text("tls", r.Hello.TLS.String())
	l.flag("ech", r.Hello.ECH)
	if r.Class != allowlist.Invalid {
		l.text("address_class", r.Class.String())
	}
	l.number("addresses_dropped", int64(r.Dropped))
	l.addresses("addresses_refused", r.Refused)
	writeQuery(&l, r)
	l.milliseconds("resolve_ms", r.Resolve)
	l.milliseconds("dial_ms", r.Dial)
	l.thousandths("decide_us", r.Decide.Nanoseconds())
	if r.Event == audit.EventTunnelProgress || r.Event == audit.EventTunnelClose {
		l.mustNumber("up", r.Up)
		l.mustNumber("down", r.Down)
	}
	l.milliseconds("duration_ms", r.Duration)
	l.text("close_reason", r.CloseReasonText())
	l.text("detail", r.DetailText())
	writeMerged(&l, r.Merged)
	writeTraces(&l, r)
	return append(l.buf, '}'), nil
}

// writeCaller writes where the request came in and who made it.
func writeCaller(l *line, r *audit.Record) {
	l.text("listener", r.Listener)
	l.text("protocol", string(r.Protocol))
	l.text("wire", string(r.Wire))
	if r.Merged != nil && r.Merged.Other {
		l.text("identity", audit.Other)
	} else {
		l.text("identity", r.IdentityText())
	}
	l.text("identity_source", r.Proof.String())
	if r.Client.Port() == 0 { // the record stands for all connections from the address
		l.address("client", r.Client.Addr())
	} else {
		l.addrPort("client", r.Client)
	}
	l.flag("unproven", r.Unproven())
	l.text("attributed", r.AttributedText())
}

// writeRequest writes what was asked for.
func writeRequest(l *line, r *audit.Record) {
	if host := r.Dest.Host; host.IsAddr() {
		l.address("host", host.Addr())
	} else {
		l.text("host", host.String())
	}
	l.number("port", int64(r.Dest.Port))
	l.text("method", r.MethodText())
	l.text("path", r.Path)
	l.addrPort("address", r.Address)
}

// writeDecision writes the decision and its reason.
func writeDecision(l *line, r *audit.Record) {
	decision := r.Event == audit.EventDecision || r.Event == audit.EventCollapsed
	if decision {
		l.text("verdict", r.Verdict.String())
	}
	l.text("reason", r.Reason.String())
	l.text("would_reason", r.WouldReason.String())
	l.number("status", int64(r.Status))
	l.text("rule", r.Rule)
	l.text("rule_at", r.RuleAt)
	l.text("owner", r.Owner)
	l.text("ticket", r.Ticket)
	l.text("policy", r.Policy)
	l.text("quarantine", r.Quarantine)
	l.count("generation", r.Generation)
	if decision && r.Policy != "" {
		l.text("mode", r.Mode.String())
	}
}

// writeQuery writes the fields of DNS queries.
func writeQuery(l *line, r *audit.Record) {
	if r.Protocol != audit.ProtocolDNS {
		return
	}
	l.text("qtype", r.DNS.TypeText())
	l.text("rcode", r.DNS.Code)
	if r.DNS.Code != "" {
		l.mustNumber("answers", int64(r.DNS.Answers))
		l.addresses("answered", r.DNS.Answered)
	}
	l.number("filtered", int64(r.DNS.Filtered))
	l.text("source", r.DNS.Origin)
}

// writeMerged writes the counts of the records that this one stands for.
func writeMerged(l *line, m *audit.Merged) {
	if m == nil {
		return
	}
	l.count("count", m.Count)
	l.time("first", m.First)
	l.time("last", m.Last)
	if len(m.Counts) == 0 {
		return
	}
	l.key("counts")
	l.buf = append(l.buf, '[')
	for i, c := range m.Counts {
		if i > 0 {
			l.buf = append(l.buf, ',')
		}
		l.buf = append(l.buf, '{')
		l.mustText("verdict", c.Verdict.String())
		l.text("reason", c.Reason.String())
		l.mustCount("count", c.Count)
		l.buf = append(l.buf, '}')
	}
	l.buf = append(l.buf, ']')
}

// writeTraces writes the ids of the traces.
func writeTraces(l *line, r *audit.Record) {
	if r.Trace.HasTraceID() {
		trace, span := r.Trace.TraceID(), r.Trace.SpanID()
		l.hex("trace_id", trace[:])
		l.hex("span_id", span[:])
	}
	if id := r.CallerTrace; id.IsValid() {
		l.hex("caller_trace_id", id[:])
	}
}
