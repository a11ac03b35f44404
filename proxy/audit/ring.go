package audit

import "github.com/exeat-dev/exeat/allowlist"

// The parts of a ring; each constant divides its size. Denials may fill three quarters of
// it, those of one identity or source an eighth. When they are full, the caller that has
// most of them loses one, so that the first denial of a caller has its line whatever others
// do. Records that are not denials may fill all but the last eighth without a share for
// each caller. In the last eighth each identity has an eighth of the room. When that is
// full as well, denials beyond an eighth of the ring are displaced, and then the caller
// with most records there loses one.
const (
	shareParts   = 8 // part of the ring that denials of one identity may fill
	reserveParts = 4 // part of the ring that is kept for other records

	lateParts      = 8  // part of the ring that is shared by caller among records that are not denials
	lateShareParts = 64 // part of the ring that one identity may fill within that last part
	denialParts    = 8  // part of the ring that denials keep when other records need room
)

// itemChunk is how many items are allocated at a time.
const itemChunk = 64

// item is a record in a ring.
type item struct {
	record     *sharedRecord
	prev, next *item
	// seat is in use for denials, and for other records that came when only the last
	// part of the ring was free.
	seat seat[*item]
}

// ring holds the records of a queue that Commit does not wait for, in their order, and
// gives every caller a fair share of its room.
type ring struct {
	size        int
	count       int
	first, last *item
	free        *item         // linked by next
	denials     shares[*item] // items that are denials
	late        shares[*item] // other items that came when only the last part was free
}

// isDenial reports whether a record may be counted into a summary, because the answer
// was a refusal of any kind.
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

// add adds a record and returns the record that has no room now: another one, the new
// one itself, or nil if there is room for all.
func (r *ring) add(h *sharedRecord) (displaced *sharedRecord) {
	if isDenial(&h.Record) {
		return r.addDenial(h)
	}
	if r.count < r.size-r.size/lateParts {
		r.push(h)
		return nil
	}
	var path [maxPathLen]key
	leaf := r.late.leaf(callerPath(path[:0], &h.Record))
	if leaf.count > 0 && leaf.count >= r.size/lateShareParts {
		return h
	}
	it := r.push(h)
	r.late.put(&it.seat, leaf)
	switch {
	case r.count <= r.size:
		return nil
	case r.denials.root.count > r.size/denialParts:
		return r.drop(r.denials.victim(&it.seat)) // the new record has no seat there
	}
	return r.drop(r.late.victim(&it.seat))
}

func (r *ring) addDenial(h *sharedRecord) (displaced *sharedRecord) {
	var path [maxPathLen]key
	leaf := r.denials.leaf(callerPath(path[:0], &h.Record))
	if leaf.count > 0 && leaf.count >= r.size/shareParts {
		return h
	}
	it := r.push(h)
	r.denials.put(&it.seat, leaf)
	if r.count <= r.size-r.size/reserveParts || r.count <= r.size && r.denials.root.count <= r.size/denialParts {
		return nil
	}
	return r.drop(r.denials.victim(&it.seat))
}

// push appends a record without regard to shares and room.
func (r *ring) push(h *sharedRecord) *item {
	if r.free == nil {
		more := make([]item, itemChunk)
		for i := range more {
			more[i].seat.value = &more[i]
			more[i].next, r.free = r.free, &more[i]
		}
	}
	it := r.free
	r.free = it.next
	it.record = h
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
func (r *ring) drop(it *item) *sharedRecord {
	h := it.record
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
	it.record, it.prev = nil, nil
	it.next, r.free = r.free, it
	return h
}

func (r *ring) sharesOf(it *item) *shares[*item] {
	if isDenial(&it.record.Record) {
		return &r.denials
	}
	return &r.late
}

// pop removes and returns the oldest record. The ring must not be empty.
func (r *ring) pop() *sharedRecord { return r.drop(r.first) }
