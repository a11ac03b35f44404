package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// DefaultQueue is how many records may wait for each sink.
const DefaultQueue = 16384

// Config configures a [Recorder].
type Config struct {
	// Sinks receive the records, each at its own pace. At least one is required.
	Sinks []SinkConfig
	// Tracer makes the spans. It is required; its provider must sample always.
	Tracer trace.Tracer
	// Instance is the name of this process in its records; "" means that they have
	// none.
	Instance string
	// Queue bounds the records that wait for each sink; zero means DefaultQueue. If
	// Required is set, half of it is for those that Commit waits for.
	Queue int
	// Required makes [Pending.Commit] wait until the sinks have written. It
	// excludes Collapse.
	Required bool
	// Collapse merges identical denials, which have the same caller, listener,
	// destination and reason. The first one is written at once, and those that follow
	// it within this time are written as one record with its id. Zero means that each
	// denial has its own record.
	Collapse time.Duration
	// Measure is called once for every decision and event, even for one that is merged
	// into another, from the goroutine that makes it. It must neither keep nor change
	// the record. It may be nil.
	Measure func(*Record)
	// SinkError is called when a sink begins to fail (err is not nil) and when it works
	// again (nil), from the goroutine that writes to it: the sink gets no record until
	// it returns. It may be nil; failures are counted all the same.
	SinkError func(sink string, err error)
}

// Recorder accepts records from the doors and writes them, with one goroutine for each
// sink. All methods are safe for concurrent use.
type Recorder struct {
	cfg        Config
	workers    []*worker
	collapse   *collapser // nil if nothing is collapsed
	cancel     context.CancelFunc
	server     trace.SpanStartOption // made once, because every decision needs it
	made       atomic.Uint64
	sharedPool sync.Pool // of *sharedRecord
}

// New starts a recorder; Close stops it. The sinks get ctx without its cancellation.
func New(ctx context.Context, cfg Config) (*Recorder, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if cfg.Queue <= 0 {
		cfg.Queue = DefaultQueue
	}
	cfg.Instance = bounded(cfg.Instance, maxInstance)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Recorder{cfg: cfg, cancel: cancel, server: trace.WithSpanKind(trace.SpanKindServer)}
	for _, sink := range cfg.Sinks {
		w := &worker{
			cfg: sink, sinkError: cfg.SinkError, instance: cfg.Instance,
			queue: newQueue(sink.Name, cfg.Queue, cfg.Required), done: make(chan struct{}),
		}
		r.workers = append(r.workers, w)
		go w.run(ctx)
	}
	if cfg.Collapse > 0 {
		r.collapse = newCollapser(cfg.Collapse, r.put)
		go r.collapse.run()
	}
	return r, nil
}

func (c *Config) check() error {
	if len(c.Sinks) == 0 || c.Tracer == nil {
		return errors.New("a sink and a tracer are required")
	}
	if c.Required && c.Collapse > 0 {
		return errors.New("a record that is required cannot be collapsed")
	}
	names := map[string]bool{}
	for _, s := range c.Sinks {
		switch {
		case s.Name == "" || names[s.Name]:
			return fmt.Errorf("the sink name %q is empty or used twice", s.Name)
		case s.Sink == nil:
			return fmt.Errorf("the sink %s has no place to write to", s.Name)
		}
		names[s.Name] = true
	}
	return nil
}

// Required reports whether decisions wait for their records.
func (r *Recorder) Required() bool { return r.cfg.Required }

// Close writes what is queued, with summaries of the rest, and returns when everything
// is written or ctx is done. Then it cancels the context of the sinks. Records that
// come later are dropped and counted, and so are those that still wait if ctx is done.
func (r *Recorder) Close(ctx context.Context) error {
	if r.collapse != nil {
		r.collapse.close()
	}
	for _, w := range r.workers {
		w.queue.close()
	}
	defer r.cancel()
	for _, w := range r.workers {
		select {
		case <-w.done:
		case <-ctx.Done():
			for _, w := range r.workers {
				w.queue.giveUp()
			}
			return context.Cause(ctx)
		}
	}
	return nil
}

// CountOnly counts a decision that has no span and that no sink keeps, so that it need not
// be written. If a sink keeps the record, CountOnly does nothing and reports false. It
// neither keeps nor changes the record.
func (r *Recorder) CountOnly(rec *Record) bool {
	for _, w := range r.workers {
		if w.cfg.keeps(rec) {
			return false
		}
	}
	r.count(rec)
	return true
}

// Event records something that is not a decision, such as a failed handshake. It sets
// the record's time and id if they are zero. It copies only the part of the detail that
// is written, because that of a handshake quotes a certificate of any size.
func (r *Recorder) Event(rec Record) {
	if len(rec.Detail) > maxDetail {
		rec.Detail = strings.Clone(bounded(rec.Detail, maxDetail))
	}
	if rec.Time.IsZero() {
		rec.Time = time.Now()
	}
	if rec.ID == "" {
		rec.ID = newID(rec.Time)
	}
	r.count(&rec)
	r.put(&rec)
}

// count counts a record that was made.
func (r *Recorder) count(rec *Record) {
	r.made.Add(1)
	if r.cfg.Measure != nil {
		r.cfg.Measure(rec)
	}
}

// put queues a copy of the record for every sink that keeps it.
func (r *Recorder) put(rec *Record) {
	var h *sharedRecord
	for _, w := range r.workers {
		if !w.cfg.keeps(rec) {
			continue
		}
		if h == nil {
			h = newSharedRecord(&r.sharedPool, rec)
			h.Instance = r.cfg.Instance
		}
		h.users.Add(1)
		w.queue.put(h)
	}
	if h != nil {
		h.release()
	}
}

// commitTimeout bounds how long a decision waits until its record is written.
const commitTimeout = 2 * time.Second

var (
	errNoRoom = errors.New("the queue has no room for more records of this caller")
	errLate   = errors.New("the record was not written in time")
)

// commit queues a record and returns when every sink that keeps it has written it.
// After an error it withdraws the record from the queues in which it still waits.
func (r *Recorder) commit(ctx context.Context, rec *Record) error {
	rec.Instance = r.cfg.Instance
	ctx, cancel := context.WithTimeoutCause(ctx, commitTimeout, errLate)
	defer cancel()
	a := &ack{results: make(chan error, len(r.workers))}
	items := make([]waiter, len(r.workers))
	var err error
	waiting := 0
	for i, w := range r.workers {
		items[i].rec, items[i].ack = rec, a
		switch {
		case !w.cfg.keeps(rec):
		case w.queue.commit(&items[i]):
			waiting++
		default:
			err = errNoRoom
		}
	}
	if err == nil {
		err = a.wait(ctx, waiting)
	}
	if err != nil {
		for i, w := range r.workers {
			w.queue.withdraw(&items[i])
		}
		return fmt.Errorf("writing the record of the decision: %w", err)
	}
	return nil
}
