package audit

import (
	"context"
	"slices"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Start holds what is known when a request has been read.
type Start struct {
	Time     time.Time // zero means now
	Listener string
	Protocol Protocol
	Wire     Wire
	// TraceParent is the caller's traceparent field as received. It is linked and never
	// decides whether the span is sampled.
	TraceParent string
	// Attributed is the caller's first AttributedField as received; "" without one.
	Attributed string
	// NoSpan leaves the span out, where only some of many similar decisions have one.
	NoSpan bool
	// Accept makes the caller's context the parent of the span instead of a link, for a
	// listener whose callers are trusted to set it.
	Accept bool
}

// Begin opens the record and the span of one decision. The trace of the caller is not
// trusted: the span is a root with a link to that trace, unless Start.Accept is set.
func (r *Recorder) Begin(ctx context.Context, s Start) *Pending {
	o := new(Pending)
	r.Reopen(ctx, o, s)
	return o
}

// Reopen does what Begin does, but allocates no Pending: it uses o, which is new or has
// ended.
func (r *Recorder) Reopen(ctx context.Context, o *Pending, s Start) {
	if s.Time.IsZero() {
		s.Time = time.Now()
	}
	*o = Pending{recorder: r, Record: s.record()}
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

// record returns the record with the fields that are known at the start.
func (s *Start) record() Record {
	rec := Record{
		Time: s.Time, Event: EventDecision, ID: newID(s.Time), Listener: s.Listener, Protocol: s.Protocol, Wire: s.Wire,
	}
	rec.SetAttributed(s.Attributed)
	return rec
}

func callerContext(ctx context.Context, traceparent string) trace.SpanContext {
	if traceparent == "" {
		return trace.SpanContext{}
	}
	// Extract returns its context unchanged if the field is not valid. The span in our
	// own context must not pass for the caller's.
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

// Pending is a decision that is not complete yet. Its record may be filled in until Commit
// has written it, or else until End. It is used by one goroutine.
type Pending struct {
	Record

	recorder  *Recorder
	span      trace.Span // nil if there is none
	committed *Record    // the record as Commit has written it; nil if it has not
	commitErr error
	joinTried bool // join was called
	joined    bool // the record was merged into that of an identical denial
	ended     bool
}

// TraceID returns the trace of the decision's span, as the caller sees it, or "" if the
// tracer makes none.
func (o *Pending) TraceID() string {
	if !o.Trace.HasTraceID() {
		return ""
	}
	return o.Trace.TraceID().String()
}

// Ended reports whether End was called.
func (o *Pending) Ended() bool { return o.ended }

// Committed reports whether Commit has written the record. Changes since then, such as
// that the caller left, are in no rendering.
func (o *Pending) Committed() bool { return o.committed != nil }

// Commit makes the record final before the answer is sent. Call it when verdict, reason
// and status are known and before the id is shown to the caller, because a denial that
// is merged into an identical one gets the id of that one here.
//
// In required mode it returns when every sink that keeps the record has written it; it
// waits at most two seconds. After nil the written record is final: later changes are
// in no rendering, and End only ends the span. After an error the decision must be
// refused with audit-unavailable: set that as verdict, reason and status, and End
// queues a record of it. A sink that had written the record while another one failed
// then has two with the same id, and the later one says what happened; any other sink
// has one. A further call returns the same error.
//
// In the default mode it returns nil, and End queues the record.
func (o *Pending) Commit(ctx context.Context) error {
	if o.ended || o.committed != nil || o.commitErr != nil {
		return o.commitErr
	}
	if !o.recorder.cfg.Required {
		o.join()
		return nil
	}
	rec := o.Record
	rec.DNS.Answered = slices.Clone(rec.DNS.Answered) // a sink may still write it after this returns
	if o.commitErr = o.recorder.commit(ctx, &rec); o.commitErr == nil {
		o.committed = &rec
	}
	return o.commitErr
}

// join merges the record into an identical denial, if there is one. Only the first call
// does so, because a second one would find the record itself.
func (o *Pending) join() {
	if o.joinTried {
		return
	}
	o.joinTried, o.joined = true, o.recorder.collapse.join(&o.Record)
}

// End queues the record, unless it is written or merged already, and ends the span. A
// second call does nothing.
func (o *Pending) End() {
	if o.ended {
		return
	}
	o.ended = true
	if o.committed != nil {
		o.Record = *o.committed
	} else {
		o.Supersedes = o.commitErr != nil
		o.join()
	}
	o.endSpan()
	o.recorder.count(&o.Record)
	if o.committed == nil && !o.joined {
		o.recorder.put(&o.Record)
	}
}
