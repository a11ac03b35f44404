package audit

// waitShareParts says how much of the room for records that somebody waits for
// one identity or source may have: one of so many parts.
const waitShareParts = 8

// waiter is a record that somebody waits for.
type waiter struct {
	rec *Record
	ack *ack
	by  seat[*waiter] // counts it for its caller
	at  seat[*waiter] // counts it for its place
}

// waiting holds the records of a queue that somebody waits for, and serves their
// callers in turn; those of one identity and one source in their order. There are
// two circles, which it serves alternately: one of the callers, and one of the
// networks that they call from. So it takes many identities in many networks to
// keep another one waiting: many identities of one network have one turn in the
// second circle, and one identity in many networks has one in the first. All that have
// no identity are one caller, and within it are served in turn themselves.
type waiting struct {
	size     int
	by, at   shares[*waiter]
	nextIsAt bool // the circle of places is served next
}

// count returns how many records there are.
func (w *waiting) count() int { return w.by.root.count }

// add takes a record and returns the one that has no room now: another one, the
// new one itself, or nil if there is room for all.
func (w *waiting) add(it *waiter) (without *waiter) {
	it.by.of, it.at.of = it, it
	var path [maxPathLen]key
	leaf := w.by.leaf(who(path[:0], it.rec))
	if leaf.count > 0 && leaf.count >= w.size/waitShareParts {
		return it
	}
	w.by.put(&it.by, leaf)
	w.at.put(&it.at, w.at.leaf(where(path[:0], it.rec)))
	if w.count() <= w.size {
		return nil
	}
	// Who has most in either way of counting gives way.
	if w.at.top() > w.by.top() {
		without = w.at.most(&it.at)
	} else {
		without = w.by.most(&it.by)
	}
	w.remove(without)
	return without
}

// remove takes a record out, and reports false if it is not there any more.
func (w *waiting) remove(it *waiter) bool {
	if it.by.leaf == nil {
		return false
	}
	w.by.remove(&it.by)
	w.at.remove(&it.at)
	return true
}

// pop takes the record whose turn it is. There must be one.
func (w *waiting) pop() *waiter {
	circle := &w.by
	if w.nextIsAt {
		circle = &w.at
	}
	w.nextIsAt = !w.nextIsAt
	it := circle.next()
	w.remove(it)
	return it
}
