package audit

// shares holds who has how much of something that has too little room for all:
// places in a queue, or windows. It is a tree of keys, in which every key counts
// what it and the keys below it have. The zero value is empty.
type shares[T any] struct {
	root node[T]
	free *node[T] // linked by next; nodes that may be used again
	kept int      // nodes in free
}

// maxFreeNodes bounds the nodes that are kept to be used again.
const maxFreeNodes = 64

// node is a key in a tree of shares.
type node[T any] struct {
	key    key
	parent *node[T] // nil for the root
	count  int      // seats at and below the node

	kids   map[key]*node[T]
	byTake []*node[T] // the kids as a heap; the first one has most
	index  int        // in the parent's byTake
	turn   *node[T]   // the kid that is served next; nil if there is none

	prev, next *node[T] // siblings, in a circle

	first, last *seat[T] // of a leaf, in the order in which they came
}

// seat is one place that somebody has. It is part of what has the place, and must
// not be copied while it is taken.
type seat[T any] struct {
	of         T        // what has the place
	leaf       *node[T] // nil if it has none
	prev, next *seat[T] // in the leaf
}

// leaf returns the node at the end of a path. If it was not there, put must follow.
func (s *shares[T]) leaf(path []key) *node[T] {
	n := &s.root
	for _, k := range path {
		n = s.kid(n, k)
	}
	return n
}

// kid returns the node of a key below another, whose turn comes last if it is new.
func (s *shares[T]) kid(parent *node[T], k key) *node[T] {
	if len(parent.byTake) > 0 && parent.byTake[0].key == k { // a flood is found at once
		return parent.byTake[0]
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
	n.key, n.parent, n.index = k, parent, len(parent.byTake)
	if parent.kids == nil {
		parent.kids = map[key]*node[T]{}
	}
	parent.kids[k] = n
	parent.byTake = append(parent.byTake, n)
	if parent.turn == nil {
		n.prev, n.next, parent.turn = n, n, n
	} else {
		n.prev, n.next = parent.turn.prev, parent.turn
		n.prev.next, n.next.prev = n, n
	}
	return n
}

// put takes a seat at a leaf.
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

// remove gives a seat up, if it is taken.
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
	end := len(p.byTake) - 1 // where it is, or another that has as little
	p.swap(n.index, end)
	p.byTake[end] = nil
	p.byTake = p.byTake[:end]
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

// next returns whose turn it is: of every key's, the kids are served in turn, and
// of a leaf the oldest. The caller removes it. There must be one.
func (s *shares[T]) next() T {
	n := &s.root
	for n.turn != nil {
		n.turn, n = n.turn.next, n.turn
	}
	return n.first.of
}

// most returns who has to give up a place for a newcomer, which has taken its seat
// already: the newest of the key that has most, below the key that has most, and
// so on. It is the newcomer itself where its key has as many as any other. A
// newcomer that has no seat here competes with nobody.
func (s *shares[T]) most(newcomer *seat[T]) T {
	var path [maxPathLen]*node[T] // of the newcomer, from its leaf
	depth := 0
	for n := newcomer.leaf; n != nil && n.parent != nil; n = n.parent {
		path[depth] = n
		depth++
	}
	n := &s.root
	for len(n.byTake) > 0 {
		n = n.byTake[0]
		if depth--; depth >= 0 && path[depth].parent == n.parent && path[depth].count == n.count {
			n = path[depth]
		}
	}
	return n.last.of
}

// top returns how much the key has that has most.
func (s *shares[T]) top() int {
	if len(s.root.byTake) == 0 {
		return 0
	}
	return s.root.byTake[0].count
}

// rise moves a node to its place in the parent's heap after its count has grown.
func (n *node[T]) rise() {
	p := n.parent
	for p != nil && n.index > 0 {
		above := (n.index - 1) / 2
		if p.byTake[above].count >= n.count {
			return
		}
		p.swap(above, n.index)
	}
}

// sink moves a node to its place after its count has shrunk.
func (n *node[T]) sink() {
	p := n.parent
	for p != nil {
		below := 2*n.index + 1
		if below+1 < len(p.byTake) && p.byTake[below+1].count > p.byTake[below].count {
			below++
		}
		if below >= len(p.byTake) || p.byTake[below].count <= n.count {
			return
		}
		p.swap(below, n.index)
	}
}

// swap exchanges two kids in the heap.
func (n *node[T]) swap(i, j int) {
	h := n.byTake
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
