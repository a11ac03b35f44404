package telemetry

import (
	"context"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestMeasureDoesNotAllocate checks that Measure allocates nothing after the label
// values were seen once.
func TestMeasureDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	i := newTelemetry(t, Config{IdentityCap: 10}).Instruments()
	denied := &audit.Record{
		Event: audit.EventDecision, Protocol: "connect", Identity: builder1, Policy: "p1",
		Mode: allowlist.ModeEnforce, Reason: allowlist.NotOnAllowlist, Decide: 300,
	}
	closed := &audit.Record{Event: audit.EventTunnelClose, ID: "1", Up: 5, Down: 7, Duration: time.Second}
	for name, count := range map[string]func(){
		"an allow":     func() { i.Measure(sampleAllow) },
		"a denial":     func() { i.Measure(denied) },
		"a tunnel":     func() { i.Measure(closed) },
		"a handshake":  func() { i.Handshake(allowlist.NoReason) },
		"a reload":     func() { i.Reload("in-force") },
		"a revocation": func() { i.Enforced(time.Millisecond) },
	} {
		if n := testing.AllocsPerRun(100, count); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

var sampleAllow = allowed()

func BenchmarkMeasure(b *testing.B) {
	for name, limit := range map[string]int{"decision": 0, "decision and identity": 100} {
		b.Run(name, func(b *testing.B) {
			tel, err := New(b.Context(), Config{Getenv: nothing, IdentityCap: limit})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				tel.Instruments().Measure(sampleAllow)
			}
		})
	}
	b.Run("tunnel", func(b *testing.B) {
		tel, err := New(b.Context(), Config{Getenv: nothing})
		if err != nil {
			b.Fatal(err)
		}
		closed := &audit.Record{Event: audit.EventTunnelClose, ID: "1", Up: 5, Down: 7, Duration: time.Second}
		b.ReportAllocs()
		for b.Loop() {
			tel.Instruments().Measure(closed)
		}
	})
}

// swallow is an exporter that accepts everything.
type swallow struct{}

func (swallow) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (swallow) Shutdown(context.Context) error                             { return nil }

// drop is a sink that accepts everything.
type drop struct{}

func (drop) Write(context.Context, []*audit.Record) error { return nil }

// BenchmarkDecision measures the record and the span of one allowed decision, without
// an exporter, and with the queue of one.
func BenchmarkDecision(b *testing.B) {
	size, batch := sdktrace.WithMaxQueueSize(queueSize), sdktrace.WithMaxExportBatchSize(batchSize)
	always := sdktrace.WithSampler(sdktrace.AlwaysSample())
	for name, option := range map[string]sdktrace.TracerProviderOption{
		"without exporter":         sdktrace.WithSampler(sdktrace.NeverSample()),
		"with exporter":            sdktrace.WithSpanProcessor(newSpanQueue(swallow{}, queueSize, newDelivery("x", silent), size, batch)),
		"sampled, no exporter":     always,
		"sampled, SDK's own queue": sdktrace.WithBatcher(swallow{}, size, batch),
	} {
		provider := sdktrace.NewTracerProvider(always, option)
		b.Cleanup(func() { _ = provider.Shutdown(context.WithoutCancel(b.Context())) })
		b.Run(name, func(b *testing.B) {
			recorder, err := audit.New(b.Context(), audit.Config{
				Sinks: []audit.SinkConfig{{Name: "none", Sink: drop{}}}, Tracer: provider.Tracer("bench"),
			})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = recorder.Close(context.WithoutCancel(b.Context())) }()
			b.ReportAllocs()
			for b.Loop() {
				open := recorder.Begin(b.Context(), audit.Start{Protocol: "connect"})
				id, sc := open.ID, open.Trace
				open.Record = *sampleAllow
				open.ID, open.Trace = id, sc
				open.End()
			}
		})
	}
}

// BenchmarkLog measures the conversion of one record to a log record, without sending
// it.
func BenchmarkLog(b *testing.B) {
	s := newLogSink(nil, "v0", &takeAll{})
	records := []*audit.Record{sampleAllow}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Write(b.Context(), records); err != nil {
			b.Fatal(err)
		}
	}
}
