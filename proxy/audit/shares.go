package audit

// shares counts how many seats each key has in something with limited room: a queue of
// records, or the open windows. It is a tree of keys, in which every node counts
// the seats at and below it. The zero value is empty.
type shares[T any] struct {
	root node[T]
	free *node[T] // nodes for reuse, linked by next
	kept int      // number of nodes in free
}

// maxFreeNodes bounds the nodes that are kept for reuse.
const maxFreeNodes = 64

// node is a key in a tree of shares.
type node[T any] struct {
	key    key
	parent *node[T] // nil for the root
	count  int      // number of seats at and below the node

	kids    map[key]*node[T] // nodes of the keys below this one
	byCount []*node[T]       // the kids as a heap; the first one has most seats
	index   int              // in the parent's heap
	turn    *node[T]         // the kid that is served next; nil if there is none

	prev, next *node[T] // siblings in the order of their turns, in a circle

	first, last *seat[T] // seats of a leaf in the order of arrival
}

// seat is one place at a leaf. It is part of the value that has the place, and must not
// be copied while it is in use.
type seat[T any] struct {
	value      T        // the value that has the place
	leaf       *node[T] // nil if the seat is not in use
	prev, next *seat[T] // neighbours in the leaf
}

// leaf returns the node at the end of a path, and adds it if it is missing. After that
// put must follow.
func (s *shares[T]) leaf(path []key) *node[T] {
	n := &s.root
	for _, k := range path {
		n = s.kid(n, k)
	}
	return n
}

// kid returns the node of a key below parent. A new one gets the last turn.
func (s *shares[T]) kid(parent *node[T], k key) *node[T] {
	if len(parent.byCount) > 0 && parent.byCount[0].key == k { // the key of a flood is found at once
		return parent.byCount[0]
	}
	if n := parent.kids[k]; n != nil {
		return n
	}
	n := s.free
	if n != nil {
		s.free, n.next = n.next, nil
		s.kept--
	} else {
		n = new(node[T])
	}
	n.key, n.parent, n.index = k, parent, len(parent.byCount)
	if parent.kids == nil {
		parent.kids = map[key]*node[T]{}
	}
	parent.kids[k] = n
	parent.byCount = append(parent.byCount, n)
	if parent.turn == nil {
		n.prev, n.next, parent.turn = n, n, n
	} else {
		n.prev, n.next = parent.turn.prev, parent.turn
		n.prev.next, n.next.prev = n, n
	}
	return n
}

// put adds a seat to a leaf.
func (s *shares[T]) put(at *seat[T], leaf *node[T]) {
	at.leaf, at.prev, at.next = leaf, leaf.last, nil
	if leaf.last == nil {
		leaf.first = at
	} else {
		leaf.last.next = at
	}
	leaf.last = at
	for n := leaf; n != nil; n = n.parent {
		n.count++
		n.rise()
	}
}

// remove removes a seat, if it is in use.
func (s *shares[T]) remove(at *seat[T]) {
	leaf := at.leaf
	if leaf == nil {
		return
	}
	if at.prev == nil {
		leaf.first = at.next
	} else {
		at.prev.next = at.next
	}
	if at.next == nil {
		leaf.last = at.prev
	} else {
		at.next.prev = at.prev
	}
	at.leaf, at.prev, at.next = nil, nil, nil
	for n := leaf; n != nil; {
		parent := n.parent
		n.count--
		n.sink()
		if n.count == 0 && parent != nil {
			s.forget(n)
		}
		n = parent
	}
}

// forget removes a node without seats.
func (s *shares[T]) forget(n *node[T]) {
	p := n.parent
	delete(p.kids, n.key)
	end := len(p.byCount) - 1 // n, or another node without seats, is at the end after sinking
	p.swap(n.index, end)
	p.byCount[end] = nil
	p.byCount = p.byCount[:end]
	if n.index = 0; n.next == n {
		p.turn = nil
	} else {
		n.prev.next, n.next.prev = n.next, n.prev
		if p.turn == n {
			p.turn = n.next
		}
	}
	n.key, n.parent, n.prev, n.next, n.turn = key{}, nil, nil, nil, nil
	if s.kept < maxFreeNodes {
		n.next, s.free = s.free, n
		s.kept++
	}
}

// next returns the value whose turn it is: the kids of every node are served in turn,
// and a leaf's seats from the oldest. The caller removes it. There must be a seat.
func (s *shares[T]) next() T {
	n := &s.root
	for n.turn != nil {
		n.turn, n = n.turn.next, n.turn
	}
	return n.first.value
}

// victim returns the value that loses its seat to a newcomer, which has its own seat
// already. It goes down the tree, from every node to the kid with the most seats, and
// returns the newest value of the leaf at the end. If several kids have the most seats and
// one of them is on the newcomer's path, it takes that one. The newcomer may be in another
// tree; then it has no path here.
func (s *shares[T]) victim(newcomer *seat[T]) T {
	var path [maxPathLen]*node[T] // nodes of the newcomer, from its leaf up
	depth := 0
	for n := newcomer.leaf; n != nil && n.parent != nil; n = n.parent {
		path[depth] = n
		depth++
	}
	n := &s.root
	for len(n.byCount) > 0 {
		n = n.byCount[0]
		if depth--; depth >= 0 && path[depth].parent == n.parent && path[depth].count == n.count {
			n = path[depth]
		}
	}
	return n.last.value
}

// top returns the largest number of seats that a key below the root has.
func (s *shares[T]) top() int {
	if len(s.root.byCount) == 0 {
		return 0
	}
	return s.root.byCount[0].count
}

// rise moves a node up in its parent's heap after its count has grown.
func (n *node[T]) rise() {
	p := n.parent
	for p != nil && n.index > 0 {
		above := (n.index - 1) / 2
		if p.byCount[above].count >= n.count {
			return
		}
		p.swap(above, n.index)
	}
}

// sink moves a node down in its parent's heap after its count has shrunk.
func (n *node[T]) sink() {
	p := n.parent
	for p != nil {
		below := 2*n.index + 1
		if below+1 < len(p.byCount) && p.byCount[below+1].count > p.byCount[below].count {
			below++
		}
		if below >= len(p.byCount) || p.byCount[below].count <= n.count {
			return
		}
		p.swap(below, n.index)
	}
}

// swap exchanges two kids in the heap.
func (n *node[T]) swap(i, j int) {
	h := n.byCount
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
