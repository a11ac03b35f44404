package audit

import (
	"errors"
	"time"
)

// stuckAfter is how long a Write may take before it counts as a failure, if no decision
// waits for its record. If decisions wait, the time is commitTimeout, after which they are
// refused.
const stuckAfter = 12 * time.Second

// The failures of a sink that are not errors of its Write.
var (
	// errStuck says that a Write has not returned for a long time.
	errStuck = errors.New("a write does not return")
	// errOverflow says that records are dropped because the queue is full.
	errOverflow = errors.New("records are dropped: the queue is full")
)

// Failure describes a sink that loses records, or is about to.
type Failure struct {
	Sink  string
	Since time.Time
	// Err is the error of the last Write, or says that one does not return, or that
	// records are dropped because the queue is full.
	Err error
}

// health is the state of a sink as its queue knows it. Zero times mean "not now".
type health struct {
	err      error     // error of the last Write
	since    time.Time // when Writes began to fail
	writing  time.Time // when the current Write began
	dropping time.Time // when records began to be dropped
}

// failure returns the current failure, or a nil error if there is none. patience is how
// long a Write may take.
func (h *health) failure(now time.Time, patience time.Duration) (since time.Time, err error) {
	switch {
	case !h.writing.IsZero() && now.Sub(h.writing) >= patience:
		return h.writing, errStuck
	case h.err != nil:
		return h.since, h.err
	case !h.dropping.IsZero():
		return h.dropping, errOverflow
	}
	return time.Time{}, nil
}

// writeBegan notes that a Write begins now.
func (q *queue) writeBegan(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.health.writing = now
}

// writeEnded notes the result of a Write and the number of records that it lost. It
// reports whether the sink has begun or ceased to fail.
func (q *queue) writeEnded(err error, failed uint64) (changed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	h := &q.health
	changed = (err != nil) != (h.err != nil)
	if changed {
		h.since = time.Now()
	}
	h.err, h.writing = err, time.Time{}
	if err == nil {
		q.tallies.sinkWorked()
	} else {
		q.tallies.sinkFailed(failed, err)
	}
	return changed
}

// failure returns the current failure of the sink, if there is one.
func (q *queue) failure(now time.Time) (Failure, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	patience := stuckAfter
	if q.waiting.size > 0 {
		patience = commitTimeout
	}
	since, err := q.health.failure(now, patience)
	return Failure{Sink: q.stats.Name, Since: since, Err: err}, err != nil
}
