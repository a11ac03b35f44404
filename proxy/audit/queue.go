package audit

import (
	"context"
	"sync"
	"time"
)

// queue holds the records that wait for one sink. Adding a record never blocks: a
// denial without room is counted into a summary, any other record without room is
// dropped and counted. If records are required, half of the room is for those that
// Commit waits for.
type queue struct {
	ready signal   // wakes the worker
	sums  []*tally // summaries that are to be written; used by the worker only

	mu            sync.Mutex
	idle          bool // the worker sleeps, or is about to
	closed        bool
	gaveUp        bool    // the remaining records count as dropped
	ring          ring    // records that Commit does not wait for
	waiting       waiting // records that Commit waits for
	lastWasCommit bool    // the last record popped came from waiting
	tallies       tallies
	stats         SinkStats
	health        health
}

func newQueue(name string, capacity int, required bool) *queue {
	q := &queue{ready: newSignal(), stats: SinkStats{Name: name}}
	if required {
		q.waiting.size = max(1, capacity/2)
	}
	q.ring.size = max(1, capacity-q.waiting.size)
	return q
}

// put adds a record that must not be changed any more. It releases the record if there
// is no room; otherwise the worker does so after the write.
func (q *queue) put(h *sharedRecord) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Made++
	displaced := h
	if q.closed {
		q.stats.Dropped++
	} else {
		displaced = q.ring.add(h)
		switch {
		case displaced == nil:
		case isDenial(&displaced.Record):
			q.tallies.add(&displaced.Record)
		default:
			q.stats.Dropped++
			if q.health.dropping.IsZero() {
				q.health.dropping = time.Now()
			}
		}
		q.wake()
	}
	if displaced != nil {
		displaced.release()
	}
}

// commit adds a record that Commit waits for. Such a record is never summarised. It
// reports false if there is no room for the record. If the record displaces another
// one, the ack of that one gets errNoRoom.
func (q *queue) commit(it *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Made++
	if q.closed {
		q.stats.Dropped++
		return false
	}
	displaced := q.waiting.add(it)
	q.wake()
	if displaced == nil {
		return true
	}
	q.stats.Dropped++ // the decision is refused, and the refusal has a record of its own
	if displaced == it {
		return false
	}
	displaced.ack.results <- errNoRoom
	return true
}

// withdraw removes a record that is still in the queue.
func (q *queue) withdraw(it *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting.remove(it) {
		q.stats.Dropped++
	}
}

// wake wakes the worker if it sleeps. The caller holds mu.
func (q *queue) wake() {
	if !q.idle {
		return
	}
	q.idle = false
	q.ready.send()
}

// close lets the worker end after it has written everything in the queue. Records that
// come later are dropped and counted.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
}

// giveUp counts every record that is not written yet as dropped.
func (q *queue) giveUp() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gaveUp = true
}

// entry is a record that the worker writes.
type entry struct {
	rec    *Record
	shared *sharedRecord // released after the write; nil for a record that Commit waits for
	ack    *ack          // nil if Commit does not wait for the record
}

// next waits for work. It returns the next records and some of the summaries that are
// due, at most cap(entries) of each. It returns nothing when the queue is closed and
// empty. Further summaries become due only after these are written, so that a flood of
// many callers does not fill the sink with summaries.
func (q *queue) next(entries []entry) ([]entry, []*tally) {
	for {
		entries, taken, due, closed := q.poll(entries[:0])
		if len(q.sums) == 0 {
			q.sums = taken.list() // here the lock is not held
		}
		some := q.sums[:min(len(q.sums), cap(entries))]
		q.sums = q.sums[len(some):]
		if closed || len(entries) > 0 || len(some) > 0 {
			return entries, some
		}
		q.ready.wait(due)
	}
}

// poll is next without waiting. It returns the tallies that are due, if no summaries
// are left to be written. It also returns when the next tallies are due (zero if there
// are none), and whether the queue is closed.
func (q *queue) poll(entries []entry) (_ []entry, taken tallies, due time.Time, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(entries) < cap(entries) && q.ring.count+q.waiting.count() > 0 {
		entries = append(entries, q.pop())
	}
	if q.ring.count+q.waiting.count() == 0 {
		q.health.dropping = time.Time{} // the sink keeps up again
	}
	if len(q.sums) == 0 {
		taken = q.tallies.take(q.closed)
	}
	q.idle = len(entries)+len(q.sums) == 0 && taken.due.IsZero() && !q.closed
	return entries, taken, q.tallies.due, q.closed
}

// pop removes the next record: alternately one that Commit waits for and another one,
// as long as there are both. The other records of a tunnel still follow its decision,
// because they are made after that has been written.
func (q *queue) pop() entry {
	q.lastWasCommit = q.waiting.count() > 0 && (!q.lastWasCommit || q.ring.count == 0)
	if q.lastWasCommit {
		it := q.waiting.pop()
		return entry{rec: it.rec, ack: it.ack}
	}
	h := q.ring.pop()
	return entry{rec: &h.Record, shared: h}
}

// countWritten counts the records of a Write.
func (q *queue) countWritten(written, failed uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Written += written
	q.stats.Failed += failed
}

// summaryWritten counts the result of writing a summary. Without an error its records are
// accounted for; otherwise they are counted into the next summary.
func (q *queue) summaryWritten(t *tally, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case err == nil:
		q.stats.Made++
		q.stats.Written++
		q.stats.Summarised += t.records
	case q.closed:
		q.stats.Failed += t.records
	default:
		q.tallies.merge(t)
	}
}

// snapshot returns the counts.
func (q *queue) snapshot() SinkStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stats
	s.Waiting = s.Made - s.Written - s.Dropped - s.Failed - s.Summarised
	if q.gaveUp {
		s.Dropped, s.Waiting = s.Dropped+s.Waiting, 0
	}
	return s
}

// ack carries the results of a record to Commit: one from every queue that accepted it,
// unless it was withdrawn in time.
type ack struct{ results chan error }

// wait waits for all results and returns the first error, or the cause of ctx.
func (a *ack) wait(ctx context.Context, results int) error {
	for range results {
		select {
		case err := <-a.results:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
