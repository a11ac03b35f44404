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

// The spans that may wait for the exporter or be on their way, and how many go
// at a time, unless OTEL_BSP_MAX_QUEUE_SIZE and OTEL_BSP_MAX_EXPORT_BATCH_SIZE
// say otherwise. The SDK's own defaults, 2048 and 512, are a second's worth.
const (
	queueSize = 16384
	batchSize = 2048
)

// spanStats counts spans. Made is the sum of the others.
type spanStats struct {
	Made     uint64 // ended while there was an exporter
	Exported uint64 // taken by the collector
	Dropped  uint64 // the queue was full, or the process ended before they were sent
	Failed   uint64 // the export failed, or the collector has rejected them
	Waiting  uint64 // for the exporter, or on their way
}

// traces is the tracer provider and its queue.
type traces struct {
	provider *sdktrace.TracerProvider
	queue    *spanQueue // without an exporter it counts nothing
}

// newTraces samples every span, whatever a caller's context or
// OTEL_TRACES_SAMPLER says. Without an exporter nobody would see a span, so
// none is filled in; it still has the ids that the records carry.
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
	line := newDelivery(SignalTraces, cfg.Failing)
	line.warn = cfg.Warned
	t.queue = newSpanQueue(exporter, limit, line,
		// As many as may wait, so that it never drops one by itself.
		sdktrace.WithMaxQueueSize(limit), sdktrace.WithMaxExportBatchSize(batch))
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithResource(res), sdktrace.WithSpanProcessor(t.queue))
	return t, nil
}

// A spanQueue is the SDK's batch processor with counts that are exact. The
// processor itself tells nobody what it drops, and takes a failed export for a
// done one. So the spans that wait are counted here, before it, and it is never
// given more than it has room for. A caller may have four times as many spans
// waiting as there is still room for: one alone fills four fifths of the queue, and
// whoever comes then has room.
type spanQueue struct {
	inner sdktrace.SpanProcessor
	limit int
	line  *delivery

	made, exported, dropped, failed atomic.Uint64

	closed  atomic.Bool // no span is taken any more
	settled atomic.Bool // what still waits will not be exported

	mu      sync.Mutex
	waiting int
	of      map[spanCaller]int // spans that wait
}

func newSpanQueue(exporter sdktrace.SpanExporter, limit int, line *delivery, opts ...sdktrace.BatchSpanProcessorOption) *spanQueue {
	q := &spanQueue{limit: limit, line: line, of: map[spanCaller]int{}}
	q.inner = sdktrace.NewBatchSpanProcessor(&countingExporter{SpanExporter: exporter, queue: q}, opts...)
	return q
}

// OnStart implements sdktrace.SpanProcessor.
func (q *spanQueue) OnStart(ctx context.Context, s sdktrace.ReadWriteSpan) { q.inner.OnStart(ctx, s) }

// OnEnd takes a span, or drops it if there is no room for one more of its caller.
// It never waits.
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

// enter counts a span that is to wait, unless there is no room for it.
func (q *spanQueue) enter(caller spanCaller) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.of[caller] >= 4*(q.limit-q.waiting) {
		return false
	}
	q.waiting++
	q.of[caller]++
	return true
}

// leave counts spans that wait no more.
func (q *spanQueue) leave(spans []sdktrace.ReadOnlySpan) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting -= len(spans)
	for _, s := range spans {
		caller := callerOf(s)
		if q.of[caller]--; q.of[caller] == 0 {
			delete(q.of, caller)
		}
	}
}

// spanCaller is whose request a span is of, as an allowlist.Holder: what came by
// source-map may be forged, and takes no room from the rest of the identity. All
// callers without an identity are the same.
type spanCaller struct {
	identity string
	source   allowlist.Source // SourceMap; zero for every other proof
}

func callerOf(s sdktrace.ReadOnlySpan) (c spanCaller) {
	for _, a := range s.Attributes() {
		switch a.Key {
		case "egress.identity.spiffe_id":
			c.identity = a.Value.AsString()
		case "egress.identity.source":
			if a.Value.AsString() == allowlist.SourceMap.String() {
				c.source = allowlist.SourceMap
			}
		}
	}
	return c
}

// Shutdown exports what waits until ctx is done. What waits then is lost.
func (q *spanQueue) Shutdown(ctx context.Context) error {
	q.closed.Store(true)
	q.line.hurry()
	err := q.inner.Shutdown(ctx)
	q.settled.Store(true)
	return err
}

// ForceFlush implements sdktrace.SpanProcessor.
func (q *spanQueue) ForceFlush(ctx context.Context) error { return q.inner.ForceFlush(ctx) }

// stats reads the counts in an order in which their sum is never over Made.
func (q *spanQueue) stats() spanStats {
	settled := q.settled.Load()
	s := spanStats{Exported: q.exported.Load(), Dropped: q.dropped.Load(), Failed: q.failed.Load()}
	s.Made = q.made.Load()
	s.Waiting = s.Made - s.Exported - s.Dropped - s.Failed
	if settled {
		s.Dropped, s.Waiting = s.Dropped+s.Waiting, 0
	}
	return s
}

// A countingExporter counts for its queue what became of each batch.
type countingExporter struct {
	sdktrace.SpanExporter

	queue *spanQueue
}

// ExportSpans never returns an error: it has been counted and told.
func (e *countingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.queue.line.run(ctx, func(ctx context.Context) error { return e.SpanExporter.ExportSpans(ctx, spans) })
	failed := countLost(err, len(spans))
	e.queue.failed.Add(uint64(failed))                //nolint:gosec // G115: not below zero
	e.queue.exported.Add(uint64(len(spans) - failed)) //nolint:gosec // G115: not below zero
	e.queue.leave(spans)
	return nil
}
