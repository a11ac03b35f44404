package audit

import (
	"context"
	"slices"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Start is what is known when a request has been read.
type Start struct {
	Time     time.Time // zero means now
	Listener string
	Protocol Protocol
	Wire     Wire
	// TraceParent is the caller's traceparent field as received; it is linked
	// and never decides whether the span is sampled.
	TraceParent string
	// NoSpan leaves the span out, for a decision that is known to be one of many
	// of which not every one has its span.
	NoSpan bool
	// Accept makes the caller's context the parent of the span instead, for a
	// listener whose callers are trusted with that.
	Accept bool
}

// Begin opens the record and the span of one decision. The caller's context is
// untrusted: the span is a root of its own with a link to it, unless the start
// says that it is accepted.
func (r *Recorder) Begin(ctx context.Context, s Start) *Open {
	o := new(Open)
	r.Reopen(ctx, o, s)
	return o
}

// Reopen is Begin for one who has an Open already, which is new or has ended.
func (r *Recorder) Reopen(ctx context.Context, o *Open, s Start) {
	if s.Time.IsZero() {
		s.Time = time.Now()
	}
	*o = Open{recorder: r, Record: s.record()}
	if s.NoSpan {
		return
	}
	opts := make([]trace.SpanStartOption, 0, 4)
	opts = append(opts, r.server, trace.WithTimestamp(s.Time))
	caller := callerContext(ctx, s.TraceParent)
	if s.Accept && caller.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, caller)
	} else {
		opts = append(opts, trace.WithNewRoot())
		if caller.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: caller}))
		}
	}
	_, o.span = r.cfg.Tracer.Start(ctx, spanName(s.Protocol), opts...) //nolint:spancheck // End ends it
	o.Trace, o.CallerTrace = o.span.SpanContext(), caller.TraceID()
}

// record returns what is known so far.
func (s *Start) record() Record {
	return Record{
		Time: s.Time, Event: EventDecision, ID: newID(s.Time), Listener: s.Listener, Protocol: s.Protocol, Wire: s.Wire,
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

func spanName(protocol Protocol) string {
	if protocol == ProtocolConnect {
		return "CONNECT"
	}
	return string(protocol)
}

// Open is a decision on its way: its record may be filled in until Commit has
// succeeded, or else until End. It belongs to one goroutine.
type Open struct {
	Record

	recorder  *Recorder
	span      trace.Span // nil: none
	committed *Record    // as it was written; nil if it was not
	commitErr error
	settled   bool // joined is known
	joined    bool // merged into an identical denial
	ended     bool
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

// Committed reports whether Commit has had the record written: what has changed
// since, such as a caller that left, is in no rendering.
func (o *Open) Committed() bool { return o.committed != nil }

// Commit settles the record before the answer is sent. Call it when verdict,
// reason and status are known and before the id is shown to the caller: a
// denial that is merged into an identical one gets the id of that one here.
//
// In required mode it returns when every sink that keeps the record has written
// it; it waits at most two seconds. After nil the record is the one that
// was written: later changes are in no rendering, and End only ends the span.
// After an error the decision must be refused with audit-unavailable: set that
// as verdict, reason and status, and End records it, as well as it can. A sink
// that had written the record while another failed then has two with the same
// id, of which the later one is what happened; any other sink has one. Another
// Commit returns the same error.
//
// In the default mode it returns nil, and End queues the record.
func (o *Open) Commit(ctx context.Context) error {
	if o.ended || o.committed != nil || o.commitErr != nil {
		return o.commitErr
	}
	if !o.recorder.cfg.Required {
		o.join()
		return nil
	}
	rec := o.Record
	rec.DNS.Answered = slices.Clone(rec.DNS.Answered) // a sink may still be writing when this returns
	if o.commitErr = o.recorder.commit(ctx, &rec); o.commitErr == nil {
		o.committed = &rec
	}
	return o.commitErr
}

// join merges a denial into an identical one, if there is one. It tries once:
// the second time it would find itself.
func (o *Open) join() {
	if o.settled {
		return
	}
	o.settled, o.joined = true, o.recorder.collapse.join(&o.Record)
}

// End queues the record, unless it is written or merged already, and ends the
// span; a second call does nothing.
func (o *Open) End() {
	if o.ended {
		return
	}
	o.ended = true
	if o.committed != nil {
		o.Record = *o.committed
	} else {
		o.Again = o.commitErr != nil
		o.join()
	}
	o.endSpan()
	o.recorder.count(&o.Record)
	if o.committed == nil && !o.joined {
		o.recorder.put(&o.Record)
	}
}
