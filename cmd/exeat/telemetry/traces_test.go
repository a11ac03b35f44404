package telemetry

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

// gate is an exporter that waits before every export until open is closed, and then
// returns err.
type gate struct {
	entered chan int // size of each batch, sent when its export begins
	open    chan struct{}
	err     error
}

func (g *gate) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if g.entered != nil {
		g.entered <- len(spans)
	}
	if g.open != nil {
		select {
		case <-g.open:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return g.err
}

func (*gate) Shutdown(context.Context) error { return nil }

// newQueue returns a queue of ten spans over an exporter, in batches of four.
func newQueue(t *testing.T, exporter sdktrace.SpanExporter, tell func(string, error)) (*spanQueue, trace.Tracer) {
	t.Helper()
	q := newSpanQueue(exporter, 10, newDelivery(SignalTraces, tell),
		sdktrace.WithMaxQueueSize(10), sdktrace.WithMaxExportBatchSize(4), sdktrace.WithBatchTimeout(0))
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(q))
	t.Cleanup(func() { _ = provider.Shutdown(context.WithoutCancel(t.Context())) })
	return q, provider.Tracer("test")
}

func end(ctx context.Context, tracer trace.Tracer, n int) {
	for range n {
		_, span := tracer.Start(ctx, "CONNECT")
		span.End()
	}
}

func silent(string, error) {}

// TestEverySpanIsCounted fills a queue whose exporter hangs, and then releases it. It
// checks that every span is counted as exported, failed or dropped.
func TestEverySpanIsCounted(t *testing.T) {
	g := &gate{entered: make(chan int, 100), open: make(chan struct{})}
	q, tracer := newQueue(t, g, silent)
	end(t.Context(), tracer, 4)
	<-g.entered // from now on the exporter hangs
	if got, want := q.stats(), (spanStats{Made: 4, Waiting: 4}); got != want {
		t.Errorf("while a batch is on its way: %+v, want %+v", got, want)
	}
	end(t.Context(), tracer, 21)
	if got, want := q.stats(), (spanStats{Made: 25, Waiting: 8, Dropped: 17}); got != want {
		t.Errorf("with a full queue: %+v, want %+v", got, want)
	}
	close(g.open)
	if err := q.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	end(t.Context(), tracer, 2)
	if got, want := q.stats(), (spanStats{Made: 27, Exported: 8, Dropped: 19}); got != want {
		t.Errorf("at the end: %+v, want %+v", got, want)
	}
}

// TestOneCallersSpansLeaveRoomForOthers checks that the spans of one caller leave room
// in the queue for those of others while the exporter hangs.
func TestOneCallersSpansLeaveRoomForOthers(t *testing.T) {
	g := &gate{entered: make(chan int, 100), open: make(chan struct{})}
	q, tracer := newQueue(t, g, silent)
	end(t.Context(), tracer, 100) // without an identity
	for _, identity := range []string{"spiffe://td.example/a", "spiffe://td.example/b"} {
		_, span := tracer.Start(t.Context(), "CONNECT", trace.WithAttributes(attribute.String("egress.identity.spiffe_id", identity)))
		span.End()
	}
	if got, want := q.stats(), (spanStats{Made: 102, Waiting: 10, Dropped: 92}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	want := map[spanCaller]int{{}: 8, {identity: "spiffe://td.example/a"}: 1, {identity: "spiffe://td.example/b"}: 1}
	if diff := cmp.Diff(q.byCaller, want, cmp.AllowUnexported(spanCaller{})); diff != "" {
		t.Errorf("whose spans wait (-got +want):\n%s", diff)
	}
	close(g.open)
	if err := q.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(q.byCaller) != 0 || q.waiting != 0 {
		t.Errorf("the empty queue counts %d of %v", q.waiting, q.byCaller)
	}
}

// TestForgedSpansLeaveRoomForTheIdentity checks that spans of an identity by source-map,
// which may be forged, leave room for spans of the same identity by another proof.
func TestForgedSpansLeaveRoomForTheIdentity(t *testing.T) {
	g := &gate{entered: make(chan int, 100), open: make(chan struct{})}
	q, tracer := newQueue(t, g, silent)
	by := func(source allowlist.Proof) {
		_, span := tracer.Start(t.Context(), "A", trace.WithAttributes(
			attribute.String("egress.identity.spiffe_id", "spiffe://td.example/a"), attribute.String("egress.identity.source", source.String())))
		span.End()
	}
	for range 100 {
		by(allowlist.ProofSourceMap)
	}
	before := q.stats().Dropped
	by(allowlist.ProofX509SVID)
	if got := q.stats().Dropped; before == 0 || got != before {
		t.Errorf("%d are dropped, and %d before the one that is proven", got, before)
	}
	close(g.open)
	if err := q.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestFailedExportIsCountedAndReportedOnce checks that the spans of a failed export are
// counted, that the failure is reported once, and that the SDK writes nothing to
// standard error.
func TestFailedExportIsCountedAndReportedOnce(t *testing.T) {
	var told []error
	q, tracer := newQueue(t, &gate{err: errOther}, func(_ string, err error) { told = append(told, err) })
	for range 3 {
		end(t.Context(), tracer, 3)
		if err := q.ForceFlush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := q.stats(), (spanStats{Made: 9, Failed: 9}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if len(told) != 1 || !errors.Is(told[0], errOther) {
		t.Errorf("told %v, want the error once", told)
	}
}

// TestHangingExporterDoesNotDelayTheEnd checks that the end does not wait for an
// exporter that hangs, and that the remaining spans are counted as dropped.
func TestHangingExporterDoesNotDelayTheEnd(t *testing.T) {
	g := &gate{entered: make(chan int, 100), open: make(chan struct{})}
	q, tracer := newQueue(t, g, silent)
	end(t.Context(), tracer, 6)
	<-g.entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got, want := q.stats(), (spanStats{Made: 6, Dropped: 6}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	close(g.open)
}

// TestCountsOfSpansAddUpUnderLoad reads the counts while many goroutines make spans and
// the process ends, and checks that they add up.
func TestCountsOfSpansAddUpUnderLoad(t *testing.T) {
	const workers, each = 8, 2000
	q, tracer := newQueue(t, &gate{}, silent)
	var making sync.WaitGroup
	for range workers {
		making.Go(func() { end(t.Context(), tracer, each) })
	}
	for range 200 {
		if s := q.stats(); s.Made != s.Exported+s.Dropped+s.Failed+s.Waiting || s.Waiting > workers*each {
			t.Fatalf("%+v does not add up", s)
		}
	}
	making.Go(func() { _ = q.Shutdown(t.Context()) })
	making.Wait()
	if s := q.stats(); s.Made != workers*each || s.Exported+s.Dropped != s.Made {
		t.Errorf("%+v: want %d made, exported or dropped", s, workers*each)
	}
}
