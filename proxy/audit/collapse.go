package audit

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// maxWindows bounds the open windows. Beyond it the caller that has most windows loses
// one to the newcomer, and gets a record for each further denial that the window would
// have merged.
const maxWindows = 4096

// denialKey holds what identical denials have in common: every field of the record of the
// first one that does not differ from one attempt to the next.
type denialKey struct {
	identity     string
	proof        proof
	client       netip.Addr // only if there is no identity
	listener     string
	protocol     Protocol
	dest         allowlist.Destination
	method, path string
	qtype        allowlist.QueryType
	reason       allowlist.Reason
	generation   uint64
}

func denialKeyOf(rec *Record) denialKey {
	s := denialKey{
		identity: rec.Identity.String(), proof: proofOf(rec), listener: rec.Listener, protocol: rec.Protocol, dest: rec.Dest,
		method: rec.Method, path: rec.Path, qtype: rec.DNS.Type, reason: rec.Reason, generation: rec.Generation,
	}
	if rec.Identity.IsZero() {
		s.client = rec.Client.Addr()
	}
	return s
}

// window is a denial that was written, with those identical to it that followed.
type window struct {
	denialKey
	first  Record
	merged Merged
	end    time.Time

	seat       seat[*window]
	prev, next *window // neighbours in the order of ends
}

// collapser merges identical denials that follow each other within a time. All methods
// but run are safe for concurrent use.
type collapser struct {
	length time.Duration
	put    func(*Record)
	wake   signal
	done   chan struct{}

	mu          sync.Mutex
	closed      bool
	open        map[denialKey]*window
	first, last *window         // open windows in the order of ends
	callers     shares[*window] // open windows by caller
}

func newCollapser(length time.Duration, put func(*Record)) *collapser {
	return &collapser{
		length: length, put: put, open: map[denialKey]*window{},
		wake: newSignal(), done: make(chan struct{}),
	}
}

// join merges a denial into an identical one whose window is open. The record then gets
// the id of that denial and must not be written. For any other record join reports
// false, and the record must be written.
func (c *collapser) join(rec *Record) bool {
	if c == nil || rec.Event != EventDecision || !rec.LetNothingOut() {
		return false
	}
	s := denialKeyOf(rec)
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.open[s]; w != nil {
		rec.ID = w.first.ID
		w.merged.join(Merged{Count: 1, First: rec.Time, Last: rec.Time})
		return true
	}
	if !c.closed {
		c.begin(s, rec)
	}
	return false
}

// begin opens a window. If there are too many, the caller with most windows loses one.
// The caller holds mu.
func (c *collapser) begin(s denialKey, rec *Record) {
	var path [maxPathLen]key
	w := &window{denialKey: s, first: *rec, end: time.Now().Add(c.length), prev: c.last}
	w.first.DNS.Answered = slices.Clone(rec.DNS.Answered)
	w.seat.value = w
	c.callers.put(&w.seat, c.callers.leaf(callerPath(path[:0], rec)))
	c.open[s] = w
	if c.last == nil {
		c.first = w
		c.wake.send()
	} else {
		c.last.next = w
	}
	c.last = w
	if len(c.open) <= maxWindows {
		return
	}
	displaced := c.callers.victim(&w.seat)
	c.end(displaced)
	if displaced.merged.Count > 0 {
		c.put(displaced.record()) // does not block
	}
}

// end closes a window. The caller holds mu.
func (c *collapser) end(w *window) {
	delete(c.open, w.denialKey)
	c.callers.remove(&w.seat)
	if w.prev == nil {
		c.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		c.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
}

// run writes a record at the end of every window that has merged a denial, until the
// collapser is closed.
func (c *collapser) run() {
	defer close(c.done)
	for {
		ended, next, closed := c.expire()
		for _, w := range ended {
			if w.merged.Count > 0 {
				c.put(w.record())
			}
		}
		if closed {
			return
		}
		c.wake.wait(next)
	}
}

// expire closes the windows whose time is over, or all of them if the collapser is
// closed. It returns when the next window ends, or zero if none is open.
func (c *collapser) expire() (ended []*window, next time.Time, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := c.first; w != nil; w = c.first {
		if !c.closed && time.Until(w.end) > 0 {
			next = w.end
			break
		}
		c.end(w)
		ended = append(ended, w)
	}
	return ended, next, c.closed
}

// close ends all windows and returns when their records are queued.
func (c *collapser) close() {
	c.mu.Lock()
	c.closed = true
	c.wake.send()
	c.mu.Unlock()
	<-c.done
}

// record returns the record of the denials that were merged into the first one.
func (w *window) record() *Record {
	rec := w.first
	rec.Event, rec.Time, rec.Merged = EventCollapsed, time.Now(), &w.merged
	rec.Resolve, rec.Dial, rec.Decide, rec.Attributed = 0, 0, 0, "" // these are not the same in all of them
	return &rec
}
