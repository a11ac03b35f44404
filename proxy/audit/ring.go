package audit

import "github.com/exeat-dev/exeat/allowlist"

// The parts of a ring. Denials may take three quarters of it, one identity's
// an eighth: it takes six flooders at once to fill what denials may fill, and
// still nobody's allowed request or tunnel is without room. Of what is no denial
// one identity may fill all but the last eighth, in which it has an eighth.
const (
	shares   = 8 // an identity's denials: one of so many parts
	reserves = 4 // for what is no denial: one of so many parts

	lateRoom   = 8  // what has room when the rest is full: one of so many parts
	lateShares = 64 // of it an identity's: one of so many parts of the ring
)

// item is a record in a ring.
type item struct {
	late bool // it came when the rest was full, and counts for its key
	rec  *Record
	held *held // to be let go once it is written; nil if somebody waits for the write
	ack  *ack  // nil if nobody does
}

// ring holds the records of a queue in their order, and gives everybody a fair
// share of its room.
type ring struct {
	items   []item
	head    int         // of the oldest item
	count   int         // of items
	denials map[key]int // items that are denials
	late    map[key]int // items that are late
}

func newRing(capacity int) ring {
	return ring{items: make([]item, capacity), denials: map[key]int{}, late: map[key]int{}}
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

// addDenial takes a denial. It reports false if there is no room for one more of
// its key.
func (r *ring) addDenial(h *held) bool {
	size, k := len(r.items), keyOf(&h.Record)
	if r.count >= size-size/reserves || r.denials[k] >= max(1, size/shares) {
		return false
	}
	r.denials[k]++
	return r.push(item{rec: &h.Record, held: h})
}

// add takes what is no denial. It reports false if there is no room for one more
// of its key.
func (r *ring) add(h *held) bool {
	size := len(r.items)
	if r.count < size-size/lateRoom {
		return r.push(item{rec: &h.Record, held: h})
	}
	k := keyOf(&h.Record)
	if r.count == size || r.late[k] >= max(1, size/lateShares) {
		return false
	}
	r.late[k]++
	return r.push(item{rec: &h.Record, held: h, late: true})
}

// push takes an item whatever its share. It reports false if there is no room at
// all.
func (r *ring) push(it item) bool {
	if r.count == len(r.items) {
		return false
	}
	r.items[(r.head+r.count)%len(r.items)] = it
	r.count++
	return true
}

// pop returns the oldest item, of which there must be one.
func (r *ring) pop() item {
	it := r.items[r.head]
	r.items[r.head] = item{}
	r.head = (r.head + 1) % len(r.items)
	r.count--
	switch {
	case it.late:
		less(r.late, keyOf(it.rec))
	case it.ack == nil && isDenial(it.rec):
		less(r.denials, keyOf(it.rec))
	}
	return it
}

// less counts one less of a key.
func less(counts map[key]int, k key) {
	if counts[k]--; counts[k] == 0 {
		delete(counts, k)
	}
}
