package telemetry

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

// The bounds of spans that wait for the exporter or are being sent, and of one batch,
// unless OTEL_BSP_MAX_QUEUE_SIZE and OTEL_BSP_MAX_EXPORT_BATCH_SIZE say otherwise. The
// SDK's own defaults, 2048 and 512, are worth a second.
const (
	queueSize = 16384
	batchSize = 2048
)

// spanStats counts spans. Made is the sum of the others.
type spanStats struct {
	Made     uint64 // ended while there was an exporter
	Exported uint64 // accepted by the collector
	Dropped  uint64 // the queue was full, or the process ended before they were sent
	Failed   uint64 // the export failed, or the collector has rejected them
	Waiting  uint64 // in the queue, or being sent
}

// traces is the tracer provider with its queue.
type traces struct {
	provider *sdktrace.TracerProvider
	queue    *spanQueue // counts nothing without an exporter
}

// newTraces samples every span, independent of a caller's context and
// OTEL_TRACES_SAMPLER. Without an exporter spans have no attributes, because nobody
// would see them; they still have the ids that records contain.
func newTraces(ctx context.Context, cfg Config, res *resource.Resource) (*traces, error) {
	t := &traces{queue: &spanQueue{}}
	if !wanted(cfg.Getenv, "TRACES") {
		t.provider = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()), sdktrace.WithResource(res))
		return t, nil
	}
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("setting up the trace exporter that the OTEL_* variables ask for: %w", err)
	}
	limit := size(cfg.Getenv, "OTEL_BSP_MAX_QUEUE_SIZE", queueSize)
	batch := min(size(cfg.Getenv, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batchSize), limit)
	sender := newDelivery(SignalTraces, cfg.Failing)
	sender.warn = cfg.Warned
	t.queue = newSpanQueue(exporter, limit, sender,
		// As large as our own queue, so that the SDK's never drops a span.
		sdktrace.WithMaxQueueSize(limit), sdktrace.WithMaxExportBatchSize(batch))
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithResource(res), sdktrace.WithSpanProcessor(t.queue))
	return t, nil
}

// A spanQueue is the SDK's batch processor with exact counts. The processor itself does
// not report what it drops, and counts a failed export as done. So the queue counts the
// spans that wait before it passes them on, and never passes on more than the processor
// has room for. A caller may have four times as many spans waiting as there is still
// room for: one caller alone fills four fifths of the queue, and the next one still
// finds room.
type spanQueue struct {
	inner  sdktrace.SpanProcessor
	limit  int
	sender *delivery

	made, exported, dropped, failed atomic.Uint64

	closed    atomic.Bool // no further span is accepted
	abandoned atomic.Bool // waiting spans will not be exported any more

	mu       sync.Mutex
	waiting  int
	byCaller map[spanCaller]int // number of waiting spans by caller
}

func newSpanQueue(exporter sdktrace.SpanExporter, limit int, sender *delivery, opts ...sdktrace.BatchSpanProcessorOption) *spanQueue {
	q := &spanQueue{limit: limit, sender: sender, byCaller: map[spanCaller]int{}}
	q.inner = sdktrace.NewBatchSpanProcessor(&countingExporter{SpanExporter: exporter, queue: q}, opts...)
	return q
}

// OnStart implements sdktrace.SpanProcessor.
func (q *spanQueue) OnStart(ctx context.Context, s sdktrace.ReadWriteSpan) { q.inner.OnStart(ctx, s) }

// OnEnd queues a span, or drops it if there is no room for another one of its caller.
// It never blocks.
func (q *spanQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	q.made.Add(1)
	if q.closed.Load() {
		q.dropped.Add(1)
		return
	}
	if !q.enter(callerOf(s)) {
		q.dropped.Add(1)
		return
	}
	q.inner.OnEnd(s)
}

// enter counts a span as waiting, unless there is no room for it.
func (q *spanQueue) enter(caller spanCaller) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.byCaller[caller] >= 4*(q.limit-q.waiting) {
		return false
	}
	q.waiting++
	q.byCaller[caller]++
	return true
}

// leave stops counting spans as waiting.
func (q *spanQueue) leave(spans []sdktrace.ReadOnlySpan) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting -= len(spans)
	for _, s := range spans {
		caller := callerOf(s)
		if q.byCaller[caller]--; q.byCaller[caller] == 0 {
			delete(q.byCaller, caller)
		}
	}
}

// spanCaller is the caller of a span's request, as in an allowlist.Holder: an identity
// from source-map may be forged, and takes no room from the same identity with another
// proof. All callers without an identity are the same.
type spanCaller struct {
	identity string
	proof    allowlist.Proof // ProofSourceMap, or zero for every other proof
}

func callerOf(s sdktrace.ReadOnlySpan) (c spanCaller) {
	for _, a := range s.Attributes() {
		switch a.Key {
		case "egress.identity.spiffe_id":
			c.identity = a.Value.AsString()
		case "egress.identity.source":
			if a.Value.AsString() == allowlist.ProofSourceMap.String() {
				c.proof = allowlist.ProofSourceMap
			}
		}
	}
	return c
}

// Shutdown exports waiting spans until ctx is done. Those that remain are lost.
func (q *spanQueue) Shutdown(ctx context.Context) error {
	q.closed.Store(true)
	q.sender.hurry()
	err := q.inner.Shutdown(ctx)
	q.abandoned.Store(true)
	return err
}

// ForceFlush implements sdktrace.SpanProcessor.
func (q *spanQueue) ForceFlush(ctx context.Context) error { return q.inner.ForceFlush(ctx) }

// stats reads the counts in an order in which their sum never exceeds Made.
func (q *spanQueue) stats() spanStats {
	abandoned := q.abandoned.Load()
	s := spanStats{Exported: q.exported.Load(), Dropped: q.dropped.Load(), Failed: q.failed.Load()}
	s.Made = q.made.Load()
	s.Waiting = s.Made - s.Exported - s.Dropped - s.Failed
	if abandoned {
		s.Dropped, s.Waiting = s.Dropped+s.Waiting, 0
	}
	return s
}

// A countingExporter counts the result of each batch for its queue.
type countingExporter struct {
	sdktrace.SpanExporter

	queue *spanQueue
}

// ExportSpans never returns an error, because errors are counted and reported already.
func (e *countingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.queue.sender.run(ctx, func(ctx context.Context) error { return e.SpanExporter.ExportSpans(ctx, spans) })
	failed := countLost(err, len(spans))
	e.queue.failed.Add(uint64(failed))                //nolint:gosec // G115: not below zero
	e.queue.exported.Add(uint64(len(spans) - failed)) //nolint:gosec // G115: not below zero
	e.queue.leave(spans)
	return nil
}
