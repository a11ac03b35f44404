package limit

// side is the slots of all callers with an identity, or of all without one. It is
// guarded by the mutex of the slots.
type side struct {
	most, used int
	accounts   map[Owner]*account
	// ranks has the accounts whose slots may be given up by how many of them are
	// without a request: ranks[n] those with n+1. Behind top there are none. The
	// account that has been in its rank for longest is the first.
	ranks []*queue[account]
	top   int
}

func newSide(most int) side { return side{most: most, accounts: map[Owner]*account{}, top: -1} }

// longest returns the account that has most slots without a request, nil if none has
// one that may be given up.
func (p *side) longest() *account {
	if p.top < 0 {
		return nil
	}
	return p.ranks[p.top].first()
}

// account is the slots of one owner.
type account struct {
	owner  Owner
	side   *side
	yields bool // its slots without a request may be given up
	used   int

	resting queue[Slot] // without a request, the one that rests for longest first
	idle    int         // length of resting
	busy    queue[Slot] // with a request, the one that got it first
	rank    link[account]
}

// oldest returns the slot to give up for another one of the same owner; nil if there
// is none. With a request it is one only if all yield.
func (a *account) oldest(all bool) *Slot {
	if slot := a.resting.first(); slot != nil && (a.yields || all) {
		return slot
	}
	if all {
		return a.busy.first()
	}
	return nil
}

// add puts a slot without a request behind the others.
func (a *account) add(slot *Slot) {
	a.resting.append(&slot.link, slot)
	a.ranked(a.idle + 1)
}

// remove takes away a slot without a request.
func (a *account) remove(slot *Slot) {
	slot.link.unlink()
	a.ranked(a.idle - 1)
}

// begin notes that a slot has a request.
func (a *account) begin(slot *Slot) {
	a.remove(slot)
	a.busy.append(&slot.link, slot)
}

// rest notes that a slot has none any more.
func (a *account) rest(slot *Slot) {
	slot.link.unlink()
	a.add(slot)
}

// ranked puts the account into the rank of a number of slots, which is one more or
// less than before.
func (a *account) ranked(idle int) {
	p := a.side
	if a.idle = idle; !a.yields {
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
	for p.top >= 0 && p.ranks[p.top].first() == nil { // at most once: the account went one down
		p.top--
	}
}

// A queue is a list whose links are part of what is in it, so that it allocates
// nothing. The zero value is empty. It must not be copied once something was in it.
type queue[T any] struct{ root link[T] }

// link is the place in a queue. The zero value is in none.
type link[T any] struct {
	next, prev *link[T]
	of         *T // nil of the root
}

// first returns what has been in the queue for longest, nil if it is empty.
func (q *queue[T]) first() *T {
	if q.root.next == nil {
		return nil
	}
	return q.root.next.of
}

// append puts something that is in no queue at the end.
func (q *queue[T]) append(l *link[T], of *T) {
	if q.root.next == nil {
		q.root.next, q.root.prev = &q.root, &q.root
	}
	l.of, l.prev, l.next = of, q.root.prev, &q.root
	l.prev.next, l.next.prev = l, l
}

// unlink takes something out of the queue that it is in, if it is in one.
func (l *link[T]) unlink() {
	if l.next == nil {
		return
	}
	l.prev.next, l.next.prev = l.next, l.prev
	*l = link[T]{}
}
