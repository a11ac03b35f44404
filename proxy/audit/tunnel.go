package audit

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

// Tunnel is the record of an allowed tunnel, or of a plain exchange, after its
// decision. It is kept as long as the tunnel, so it holds nothing that has
// ended.
type Tunnel struct {
	record   Record
	recorder *Recorder
	start    time.Time
}

// Tunnel begins the tunnel's record, with what is known now: call it after End,
// or for an exchange whose answer is still to come when its request goes out.
// Exactly one Close must follow.
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
	_, span := t.recorder.cfg.Tracer.Start(ctx, t.spanName(), trace.WithNewRoot(), trace.WithTimestamp(t.start),
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

func (t *Tunnel) spanName() string {
	if t.record.IsTunnel() {
		return "tunnel"
	}
	return "exchange"
}

func (t *Tunnel) put(event Event, up, down int64, reason string, why allowlist.Reason) {
	rec := t.record
	now := time.Now()
	rec.Event, rec.Time, rec.Duration = event, now, now.Sub(t.record.Time)
	rec.Up, rec.Down, rec.CloseReason, rec.Reason = up, down, reason, why
	rec.Resolve, rec.Dial, rec.Decide = 0, 0, 0
	if rec.Status != http.StatusSwitchingProtocols { // which says that it is a tunnel
		rec.Status = 0
	}
	t.recorder.count(&rec)
	t.recorder.put(&rec)
}
