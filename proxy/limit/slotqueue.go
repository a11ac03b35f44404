package limit

// side holds the slots of all callers with an identity, or of all callers without one.
// The mutex of Slots guards it.
type side struct {
	most, used int // the largest and the current number of slots
	accounts   map[Owner]*account
	// ranks holds the accounts that may lose a slot. ranks[n] has those with n+1 slots
	// without a request, first the one that has been in this rank for the longest time.
	ranks []*queue[account]
	top   int // index of the highest rank that has an account; -1 if none has
}

func newSide(most int) side { return side{most: most, accounts: map[Owner]*account{}, top: -1} }

// mostIdle returns the account that has the most slots without a request. It is nil if
// no slot may be given up.
func (p *side) mostIdle() *account {
	if p.top < 0 {
		return nil
	}
	return p.ranks[p.top].first()
}

// account holds the slots of one owner.
type account struct {
	owner  Owner
	side   *side
	yields bool // slots without a request may be given up
	used   int  // number of slots

	idleSlots queue[Slot] // slots without a request, first the one that has had none for the longest time
	idleCount int         // length of idleSlots
	busy      queue[Slot] // slots with a request, the one whose request is oldest first
	rank      link[account]
}

// oldest returns the slot to give up for another slot of the same owner, nil if there
// is none. A slot with a request is returned only if all is set.
func (a *account) oldest(all bool) *Slot {
	if slot := a.idleSlots.first(); slot != nil && (a.yields || all) {
		return slot
	}
	if all {
		return a.busy.first()
	}
	return nil
}

// add appends a slot without a request.
func (a *account) add(slot *Slot) {
	a.idleSlots.append(&slot.link, slot)
	a.setIdle(a.idleCount + 1)
}

// remove removes a slot without a request.
func (a *account) remove(slot *Slot) {
	slot.link.unlink()
	a.setIdle(a.idleCount - 1)
}

// beginRequest notes that a slot has a request.
func (a *account) beginRequest(slot *Slot) {
	a.remove(slot)
	a.busy.append(&slot.link, slot)
}

// endRequest notes that a slot has no request any more.
func (a *account) endRequest(slot *Slot) {
	slot.link.unlink()
	a.add(slot)
}

// setIdle moves the account to the rank for its new number of slots without a request,
// which is one more or one less than before.
func (a *account) setIdle(idle int) {
	p := a.side
	if a.idleCount = idle; !a.yields {
		return
	}
	a.rank.unlink()
	if idle > 0 {
		for len(p.ranks) < idle {
			p.ranks = append(p.ranks, new(queue[account]))
		}
		p.ranks[idle-1].append(&a.rank, a)
		p.top = max(p.top, idle-1)
	}
	for p.top >= 0 && p.ranks[p.top].first() == nil { // runs at most once, since the account moved by one rank
		p.top--
	}
}

// queue is a doubly linked list whose links are fields of its elements, so that it
// allocates nothing. The zero value is empty. A queue that was used must not be copied.
type queue[T any] struct{ root link[T] }

// link connects an element with its neighbours. The zero value is in no queue.
type link[T any] struct {
	next, prev *link[T]
	elem       *T // the element that holds the link; nil for the root of a queue
}

// first returns the element that has been in the queue for the longest time, nil if
// the queue is empty.
func (q *queue[T]) first() *T {
	if q.root.next == nil {
		return nil
	}
	return q.root.next.elem
}

// append adds an element, which must be in no queue, and its link at the end.
func (q *queue[T]) append(l *link[T], elem *T) {
	if q.root.next == nil {
		q.root.next, q.root.prev = &q.root, &q.root
	}
	l.elem, l.prev, l.next = elem, q.root.prev, &q.root
	l.prev.next, l.next.prev = l, l
}

// unlink removes an element from the queue that it is in. It does nothing if the
// element is in none.
func (l *link[T]) unlink() {
	if l.next == nil {
		return
	}
	l.prev.next, l.next.prev = l.next, l.prev
	*l = link[T]{}
}
