package audit

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Tunnel records what happens to an allowed tunnel, or a plain exchange, after its
// decision. It lives as long as the tunnel, so it refers to nothing that has ended.
type Tunnel struct {
	record   Record // with the time of the decision
	recorder *Recorder
	start    time.Duration          // since the decision
	hello    atomic.Pointer[Hello]  // nil if the first bytes were not inspected
	detail   atomic.Pointer[string] // why the tunnel was refused or failed; nil means the decision's detail
	// wouldReason is the reason that would have refused the first bytes, an
	// allowlist.Reason, if only observe mode let them through.
	wouldReason atomic.Uint32
}

// Tunnel makes the tunnel's record from what is known now. Call it after End; for an
// exchange whose answer is still to come call it when its request is sent. Exactly one
// Close must follow.
func (o *Pending) Tunnel() *Tunnel {
	t := new(Tunnel)
	o.InitTunnel(t)
	return t
}

// InitTunnel does what Tunnel does, for a zero Tunnel that is a part of another value.
func (o *Pending) InitTunnel(t *Tunnel) {
	t.record, t.recorder, t.start = o.Record, o.recorder, time.Since(o.Time)
}

// Progress records the number of bytes so far.
func (t *Tunnel) Progress(up, down int64) {
	t.put(EventTunnelProgress, up, down, tunnel.None, allowlist.NoReason)
}

// SetHello sets the description of the first bytes in the following records. It may be
// called while Progress runs. It copies only the part of the name that is written.
func (t *Tunnel) SetHello(h Hello) {
	h.SNI = strings.Clone(bounded(h.SNI, maxSNI))
	t.hello.Store(&h)
}

// SetDetail sets why the first bytes are refused, or what has failed, as the detail of the
// following records. It may be called while Progress runs.
func (t *Tunnel) SetDetail(detail string) {
	detail = strings.Clone(bounded(detail, maxDetail))
	t.detail.Store(&detail)
}

// Refuse records that the first bytes were refused: a second decision with the id of
// the first one, and a span of its own. Close must still follow.
func (t *Tunnel) Refuse(ctx context.Context, why allowlist.Reason) {
	rec := t.firstBytesRecord()
	t.refuse(ctx, &rec, why)
}

// RefuseByState does what Refuse does, for a state other than the one that allowed the
// tunnel. The record has the decision of that state about the destination and its
// generation.
func (t *Tunnel) RefuseByState(ctx context.Context, why allowlist.Reason, d allowlist.Decision, generation uint64) {
	rec := t.firstBytesRecord()
	rec.SetDecision(d)
	rec.Generation = generation
	t.refuse(ctx, &rec, why)
}

func (t *Tunnel) refuse(ctx context.Context, rec *Record, why allowlist.Reason) {
	rec.Verdict, rec.Reason, rec.WouldReason = allowlist.Deny, why, allowlist.NoReason
	t.recordDecision(ctx, rec)
}

// Observe records that only observe mode lets through the name in the first bytes: a
// second decision with the id of the first one, and a span of its own. The following
// records say so as well, because no rule allows what the tunnel is used for.
func (t *Tunnel) Observe(ctx context.Context, d allowlist.Decision, generation uint64) {
	t.wouldReason.Store(uint32(d.WouldReason))
	rec := t.firstBytesRecord()
	rec.SetDecision(d)
	rec.Generation = generation
	t.recordDecision(ctx, &rec)
}

// firstBytesRecord returns the record of a decision about the first bytes, without its
// verdict.
func (t *Tunnel) firstBytesRecord() Record {
	rec := t.record
	rec.Time, rec.Stage = time.Now(), StageTLS
	rec.Resolve, rec.Dial, rec.Decide, rec.Status = 0, 0, 0, 0
	rec.Hello = t.loadHello()
	t.applyDetail(&rec)
	return rec
}

// applyDetail sets the record's detail to the one that SetDetail has stored, if any.
func (t *Tunnel) applyDetail(rec *Record) {
	if detail := t.detail.Load(); detail != nil {
		rec.Detail = *detail
	}
}

// recordDecision records a decision about the first bytes.
func (t *Tunnel) recordDecision(ctx context.Context, rec *Record) {
	t.recorder.count(rec)
	t.recorder.put(rec)
	_, span := t.recorder.cfg.Tracer.Start(ctx, "tls", trace.WithNewRoot(), trace.WithTimestamp(rec.Time),
		trace.WithLinks(trace.Link{SpanContext: t.record.Trace}))
	defer span.End()
	t.describe(span)
	span.SetAttributes(
		attribute.String("egress.verdict", rec.Verdict.String()),
		attribute.String("egress.rule", allowlist.Visible(rec.Rule)),
	)
	if rec.Verdict == allowlist.Observe {
		span.SetAttributes(attribute.String("egress.would_reason", rec.WouldReason.String()))
	} else {
		span.SetAttributes(attribute.String("egress.reason", rec.Reason.String()))
	}
}

func (t *Tunnel) loadHello() Hello {
	if h := t.hello.Load(); h != nil {
		return *h
	}
	return Hello{}
}

// describe sets the attributes that name the tunnel and describe its first bytes.
func (t *Tunnel) describe(span trace.Span) {
	span.SetAttributes(
		attribute.String("egress.decision.id", t.record.ID),
		attribute.String("server.address", t.record.Dest.Host.String()),
		attribute.Int("server.port", int(t.record.Dest.Port)),
		attribute.String("egress.identity.spiffe_id", t.record.IdentityText()),
	)
	h := t.loadHello()
	if h.TLS == TLSUnknown {
		return
	}
	span.SetAttributes(attribute.String("egress.tls.sni_match", h.TLS.String()), attribute.Bool("egress.tls.ech", h.ECH))
	if h.SNI != "" {
		span.SetAttributes(attribute.String("egress.tls.sni", allowlist.Visible(h.SNIText())))
	}
}

// Close records the end: up and down are the bytes from and to the caller, reason is what
// ended the tunnel, and why is the policy's reason if the tunnel was no longer allowed. The
// rule in the record is the one that had allowed the tunnel.
func (t *Tunnel) Close(ctx context.Context, up, down int64, reason tunnel.Reason, why allowlist.Reason) {
	t.put(EventTunnelClose, up, down, reason, why)
	// The span is made only now, because a thousand open spans would hold megabytes.
	_, span := t.recorder.cfg.Tracer.Start(ctx, t.spanName(), trace.WithNewRoot(), trace.WithTimestamp(t.record.Time.Add(t.start)),
		trace.WithLinks(trace.Link{SpanContext: t.record.Trace}))
	defer span.End()
	t.describe(span)
	span.SetAttributes(
		attribute.Int64("egress.tunnel.bytes_up", up),
		attribute.Int64("egress.tunnel.bytes_down", down),
		attribute.String("egress.tunnel.close_reason", reason.String()),
	)
}

func (t *Tunnel) spanName() string {
	if t.record.IsTunnel() {
		return "tunnel"
	}
	return "exchange"
}

func (t *Tunnel) put(event Event, up, down int64, reason tunnel.Reason, why allowlist.Reason) {
	rec := t.record
	now := time.Now()
	rec.Event, rec.Time, rec.Duration = event, now, now.Sub(t.record.Time)
	rec.Up, rec.Down, rec.CloseReason, rec.Reason, rec.Hello = up, down, reason, why, t.loadHello()
	rec.Resolve, rec.Dial, rec.Decide = 0, 0, 0
	t.applyDetail(&rec)
	if would := allowlist.Reason(t.wouldReason.Load()); would != allowlist.NoReason { //nolint:gosec // G115: stored from a Reason
		rec.Verdict, rec.WouldReason = allowlist.Observe, would
	}
	if rec.Status != http.StatusSwitchingProtocols { // which marks an upgrade as a tunnel
		rec.Status = 0
	}
	t.recorder.count(&rec)
	t.recorder.put(&rec)
}
