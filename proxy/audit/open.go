package audit

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

// Open is a decision on its way: its record may be filled in until End. It
// belongs to one goroutine.
type Open struct {
	Record

	recorder *Recorder
	span     trace.Span
	ended    bool
}

// TraceID returns the trace of the decision's span, as the caller sees it; ""
// if the tracer makes none.
func (o *Open) TraceID() string {
	if !o.Trace.HasTraceID() {
		return ""
	}
	return o.Trace.TraceID().String()
}

// Ended reports whether the record has been written.
func (o *Open) Ended() bool { return o.ended }

// End writes the record and ends the span; a second call does nothing.
func (o *Open) End() {
	if o.ended {
		return
	}
	o.ended = true
	o.endSpan()
	o.span = nil // an ended span is not kept alive by an open tunnel
	rec := o.Record
	o.recorder.put(&rec)
}

// endSpan sets all attributes at once, from the record and nothing else.
func (o *Open) endSpan() {
	if !o.span.IsRecording() {
		o.span.End()
		return
	}
	r := &o.Record
	attrs := make([]attribute.KeyValue, 0, 24)
	add := func(kv attribute.KeyValue) { attrs = append(attrs, kv) }
	text := func(key, value string) {
		if value != "" {
			add(attribute.String(key, value))
		}
	}
	text("http.request.method", bounded(r.Method, maxMethod))
	if r.Status != 0 {
		add(attribute.Int("http.response.status_code", r.Status))
	}
	if !r.Dest.Host.IsZero() {
		add(attribute.String("server.address", r.Dest.Host.String()))
		add(attribute.Int("server.port", int(r.Dest.Port)))
	}
	if r.Client.IsValid() {
		add(attribute.String("client.address", r.Client.Addr().String()))
		add(attribute.Int("client.port", int(r.Client.Port())))
	}
	if r.Address.IsValid() {
		add(attribute.String("network.peer.address", r.Address.Addr().String()))
		add(attribute.Int("network.peer.port", int(r.Address.Port())))
	}
	text("egress.protocol", r.Protocol)
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
	if !r.Identity.IsZero() {
		add(attribute.String("egress.identity.spiffe_id", bounded(r.Identity.String(), maxIdentity)))
		add(attribute.String("egress.identity.trust_domain", r.Identity.TrustDomain().Name()))
	}
	text("egress.identity.source", r.Source.String())
	if ms := milliseconds(r.Resolve); ms > 0 {
		add(attribute.Float64("egress.resolve_ms", ms))
	}
	if ms := milliseconds(r.Dial); ms > 0 {
		add(attribute.Float64("egress.dial_ms", ms))
	}
	if r.Verdict == allowlist.Fail { // a denial is an answer, not an error
		text("error.type", r.Reason.String())
		o.span.SetStatus(codes.Error, r.Reason.String())
	}
	o.span.SetAttributes(attrs...)
	o.span.End()
}

// Tunnel is the record of an allowed tunnel after its decision. It is kept as
// long as the tunnel, so it holds nothing that has ended.
type Tunnel struct {
	record   Record
	recorder *Recorder
	start    time.Time
}

// Tunnel begins the tunnel's record. Call it after End; exactly one Close must
// follow.
func (o *Open) Tunnel() *Tunnel {
	return &Tunnel{record: o.Record, recorder: o.recorder, start: time.Now()}
}

// Progress records the bytes so far.
func (t *Tunnel) Progress(up, down int64) {
	t.put(EventTunnelProgress, up, down, "", allowlist.NoReason)
}

// Close records the end: bytes from (up) and to (down) the caller, what ended
// it, and if a later state forbids the tunnel, by which reason. The rule in the
// record is the one that had allowed it.
func (t *Tunnel) Close(ctx context.Context, up, down int64, reason string, why allowlist.Reason) {
	t.put(EventTunnelClose, up, down, reason, why)
	// The span is made only now: a thousand open ones would hold megabytes.
	_, span := t.recorder.cfg.Tracer.Start(ctx, "tunnel", trace.WithNewRoot(), trace.WithTimestamp(t.start),
		trace.WithLinks(trace.Link{SpanContext: t.record.Trace}))
	defer span.End()
	span.SetAttributes(
		attribute.String("egress.decision.id", t.record.ID),
		attribute.String("server.address", t.record.Dest.Host.String()),
		attribute.Int("server.port", int(t.record.Dest.Port)),
		attribute.String("egress.identity.spiffe_id", bounded(t.record.Identity.String(), maxIdentity)),
		attribute.Int64("egress.tunnel.bytes_up", up),
		attribute.Int64("egress.tunnel.bytes_down", down),
		attribute.String("egress.tunnel.close_reason", reason),
	)
}

func (t *Tunnel) put(event Event, up, down int64, reason string, why allowlist.Reason) {
	rec := t.record
	now := time.Now()
	rec.Event, rec.Time, rec.Duration = event, now, now.Sub(t.record.Time)
	rec.Up, rec.Down, rec.CloseReason, rec.Reason = up, down, reason, why
	rec.Resolve, rec.Dial, rec.Decide, rec.Status = 0, 0, 0, 0
	t.recorder.put(&rec)
}
