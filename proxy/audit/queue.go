package audit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// The parts of a queue. Denials may take three quarters of it, one identity's
// an eighth: it takes six flooders at once to fill what denials may fill, and
// still nobody's allowed request or tunnel is without room. Of what is no denial
// one identity may fill all but the last eighth, in which it has an eighth.
const (
	shares   = 8 // an identity's denials: one of so many parts
	reserves = 4 // for what is no denial: one of so many parts

	lateRoom   = 8  // what has room when the rest is full: one of so many parts
	lateShares = 64 // of it an identity's: one of so many parts of the queue
)

// item is a record in a queue.
type item struct {
	late bool // it came when the rest was full, and counts for its key
	rec  *Record
	held *held // to be let go once it is written; nil if somebody waits for the write
	ack  *ack  // nil if nobody does
}

// queue holds the records that wait for one sink. Whoever puts a record into it
// is never kept waiting: a denial without room is counted into a summary, and
// anything else without room is dropped and counted.
type queue struct {
	ready chan struct{} // wakes the worker; has room for one

	mu      sync.Mutex
	idle    bool // the worker sleeps, or is about to
	closed  bool
	gaveUp  bool // nobody waits for what waits here
	ring    []item
	head    int         // of the oldest item
	count   int         // of items
	denials map[key]int // items that are denials
	late    map[key]int // items that are late
	tallies tallies
	stats   SinkStats
	health  health
}

func newQueue(name string, capacity int) *queue {
	return &queue{
		ready: make(chan struct{}, 1), ring: make([]item, capacity),
		denials: map[key]int{}, late: map[key]int{}, stats: SinkStats{Name: name},
	}
}

// isDenial reports whether a record may be counted into a summary: the answer
// was no, for whatever reason.
func isDenial(rec *Record) bool {
	switch rec.Event {
	case EventDecision, EventCollapsed:
		return rec.Verdict == allowlist.Deny || rec.Verdict == allowlist.Fail
	case EventHandshake:
		return true
	case EventTunnelProgress, EventTunnelClose, EventPolicyReload, EventIdentityRotate, EventQuarantine, EventSummary:
	}
	return false
}

// put takes a record that must not be changed any more. It reports false if it
// has not kept it: it is counted.
func (q *queue) put(h *held) bool {
	rec := &h.Record
	denial := isDenial(rec)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Made++
	switch {
	case q.closed:
		q.stats.Dropped++
	case denial && !q.hasRoom(keyOf(rec)):
		q.tallies.add(rec)
		q.wake()
	case denial:
		q.denials[keyOf(rec)]++
		q.push(item{rec: rec, held: h})
		return true
	case q.count < len(q.ring)-len(q.ring)/lateRoom:
		q.push(item{rec: rec, held: h})
		return true
	default:
		return q.putLate(h)
	}
	return false
}

// putLate takes what is no denial while the last part of the queue is used.
func (q *queue) putLate(h *held) bool {
	k := keyOf(&h.Record)
	if q.count == len(q.ring) || q.late[k] >= max(1, len(q.ring)/lateShares) {
		q.drop()
		return false
	}
	q.late[k]++
	q.push(item{rec: &h.Record, held: h, late: true})
	return true
}

// hasRoom reports whether one more denial of the key may be queued.
func (q *queue) hasRoom(k key) bool {
	size := len(q.ring)
	return q.count < size-size/reserves && q.denials[k] < max(1, size/shares)
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
	case q.count == len(q.ring):
		q.drop()
		return false
	}
	q.push(item{rec: rec, ack: a})
	return true
}

func (q *queue) push(it item) {
	q.ring[(q.head+q.count)%len(q.ring)] = it
	q.count++
	q.wake()
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
	select {
	case q.ready <- struct{}{}:
	default:
	}
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
		q.sleep(due)
	}
}

// poll is next without waiting: it also returns when the next summaries are
// due (zero if there are none), and whether nothing more will come.
func (q *queue) poll(items []item) (_ []item, taken tallies, due time.Time, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.count > 0 && len(items) < cap(items) {
		it := q.pop()
		if it.ack != nil && it.ack.withdrawn.Load() {
			q.stats.Dropped++
			continue
		}
		items = append(items, it)
	}
	if q.count == 0 {
		q.health.dropping = time.Time{} // the sink keeps up again
	}
	taken = q.tallies.take(q.closed)
	q.idle = len(items) == 0 && taken.due.IsZero() && !q.closed
	return items, taken, q.tallies.due, q.closed
}

func (q *queue) pop() item {
	it := q.ring[q.head]
	q.ring[q.head] = item{}
	q.head = (q.head + 1) % len(q.ring)
	q.count--
	switch {
	case it.late:
		less(q.late, keyOf(it.rec))
	case it.ack == nil && isDenial(it.rec):
		less(q.denials, keyOf(it.rec))
	}
	return it
}

// less counts one less of a key.
func less(counts map[key]int, k key) {
	if counts[k]--; counts[k] == 0 {
		delete(counts, k)
	}
}

// sleep returns when there may be work, or at due unless that is zero.
func (q *queue) sleep(due time.Time) {
	if due.IsZero() {
		<-q.ready
		return
	}
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-q.ready:
	case <-timer.C:
	}
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
