package audit

import (
	"context"
	"sync"
	"time"
)

// queue holds the records that wait for one sink. Whoever puts a record into it
// is never kept waiting: a denial without room is counted into a summary, and
// anything else without room is dropped and counted. Records that somebody waits
// for have room of their own, half of it, if there can be any.
type queue struct {
	ready signal   // wakes the worker
	sums  []*tally // whose summaries are to be written; only the worker's

	mu      sync.Mutex
	idle    bool // the worker sleeps, or is about to
	closed  bool
	gaveUp  bool // nobody waits for what waits here
	ring    ring
	waiting waiting
	waited  bool // the last record taken was one that somebody waits for
	tallies tallies
	stats   SinkStats
	health  health
}

func newQueue(name string, capacity int, required bool) *queue {
	q := &queue{ready: newSignal(), stats: SinkStats{Name: name}}
	if required {
		q.waiting.size = max(1, capacity/2)
	}
	q.ring.size = max(1, capacity-q.waiting.size)
	return q
}

// put takes a record that must not be changed any more, and lets it go when it is
// written or counted.
func (q *queue) put(h *held) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Made++
	without := h
	if q.closed {
		q.stats.Dropped++
	} else {
		without = q.ring.add(h)
		switch {
		case without == nil:
		case isDenial(&without.Record):
			q.tallies.add(&without.Record)
		default:
			q.stats.Dropped++
			if q.health.dropping.IsZero() {
				q.health.dropping = time.Now()
			}
		}
		q.wake()
	}
	if without != nil {
		without.letGo()
	}
}

// commit takes a record that somebody waits for, which is never summarised. It
// reports false if there is no room for it. That of another one may be gone then,
// which its ack is told.
func (q *queue) commit(it *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Made++
	if q.closed {
		q.stats.Dropped++
		return false
	}
	without := q.waiting.add(it)
	q.wake()
	if without == nil {
		return true
	}
	q.stats.Dropped++ // of a decision that is refused, whose refusal has a record
	if without == it {
		return false
	}
	without.ack.results <- errNoRoom
	return true
}

// withdraw takes back a record that nobody has begun to write.
func (q *queue) withdraw(it *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting.remove(it) {
		q.stats.Dropped++
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

// entry is a record on its way to the sink.
type entry struct {
	rec  *Record
	held *held // to be let go once it is written; nil if somebody waits for the write
	ack  *ack  // nil if nobody does
}

// next waits for work. It returns the records whose turn it is, at most as many as
// entries has room for, and some of the summaries that are due, at most as many. It
// returns nothing when the queue is closed and empty. The next summaries are due when
// these are written: a flood of many callers does not fill the sink with them.
func (q *queue) next(entries []entry) ([]entry, []*tally) {
	for {
		entries, taken, due, closed := q.poll(entries[:0])
		if len(q.sums) == 0 {
			q.sums = taken.list() // here, because nobody waits for the lock now
		}
		some := q.sums[:min(len(q.sums), cap(entries))]
		q.sums = q.sums[len(some):]
		if closed || len(entries) > 0 || len(some) > 0 {
			return entries, some
		}
		q.ready.wait(due)
	}
}

// poll is next without waiting: it takes tallies if none are left to be written,
// and returns when the next ones are due (zero if there are none), and whether
// nothing more will come.
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

// pop takes the next record: alternately one that somebody waits for and one that
// nobody waits for, as long as there are both. A tunnel's other records follow its
// decision all the same: they are made when that has been written.
func (q *queue) pop() entry {
	q.waited = q.waiting.count() > 0 && (!q.waited || q.ring.count == 0)
	if q.waited {
		it := q.waiting.pop()
		return entry{rec: it.rec, ack: it.ack}
	}
	h := q.ring.pop()
	return entry{rec: &h.Record, held: h}
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
type ack struct{ results chan error }

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
