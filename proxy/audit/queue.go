package audit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// queue holds the records that wait for one sink. Whoever puts a record into it
// is never kept waiting: a denial without room is counted into a summary, and
// anything else without room is dropped and counted.
type queue struct {
	ready signal // wakes the worker

	mu      sync.Mutex
	idle    bool // the worker sleeps, or is about to
	closed  bool
	gaveUp  bool // nobody waits for what waits here
	ring    ring
	tallies tallies
	stats   SinkStats
	health  health
}

func newQueue(name string, capacity int) *queue {
	return &queue{ready: newSignal(), ring: newRing(capacity), stats: SinkStats{Name: name}}
}

// put takes a record that must not be changed any more. It reports false if it
// has not kept it: it is counted.
func (q *queue) put(h *held) bool {
	denial := isDenial(&h.Record)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Made++
	switch {
	case q.closed:
		q.stats.Dropped++
	case denial && q.ring.addDenial(h), !denial && q.ring.add(h):
		q.wake()
		return true
	case denial:
		q.tallies.add(&h.Record)
		q.wake()
	default:
		q.drop()
	}
	return false
}

// commit takes a record that somebody waits for: it has all the room there is
// and is never summarised. It reports false if there is none.
func (q *queue) commit(rec *Record, a *ack) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Made++
	switch {
	case q.closed:
		q.stats.Dropped++
		return false
	case !q.ring.push(item{rec: rec, ack: a}):
		q.drop()
		return false
	}
	q.wake()
	return true
}

func (q *queue) drop() {
	q.stats.Dropped++
	if q.health.dropping.IsZero() {
		q.health.dropping = time.Now()
	}
}

// wake wakes the worker if it sleeps.
func (q *queue) wake() {
	if !q.idle {
		return
	}
	q.idle = false
	q.ready.send()
}

// close lets the worker end once it has written what there is. Whatever comes
// later is dropped and counted.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
}

// giveUp counts what waits, also on its way to the sink, as dropped.
func (q *queue) giveUp() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gaveUp = true
}

// next waits for work. It returns the oldest records, at most as many as items
// has room for, and the summaries that are due. It returns nothing when the
// queue is closed and empty.
func (q *queue) next(items []item) ([]item, []*tally) {
	for {
		items, taken, due, closed := q.poll(items[:0])
		sums := taken.list() // here, because nobody waits for the lock now
		if closed || len(items) > 0 || len(sums) > 0 {
			return items, sums
		}
		q.ready.wait(due)
	}
}

// poll is next without waiting: it also returns when the next summaries are
// due (zero if there are none), and whether nothing more will come.
func (q *queue) poll(items []item) (_ []item, taken tallies, due time.Time, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.ring.count > 0 && len(items) < cap(items) {
		it := q.ring.pop()
		if it.ack != nil && it.ack.withdrawn.Load() {
			q.stats.Dropped++
			continue
		}
		items = append(items, it)
	}
	if q.ring.count == 0 {
		q.health.dropping = time.Time{} // the sink keeps up again
	}
	taken = q.tallies.take(q.closed)
	q.idle = len(items) == 0 && taken.due.IsZero() && !q.closed
	return items, taken, q.tallies.due, q.closed
}

// wrote counts what came of a Write.
func (q *queue) wrote(written, failed uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Written += written
	q.stats.Failed += failed
}

// summarised counts what came of a summary: without an error its records are
// accounted for; otherwise they wait for the next one.
func (q *queue) summarised(t *tally, err error) {
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

// ack brings what came of a record to who waits for it: one result from every
// queue that took it, unless it was withdrawn in time.
type ack struct {
	results   chan error
	withdrawn atomic.Bool
}

// wait returns when all results are there and nil, else the first error; ctx
// bounds it.
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
