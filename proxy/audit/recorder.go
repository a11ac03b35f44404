package audit

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// DefaultQueue is how many records may wait for the sink.
const DefaultQueue = 16384

// Config says where records go.
type Config struct {
	// Sink receives whole lines, several in one Write. Required.
	Sink io.Writer
	// Tracer makes the spans. Required; its provider must sample always.
	Tracer trace.Tracer
	// Queue bounds the records that wait for the sink; zero means
	// DefaultQueue. Beyond it records are dropped and counted.
	Queue int
	// SinkError is told when the sink begins to fail (err not nil) and when it
	// works again (nil), from the goroutine that writes: until it returns no
	// record is written. nil means nobody is told; the count remains.
	SinkError func(err error)
}

// Recorder takes records from the doors and writes them from one goroutine.
// All methods are safe for concurrent use.
type Recorder struct {
	cfg   Config
	queue chan *Record
	done  chan struct{}

	closing sync.RWMutex // held for reading while a record is queued
	closed  bool

	written, dropped, failed atomic.Uint64
}

// Stats counts records. Those that were made are the sum of the three, and of
// those that wait for the sink.
type Stats struct {
	Written uint64 // taken by the sink
	Dropped uint64 // the queue was full, or the recorder closed
	Failed  uint64 // the sink returned an error
}

// New starts a recorder; Close stops it.
func New(cfg Config) (*Recorder, error) {
	if cfg.Sink == nil || cfg.Tracer == nil {
		return nil, errors.New("audit: a sink and a tracer are required")
	}
	if cfg.Queue <= 0 {
		cfg.Queue = DefaultQueue
	}
	r := &Recorder{cfg: cfg, queue: make(chan *Record, cfg.Queue), done: make(chan struct{})}
	go r.writeAll()
	return r, nil
}

// Stats returns the counts so far.
func (r *Recorder) Stats() Stats {
	return Stats{Written: r.written.Load(), Dropped: r.dropped.Load(), Failed: r.failed.Load()}
}

// Close writes what is queued and returns when it is written or ctx is done.
// Records that come later are dropped and counted.
func (r *Recorder) Close(ctx context.Context) error {
	r.closing.Lock()
	if !r.closed {
		r.closed = true
		close(r.queue)
	}
	r.closing.Unlock()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Event records something that is no decision, such as a failed handshake. The
// record's time and id are set if they are zero.
func (r *Recorder) Event(rec Record) {
	if rec.Time.IsZero() {
		rec.Time = time.Now()
	}
	if rec.ID == "" {
		rec.ID = newID(rec.Time)
	}
	r.put(&rec)
}

// put queues a record; it must not be changed afterwards.
func (r *Recorder) put(rec *Record) {
	r.closing.RLock()
	defer r.closing.RUnlock()
	if r.closed {
		r.dropped.Add(1)
		return
	}
	select {
	case r.queue <- rec:
	default:
		r.dropped.Add(1)
	}
}

// Start is what is known when a request has been read.
type Start struct {
	Time     time.Time // zero means now
	Listener string
	Protocol string
	Wire     string
	// TraceParent is the caller's traceparent field as received; it is linked
	// and never decides whether the span is sampled.
	TraceParent string
}

// Begin opens the record and the span of one decision. The span is a root of
// its own with a link to the caller's context, which is untrusted.
func (r *Recorder) Begin(ctx context.Context, s Start) *Open {
	if s.Time.IsZero() {
		s.Time = time.Now()
	}
	opts := []trace.SpanStartOption{trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(s.Time)}
	caller := callerContext(ctx, s.TraceParent)
	if caller.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: caller}))
	}
	_, span := r.cfg.Tracer.Start(ctx, spanName(s.Protocol), opts...) //nolint:spancheck // End ends it
	return &Open{                                                     //nolint:spancheck // see above
		recorder: r,
		span:     span,
		Record: Record{
			Time: s.Time, Event: EventDecision, ID: newID(s.Time),
			Listener: s.Listener, Protocol: s.Protocol, Wire: s.Wire,
			Trace: span.SpanContext(), CallerTrace: caller.TraceID(),
		},
	}
}

func callerContext(ctx context.Context, traceparent string) trace.SpanContext {
	if traceparent == "" {
		return trace.SpanContext{}
	}
	// Extract leaves a context alone that it cannot improve: what our own
	// context carries must not pass for the caller's.
	ctx = trace.ContextWithSpanContext(ctx, trace.SpanContext{})
	carrier := propagation.MapCarrier{"traceparent": traceparent}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(ctx, carrier))
}

func spanName(protocol string) string {
	if protocol == "connect" {
		return "CONNECT"
	}
	return protocol
}
