package audit

// waitShareParts is the number of parts of the room for records that Commit waits for.
// One identity or source may fill one part.
const waitShareParts = 8

// waiter is a record that Commit waits for.
type waiter struct {
	rec         *Record
	ack         *ack
	callerSeat  seat[*waiter] // place among the callers
	networkSeat seat[*waiter] // place among the networks
}

// waiting holds the records of a queue that Commit waits for. It serves their callers
// in turn, and the records of one identity and source in their order. There are two
// circles, which it serves alternately: one of callers, and one of the networks that
// they call from. So it takes many identities in many networks to keep another caller
// waiting: many identities of one network have one turn in the second circle, and one
// identity in many networks has one in the first. All callers without an identity are
// one caller; within it they are served in turn.
type waiting struct {
	size              int
	callers, networks shares[*waiter]
	networksNext      bool // the circle of networks is served next
}

// count returns the number of records.
func (w *waiting) count() int { return w.callers.root.count }

// add adds a record and returns the record that has no room now: another one, the new
// one itself, or nil if there is room for all.
func (w *waiting) add(it *waiter) (displaced *waiter) {
	it.callerSeat.value, it.networkSeat.value = it, it
	var path [maxPathLen]key
	leaf := w.callers.leaf(callerPath(path[:0], it.rec))
	if leaf.count > 0 && leaf.count >= w.size/waitShareParts {
		return it
	}
	w.callers.put(&it.callerSeat, leaf)
	w.networks.put(&it.networkSeat, w.networks.leaf(networkPath(path[:0], it.rec)))
	if w.count() <= w.size {
		return nil
	}
	// The caller or the network with the most records loses its newest one.
	if w.networks.top() > w.callers.top() {
		displaced = w.networks.victim(&it.networkSeat)
	} else {
		displaced = w.callers.victim(&it.callerSeat)
	}
	w.remove(displaced)
	return displaced
}

// remove removes a record, and reports false if it was not there.
func (w *waiting) remove(it *waiter) bool {
	if it.callerSeat.leaf == nil {
		return false
	}
	w.callers.remove(&it.callerSeat)
	w.networks.remove(&it.networkSeat)
	return true
}

// pop removes and returns the record whose turn it is. There must be one.
func (w *waiting) pop() *waiter {
	circle := &w.callers
	if w.networksNext {
		circle = &w.networks
	}
	w.networksNext = !w.networksNext
	it := circle.next()
	w.remove(it)
	return it
}
