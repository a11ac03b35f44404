package audit

import (
	"context"
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

// slowStep is the duration from which resolving and connecting have spans of their own.
const slowStep = 50 * time.Millisecond

// Dialed records how long resolving and then connecting took, from start on (zero for a
// step that was not tried), and why there is no connection (NoReason if there is one).
// A slow or failed step becomes a span below the decision's. Call it before End, with
// the record's Dest and Address set.
func (o *Pending) Dialed(ctx context.Context, start time.Time, resolve, dial time.Duration, why allowlist.Reason) {
	o.Resolve, o.Dial = resolve, dial
	if o.span == nil || !o.span.IsRecording() {
		return
	}
	var resolveErr, dialErr allowlist.Reason
	switch why { //nolint:exhaustive // other reasons are not failures of these two steps
	case allowlist.ResolveFailed, allowlist.ResolveTimeout:
		resolveErr = why
	case allowlist.DialFailed, allowlist.DialRefused, allowlist.DialTimeout:
		dialErr = why
	}
	ctx = trace.ContextWithSpan(ctx, o.span)
	if resolve > slowStep || resolveErr != allowlist.NoReason {
		o.stepSpan(ctx, "resolve", start, resolve, resolveErr)
	}
	if dial > slowStep || dialErr != allowlist.NoReason {
		o.stepSpan(ctx, "dial", start.Add(resolve), dial, dialErr, peerAttributes(o.Address)...)
	}
}

// stepSpan makes the span of a step that has ended.
func (o *Pending) stepSpan(ctx context.Context, name string, start time.Time, took time.Duration, why allowlist.Reason, attrs ...attribute.KeyValue) {
	_, span := o.recorder.cfg.Tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(start))
	defer span.End(trace.WithTimestamp(start.Add(took)))
	span.SetAttributes(attribute.String("server.address", o.Dest.Host.String()))
	if o.Dest.Port != 0 {
		span.SetAttributes(attribute.Int("server.port", int(o.Dest.Port)))
	}
	span.SetAttributes(attrs...)
	if why != allowlist.NoReason {
		span.SetAttributes(attribute.String("error.type", why.String()))
		span.SetStatus(codes.Error, why.String())
	}
}

func peerAttributes(addr netip.AddrPort) []attribute.KeyValue {
	if !addr.IsValid() {
		return nil
	}
	return []attribute.KeyValue{
		attribute.String("network.peer.address", addr.Addr().String()),
		attribute.Int("network.peer.port", int(addr.Port())),
	}
}

// endSpan ends the span. It sets all attributes at once, from the record and nothing
// else.
func (o *Pending) endSpan() {
	span := o.span
	o.span = nil // an open tunnel does not keep the ended span alive
	if span == nil {
		return
	}
	if !span.IsRecording() {
		span.End()
		return
	}
	r := &o.Record
	attrs := make([]attribute.KeyValue, 0, 32)
	add := func(kv attribute.KeyValue) { attrs = append(attrs, kv) }
	text := func(key, value string) {
		if value != "" {
			add(attribute.String(key, allowlist.Visible(value))) // such as the name of a file
		}
	}
	text("http.request.method", r.MethodText())
	text("url.path", r.Path)
	if r.Status != 0 {
		add(attribute.Int("http.response.status_code", r.Status))
	}
	if !r.Dest.Host.IsZero() {
		add(attribute.String("server.address", r.Dest.Host.String()))
		if r.Dest.Port != 0 {
			add(attribute.Int("server.port", int(r.Dest.Port)))
		}
	}
	if r.Client.IsValid() {
		text("client.address", r.Client.Addr().String()) // the address may have a zone
		add(attribute.Int("client.port", int(r.Client.Port())))
	}
	attrs = append(attrs, peerAttributes(r.Address)...)
	text("egress.protocol", string(r.Protocol))
	text("egress.decision.id", r.ID)
	text("egress.verdict", r.Verdict.String())
	text("egress.reason", r.Reason.String())
	text("egress.would_reason", r.WouldReason.String())
	if r.Policy != "" {
		text("egress.mode", r.Mode.String())
		text("egress.policy.version", r.Policy)
		add(attribute.Int64("egress.policy.generation", int64(r.Generation))) //nolint:gosec // G115: a count of reloads
	}
	text("egress.rule", r.Rule)
	text("egress.rule_at", r.RuleAt)
	text("egress.owner", r.Owner)
	text("egress.ticket", r.Ticket)
	if len(r.Refused) > 0 {
		add(attribute.StringSlice("egress.addresses_refused", AddressTexts(r.Refused)))
	}
	if !r.Identity.IsZero() {
		add(attribute.String("egress.identity.spiffe_id", r.IdentityText()))
		add(attribute.String("egress.identity.trust_domain", r.Identity.TrustDomain().Name()))
	}
	text("egress.identity.source", r.Proof.String())
	text("egress.attributed", r.AttributedText())
	if r.Unproven() {
		add(attribute.Bool("egress.unproven", true))
	}
	if r.Protocol == ProtocolDNS {
		text("egress.dns.qtype", r.DNS.TypeText())
		text("egress.dns.rcode", r.DNS.Code)
		text("egress.dns.source", r.DNS.Origin)
		if r.DNS.Code != "" {
			add(attribute.Int("egress.dns.answers", r.DNS.Answers))
			if len(r.DNS.Answered) > 0 {
				add(attribute.StringSlice("egress.dns.answered", AddressTexts(r.DNS.Answered)))
			}
		}
	}
	if ms := milliseconds(r.Resolve); ms > 0 {
		add(attribute.Float64("egress.resolve_ms", ms))
	}
	if ms := milliseconds(r.Dial); ms > 0 {
		add(attribute.Float64("egress.dial_ms", ms))
	}
	if r.Verdict == allowlist.Fail { // a denial is an answer, not an error
		text("error.type", r.Reason.String())
		span.SetStatus(codes.Error, r.Reason.String())
	}
	span.SetAttributes(attrs...)
	span.End()
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
