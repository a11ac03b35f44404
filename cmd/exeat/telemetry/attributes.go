package telemetry

import (
	"net/netip"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// attributes are the attributes of a log record.
type attributes []attribute.KeyValue

// appendAttributes appends the fields of a record. Those that the span has too have the
// same names; the names of the others are egress. followed by the name in the record.
// Zero values are left out.
func appendAttributes(dst []attribute.KeyValue, r *audit.Record) []attribute.KeyValue {
	a := attributes(dst)
	a.number("egress.schema", audit.Schema)
	a.text("egress.event", string(r.Event))
	a.text("egress.decision.id", r.ID)
	a.request(r)
	a.decision(r)
	a.hello(r)
	a.tunnel(r)
	a.merged(r.Merged)
	a.text("egress.detail", r.DetailText())
	if r.CallerTrace.IsValid() {
		a.text("egress.caller_trace_id", r.CallerTrace.String())
	}
	return a
}

// request adds the caller, the listener and what was asked for.
func (a *attributes) request(r *audit.Record) {
	a.text("egress.listener", r.Listener)
	a.text("egress.protocol", string(r.Protocol))
	a.text("egress.wire", string(r.Wire))
	if !r.Identity.IsZero() {
		a.text("egress.identity.spiffe_id", r.IdentityText())
		a.text("egress.identity.trust_domain", r.Identity.TrustDomain().Name())
	}
	a.text("egress.identity.source", r.Proof.String())
	a.flag("egress.unproven", r.Unproven())
	a.text("egress.attributed", r.AttributedText())
	if r.Client.IsValid() {
		a.text("client.address", r.Client.Addr().String())
		a.number("client.port", int64(r.Client.Port()))
	}
	if !r.Dest.Host.IsZero() {
		a.text("server.address", r.Dest.Host.String())
		a.count("server.port", int64(r.Dest.Port))
	}
	if r.Protocol == audit.ProtocolDNS {
		a.text("egress.dns.qtype", r.DNS.TypeText())
		a.text("egress.dns.rcode", r.DNS.Code)
		a.text("egress.dns.source", r.DNS.Origin)
		a.count("egress.dns.filtered", int64(r.DNS.Filtered))
		if r.DNS.Code != "" {
			a.number("egress.dns.answers", int64(r.DNS.Answers))
			a.addresses("egress.dns.answered", r.DNS.Answered)
		}
	}
	a.text("http.request.method", r.MethodText())
	a.text("url.path", r.Path)
	if r.Address.IsValid() {
		a.text("network.peer.address", r.Address.Addr().String())
		a.number("network.peer.port", int64(r.Address.Port()))
	}
}

// decision adds the decision and its reason. Only decisions have a verdict: in other
// records its zero value would look like a denial.
func (a *attributes) decision(r *audit.Record) {
	if r.Event == audit.EventDecision || r.Event == audit.EventCollapsed {
		a.text("egress.verdict", r.Verdict.String())
		if r.Policy != "" {
			a.text("egress.mode", r.Mode.String())
		}
		if r.Verdict == allowlist.Fail {
			a.text("error.type", r.Reason.String())
		}
	}
	a.text("egress.reason", r.Reason.String())
	a.text("egress.would_reason", r.WouldReason.String())
	a.count("http.response.status_code", int64(r.Status))
	a.text("egress.rule", r.Rule)
	a.text("egress.rule_at", r.RuleAt)
	a.text("egress.owner", r.Owner)
	a.text("egress.ticket", r.Ticket)
	if r.Policy != "" {
		a.text("egress.policy.version", r.Policy)
		a.number("egress.policy.generation", int64(r.Generation)) //nolint:gosec // G115: a count of reloads
	}
	a.text("egress.quarantine.version", r.Quarantine)
	if r.Class != allowlist.Invalid {
		a.text("egress.address_class", r.Class.String())
	}
	a.count("egress.addresses_dropped", int64(r.Dropped))
	a.addresses("egress.addresses_refused", r.Refused)
	a.fraction("egress.resolve_ms", milliseconds(r.Resolve))
	a.fraction("egress.dial_ms", milliseconds(r.Dial))
	a.fraction("egress.decide_us", float64(r.Decide.Nanoseconds())/1e3)
}

// hello adds the description of the first bytes of a tunnel.
func (a *attributes) hello(r *audit.Record) {
	a.text("egress.stage", r.Stage.String())
	a.text("egress.tls.sni", r.Hello.SNIText())
	a.text("egress.tls.sni_match", r.Hello.TLS.String())
	a.flag("egress.tls.ech", r.Hello.ECH)
}

// tunnel adds the numbers of bytes. Those of a tunnel are added even if they are zero.
func (a *attributes) tunnel(r *audit.Record) {
	if r.Event == audit.EventTunnelProgress || r.Event == audit.EventTunnelClose {
		a.number("egress.tunnel.bytes_up", r.Up)
		a.number("egress.tunnel.bytes_down", r.Down)
	}
	a.text("egress.tunnel.close_reason", r.CloseReasonText())
	a.fraction("egress.duration_ms", milliseconds(r.Duration))
}

// merged adds the counts of the records that this one stands for.
func (a *attributes) merged(m *audit.Merged) {
	if m == nil {
		return
	}
	a.number("egress.count", int64(m.Count)) //nolint:gosec // G115: a count
	a.text("egress.first", m.First.UTC().Format(time.RFC3339Nano))
	a.text("egress.last", m.Last.UTC().Format(time.RFC3339Nano))
	if m.Other { // there are many identities, and none is named
		a.text("egress.identity.spiffe_id", otherLabel)
	}
	if len(m.Counts) == 0 {
		return
	}
	counts := make([]string, 0, len(m.Counts))
	for _, c := range m.Counts {
		counts = append(counts, c.Verdict.String()+" "+c.Reason.String()+" "+strconv.FormatUint(c.Count, 10))
	}
	*a = append(*a, attribute.StringSlice("egress.counts", counts))
}

// text adds a text unless it is empty, with the characters that a terminal obeys
// escaped. It is valid UTF-8, because the exporter loses the whole batch of a text that
// is not.
func (a *attributes) text(key, value string) {
	if value != "" {
		*a = append(*a, attribute.String(key, allowlist.Visible(value)))
	}
}

// addresses adds a list unless it is empty.
func (a *attributes) addresses(key string, all []netip.Addr) {
	if len(all) > 0 {
		*a = append(*a, attribute.StringSlice(key, audit.AddressTexts(all)))
	}
}

func (a *attributes) number(key string, n int64) { *a = append(*a, attribute.Int64(key, n)) }

// flag adds true, or nothing if the flag is not set.
func (a *attributes) flag(key string, set bool) {
	if set {
		*a = append(*a, attribute.Bool(key, true))
	}
}

// count adds a number unless it is zero.
func (a *attributes) count(key string, n int64) {
	if n != 0 {
		a.number(key, n)
	}
}

// fraction adds a number if it is above zero.
func (a *attributes) fraction(key string, f float64) {
	if f > 0 {
		*a = append(*a, attribute.Float64(key, f))
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
