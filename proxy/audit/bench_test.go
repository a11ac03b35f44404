package audit

import (
	"context"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

// discard is an exporter that drops spans.
type discard struct{}

func (discard) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (discard) Shutdown(context.Context) error                             { return nil }

// nowhere is a sink that drops records without a delay.
type nowhere struct{}

func (nowhere) Write(context.Context, []*Record) error { return nil }

// dead is a sink whose Write does not return before the test ends.
type dead chan struct{}

func (d dead) Write(context.Context, []*Record) error {
	<-d
	return nil
}

// typical sets the fields of the record of an allowed tunnel.
func typical(tb testing.TB) func(*Record) {
	tb.Helper()
	dest, err := allowlist.ParseDestination("api.example:443")
	if err != nil {
		tb.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder")
	client, address := addrPort("10.1.2.3:40000"), addrPort("203.0.113.7:443")
	return func(r *Record) {
		r.Identity, r.Proof, r.Client, r.Dest, r.Method = id, allowlist.ProofX509SVID, client, dest, "CONNECT"
		r.Verdict, r.Mode, r.Policy, r.Generation = allowlist.Allow, allowlist.ModeEnforce, "0123456789ab", 1
		r.Rule, r.RuleAt, r.Address, r.Status = "0123456789", "policy.yaml:12", address, 200
		r.Resolve, r.Dial, r.Decide = time.Millisecond, time.Millisecond, time.Microsecond
	}
}

func deny(r *Record) {
	r.Verdict, r.Reason, r.Status = allowlist.Deny, allowlist.NotOnAllowlist, 403
}

// BenchmarkDecision measures the cost of a decision for its caller.
func BenchmarkDecision(b *testing.B) {
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithBatcher(discard{}))
	b.Cleanup(func() { _ = provider.Shutdown(context.WithoutCancel(b.Context())) })
	fill := typical(b)
	allow := func(*Record) {}
	stuck := make(dead)
	rows := []struct {
		name string
		cfg  Config
		what func(*Record)
	}{
		{"record", Config{Sinks: []SinkConfig{{Name: "a", Sink: nowhere{}}}}, allow},
		{"record-of-a-denial", Config{Sinks: []SinkConfig{{Name: "a", Sink: nowhere{}}}}, deny},
		{"record-to-three-sinks", Config{Sinks: []SinkConfig{
			{Name: "a", Sink: nowhere{}}, {Name: "b", Sink: nowhere{}}, {Name: "c", Sink: nowhere{}},
		}}, allow},
		{"record-collapsed", Config{Collapse: time.Minute, Sinks: []SinkConfig{{Name: "a", Sink: nowhere{}}}}, deny},
		{"dead-sink-allow", Config{Sinks: []SinkConfig{{Name: "a", Sink: stuck}}}, allow},
		{"dead-sink-denial", Config{Sinks: []SinkConfig{{Name: "a", Sink: stuck}}}, deny},
		{"record-and-span", Config{Tracer: provider.Tracer(""), Sinks: []SinkConfig{{Name: "a", Sink: nowhere{}}}}, allow},
	}
	for _, row := range rows {
		b.Run(row.name, func(b *testing.B) {
			if row.cfg.Tracer == nil {
				row.cfg.Tracer = noTracer()
			}
			r, err := New(b.Context(), row.cfg)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				o := r.Begin(b.Context(), Start{Listener: "main", Protocol: "connect", Wire: "h1"})
				fill(&o.Record)
				row.what(&o.Record)
				o.End()
			}
			b.StopTimer()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(b.Context()), time.Millisecond)
			defer cancel()
			_ = r.Close(ctx) // cannot succeed with the dead sink
		})
	}
	close(stuck)
}

// BenchmarkEnd measures End alone, without a span, also with a sink that hangs: this is
// the most that a slow sink may cost a decision.
func BenchmarkEnd(b *testing.B) {
	stuck := make(dead)
	for _, row := range []struct {
		name    string
		sink    Sink
		verdict allowlist.Verdict
	}{
		{"allow", nowhere{}, allowlist.Allow},
		{"allow-dead-sink", stuck, allowlist.Allow},
		{"denial", nowhere{}, allowlist.Deny},
		{"denial-dead-sink", stuck, allowlist.Deny},
	} {
		b.Run(row.name, func(b *testing.B) {
			r, err := New(b.Context(), Config{Tracer: noTracer(), Sinks: to(row.sink)})
			if err != nil {
				b.Fatal(err)
			}
			o := r.Begin(b.Context(), Start{})
			typical(b)(&o.Record)
			o.Verdict = row.verdict
			span := o.span
			b.ReportAllocs()
			for b.Loop() {
				o.End()
				o.ended, o.span = false, span
			}
			b.StopTimer()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(b.Context()), time.Millisecond)
			defer cancel()
			_ = r.Close(ctx)
		})
	}
	close(stuck)
}

func BenchmarkNewID(b *testing.B) {
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		_ = newID(now)
	}
}
