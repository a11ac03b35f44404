package audit

import "github.com/exeat-dev/exeat/allowlist"

// The parts of a ring. Denials may take three quarters of it, one identity or
// source an eighth. When they are full, whoever has most gives way, so that the first
// denial of a caller has its line whatever others do. Of what is no denial one
// identity may fill all but the last eighth, in which it has an eighth; when that
// is full, too, denials beyond an eighth of the ring give way, and then who
// has most there.
const (
	shareParts   = 8 // an identity's denials: one of so many parts
	reserveParts = 4 // for what is no denial: one of so many parts

	lateParts      = 8  // what has room when the rest is full: one of so many parts
	lateShareParts = 64 // of it an identity's: one of so many parts of the ring
	denialParts    = 8  // what denials do not give up for others: one of so many parts
)

// itemChunk is how many items are made at a time.
const itemChunk = 64

// item is a record in a ring.
type item struct {
	held       *held
	prev, next *item
	// seat is taken by denials, and by what came when the rest was full.
	seat seat[*item]
}

// ring holds the records of a queue that nobody waits for in their order, and
// gives everybody a fair share of its room.
type ring struct {
	size        int
	count       int
	first, last *item
	free        *item         // linked by next
	denials     shares[*item] // items that are denials
	late        shares[*item] // items that came when the rest was full, and are no denials
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

// add takes a record and returns the one that has no room now: another one, the
// new one itself, or nil if there is room for all.
func (r *ring) add(h *held) (without *held) {
	if isDenial(&h.Record) {
		return r.addDenial(h)
	}
	if r.count < r.size-r.size/lateParts {
		r.push(h)
		return nil
	}
	var path [maxPathLen]key
	leaf := r.late.leaf(who(path[:0], &h.Record))
	if leaf.count > 0 && leaf.count >= r.size/lateShareParts {
		return h
	}
	it := r.push(h)
	r.late.put(&it.seat, leaf)
	switch {
	case r.count <= r.size:
		return nil
	case r.denials.root.count > r.size/denialParts:
		return r.drop(r.denials.most(&it.seat)) // where the new one has no seat
	}
	return r.drop(r.late.most(&it.seat))
}

func (r *ring) addDenial(h *held) (without *held) {
	var path [maxPathLen]key
	leaf := r.denials.leaf(who(path[:0], &h.Record))
	if leaf.count > 0 && leaf.count >= r.size/shareParts {
		return h
	}
	it := r.push(h)
	r.denials.put(&it.seat, leaf)
	if r.count <= r.size-r.size/reserveParts || r.count <= r.size && r.denials.root.count <= r.size/denialParts {
		return nil
	}
	return r.drop(r.denials.most(&it.seat))
}

// push takes a record whatever its share, and whether there is room or not.
func (r *ring) push(h *held) *item {
	if r.free == nil {
		more := make([]item, itemChunk)
		for i := range more {
			more[i].seat.of = &more[i]
			more[i].next, r.free = r.free, &more[i]
		}
	}
	it := r.free
	r.free = it.next
	it.held = h
	it.prev, it.next = r.last, nil
	if r.last == nil {
		r.first = it
	} else {
		r.last.next = it
	}
	r.last = it
	r.count++
	return it
}

// drop removes an item and returns its record.
func (r *ring) drop(it *item) *held {
	h := it.held
	if it.prev == nil {
		r.first = it.next
	} else {
		it.prev.next = it.next
	}
	if it.next == nil {
		r.last = it.prev
	} else {
		it.next.prev = it.prev
	}
	r.count--
	if it.seat.leaf != nil {
		r.sharesOf(it).remove(&it.seat)
	}
	it.held, it.prev = nil, nil
	it.next, r.free = r.free, it
	return h
}

func (r *ring) sharesOf(it *item) *shares[*item] {
	if isDenial(&it.held.Record) {
		return &r.denials
	}
	return &r.late
}

// pop returns the oldest record, of which there must be one.
func (r *ring) pop() *held { return r.drop(r.first) }
