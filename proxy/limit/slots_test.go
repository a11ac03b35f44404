package limit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

func source(n int) Owner {
	return Owner{Addr: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})}
}
func identified(n int) Owner { return Owner{Share: ShareIdentity, Name: fmt.Sprint("identity", n)} }
func local(n int) Owner      { return Owner{Share: ShareLocal, Name: fmt.Sprint("listener", n)} }

// held is a slot, and what its test knows of it.
type held struct {
	Slot

	name   string
	cuts   []Cause
	owner  Owner // who the slot counts for
	asked  int   // number of requests in progress
	rested int   // when the last request ended, in steps of the book
}

// book is a second, slow and simple implementation of the rules by which slots are given
// up.
type book struct {
	t      *testing.T
	slots  *Slots
	shares Shares
	open   []*held
	now    int
}

func newBook(t *testing.T, shares Shares) *book {
	t.Helper()
	return &book{t: t, slots: NewSlots(shares), shares: shares}
}

func (b *book) enter(name string, owner Owner) (*held, Cause) {
	h := &held{name: name, owner: owner}
	cause := b.slots.Enter(&h.Slot, owner, func(c Cause) { h.cuts = append(h.cuts, c) })
	b.now++
	h.rested = b.now
	if cause == NoCause {
		b.open = append(b.open, h)
	}
	return h, cause
}

// count counts the open slots for which is holds.
func (b *book) count(is func(*held) bool) (n int) {
	for _, h := range b.open {
		if is(h) {
			n++
		}
	}
	return n
}

// check returns the slots that were given up since the last check, and compares the
// slots in use with the book and with the bounds.
func (b *book) check(what string) (cut []*held) {
	b.t.Helper()
	before := len(b.open)
	b.open = slices.DeleteFunc(b.open, func(h *held) bool {
		if len(h.cuts) > 0 {
			cut = append(cut, h)
		}
		return len(h.cuts) > 0
	})
	for _, h := range cut {
		if len(h.cuts) != 1 || h.GivenUp() != h.cuts[0] || h.cuts[0] == NoCause {
			b.t.Fatalf("%s: %s was given up for %v, and says %v", what, h.name, h.cuts, h.GivenUp())
		}
		if h.asked > 0 && !b.shares.AllYield {
			b.t.Fatalf("%s: %s has a request and is given up", what, h.name)
		}
		if h.owner.Share == ShareIdentity && !b.shares.IdleYields {
			b.t.Fatalf("%s: %s of a proven identity is given up", what, h.name)
		}
	}
	if len(cut) > 1 {
		b.t.Fatalf("%s: %d of %d were given up for one", what, len(cut), before)
	}
	known := b.count(func(h *held) bool { return h.owner.Share.known() })
	if unknown := len(b.open) - known; unknown > b.shares.Unidentified || known > b.shares.Identified {
		b.t.Fatalf("%s: %d without and %d with an identity, of %+v", what, unknown, known, b.shares)
	}
	if got := b.slots.InUse(); got != len(b.open) {
		b.t.Fatalf("%s: %d are in use, want %d", what, got, len(b.open))
	}
	for _, h := range b.open {
		if n := b.count(func(o *held) bool { return o.owner == h.owner }); n > b.slots.most(h.owner.Share) {
			b.t.Fatalf("%s: %+v has %d", what, h.owner, n)
		}
	}
	return cut
}

// victim returns the slot that must be given up for another slot of an owner, or nil if
// none must. ok is false if there is no room.
func (b *book) victim(owner Owner) (victim *held, ok bool) {
	of := func(is func(*held) bool) *held {
		var oldest *held
		for _, h := range b.open {
			yields := h.asked == 0 && (h.owner.Share != ShareIdentity || b.shares.IdleYields)
			if yields && is(h) && (oldest == nil || h.rested < oldest.rested) {
				oldest = h
			}
		}
		return oldest
	}
	idle := func(owner Owner) int {
		return b.count(func(h *held) bool {
			return h.owner == owner && h.asked == 0 && (owner.Share != ShareIdentity || b.shares.IdleYields)
		})
	}
	side := func(h *held) bool { return h.owner.Share.known() == owner.Share.known() }
	limit := b.shares.Unidentified
	if owner.Share.known() {
		limit = b.shares.Identified
	}
	switch {
	case b.count(func(h *held) bool { return h.owner == owner }) >= b.slots.most(owner.Share):
		victim = of(func(h *held) bool { return h.owner == owner })
		return victim, victim != nil
	case b.count(side) >= limit:
		most := 0
		for _, h := range b.open {
			if side(h) {
				most = max(most, idle(h.owner))
			}
		}
		// If several owners have equally many slots, any of them may lose one; see explains.
		victim = of(func(h *held) bool { return side(h) && idle(h.owner) == most })
		return victim, most > 0 && victim != nil
	}
	return nil, true
}

// explains reports whether got may have been given up although want was expected: it is
// the oldest slot of another owner with equally many.
func (b *book) explains(got, want *held) bool {
	if got == nil || want == nil {
		return got == want
	}
	idle := func(h *held) (n int) {
		for _, o := range append(slices.Clone(b.open), got) {
			if o.owner == h.owner && o.asked == 0 && o.rested < b.now { // the new slot does not count
				n++
			}
		}
		return n
	}
	for _, o := range b.open {
		if o.owner == got.owner && o.asked == 0 && o.rested < got.rested {
			return false
		}
	}
	return got == want || got.owner != want.owner && idle(got) == idle(want)
}

// TestSlotsFollowTheSecondImplementation does random things to the slots of random
// shares, and compares each step with the book.
func TestSlotsFollowTheSecondImplementation(t *testing.T) {
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 1))
		shares := SharesOf(2 + r.IntN(80))
		shares.IdleYields = seed%3 == 0
		if seed%4 == 0 {
			shares.PerIdentity, shares.PerSource = 1+r.IntN(4), 1+r.IntN(4)
		}
		b := newBook(t, shares)
		owner := func() Owner {
			n := int(min(r.ExpFloat64(), 8)) // a few owners have many slots
			switch r.IntN(8) {
			case 0, 1:
				return identified(n)
			case 2, 3:
				return local(n)
			case 4:
				return Owner{Share: ShareProxy, Addr: netip.IPv6Loopback()}
			}
			return source(n)
		}
		for step := range 300 {
			what := fmt.Sprintf("seed %d step %d", seed, step)
			if len(b.open) == 0 || r.IntN(3) == 0 {
				who := owner()
				want, ok := b.victim(who)
				_, cause := b.enter(what, who)
				if (cause == NoCause) != ok {
					t.Fatalf("%s: enter %+v: %v, want room %t", what, who, cause, ok)
				}
				b.compare(what, want, ok)
				continue
			}
			h := b.open[r.IntN(len(b.open))]
			switch r.IntN(6) {
			case 0, 1:
				if !h.Begin() {
					t.Fatalf("%s: an open slot takes no request", what)
				}
				h.asked++
			case 2, 3:
				h.End()
				if h.asked == 1 {
					b.now++
					h.rested = b.now
				}
				h.asked = max(0, h.asked-1)
			case 4:
				b.open = slices.DeleteFunc(b.open, func(o *held) bool { return o == h })
				h.Leave()
				if r.IntN(2) == 0 {
					h.Leave() // a second call does nothing
				}
			case 5:
				b.move(what, h, owner())
			}
			b.check(what)
		}
		for _, h := range b.open {
			h.Leave()
		}
		if n := b.slots.InUse(); n != 0 || len(b.slots.identified.accounts)+len(b.slots.unidentified.accounts) != 0 {
			t.Fatalf("seed %d: %d are in use when all have left", seed, n)
		}
	}
}

// compare checks that the slot which was given up is the expected one, or an equivalent
// one.
func (b *book) compare(what string, want *held, ok bool) {
	b.t.Helper()
	cut := b.check(what)
	var got *held
	if len(cut) > 0 {
		got = cut[0]
	}
	if !ok {
		want = nil
	}
	if !b.explains(got, want) {
		b.t.Fatalf("%s: given up %+v, want %+v", what, got, want)
	}
}

// move moves a slot to another owner, and checks which slot was given up.
func (b *book) move(what string, h *held, to Owner) {
	b.t.Helper()
	if h.owner == to {
		if cause := h.Move(to); cause != NoCause {
			b.t.Fatalf("%s: a move to where it is: %v", what, cause)
		}
		return
	}
	before := slices.Clone(b.open)
	b.open = slices.DeleteFunc(b.open, func(o *held) bool { return o == h })
	want, ok := b.victim(to)
	b.open = before
	cause := h.Move(to)
	if (cause == NoCause) != ok {
		b.t.Fatalf("%s: move to %+v: %v, want room %t", what, to, cause, ok)
	}
	if ok {
		h.owner = to
	}
	b.now++
	if h.asked == 0 {
		h.rested = b.now
	}
	b.compare(what, want, ok)
}

// TestSlotGivenUpWhenAShareIsFull checks which slot is given up, if any, for each kind
// of full share.
func TestSlotGivenUpWhenAShareIsFull(t *testing.T) {
	shares := Shares{Unidentified: 4, PerSource: 2, Identified: 4, PerIdentity: 2, PerLocal: 3}
	for _, row := range []struct {
		name  string
		shape func(*Shares)
		open  []Owner // owners of the open slots, the oldest first
		asked []int   // indexes of the slots with a request
		enter Owner
		gone  int // index of the slot that is given up; -1 if none is
		cause Cause
		full  bool // the new slot is refused, for the cause
	}{
		{name: "a source that has its share loses its own oldest", open: []Owner{source(2), source(1), source(1)}, enter: source(1), gone: 1, cause: CauseSource},
		{name: "a source does not lose a slot with a request", open: []Owner{source(1), source(1)}, asked: []int{0}, enter: source(1), gone: 1, cause: CauseSource},
		{name: "a source with requests on all its slots gets no other", open: []Owner{source(1), source(1)}, asked: []int{0, 1}, enter: source(1), gone: -1, cause: CauseSource, full: true},
		{name: "when the unidentified share is full, the source with most slots loses one", open: []Owner{source(1), source(2), source(2), source(3)}, enter: source(4), gone: 1, cause: CauseUnidentified},
		{name: "the source with most slots is the one with most without a request", open: []Owner{source(2), source(2), source(1), source(3)}, asked: []int{0, 1}, enter: source(4), gone: 2, cause: CauseUnidentified},
		{name: "an identity that has its share gets no other slot, and loses none", open: []Owner{identified(1), identified(1)}, enter: identified(1), gone: -1, cause: CauseCaller, full: true},
		{name: "with IdleYields an identity that has its share loses its own oldest", shape: func(s *Shares) { s.IdleYields = true }, open: []Owner{identified(1), identified(1)}, enter: identified(1), gone: 0, cause: CauseCaller},
		{name: "when all slots are those of identities, another identity gets none", open: []Owner{identified(1), identified(1), identified(2), identified(2)}, enter: identified(3), gone: -1, cause: CauseAll, full: true},
		{name: "a listener loses its own oldest", open: []Owner{local(1), local(1), local(1)}, enter: local(1), gone: 0, cause: CauseCaller},
		{name: "a listener with requests on all its slots gets no other", open: []Owner{local(1), local(1), local(1)}, asked: []int{0, 1, 2}, enter: local(1), gone: -1, cause: CauseCaller, full: true},
		{name: "when the identified share is full, a listener with most slots loses one to an identity", open: []Owner{identified(2), local(1), local(1), local(2)}, enter: identified(1), gone: 1, cause: CauseAll},
		{name: "with AllYield the slot that got its request first is given up", shape: func(s *Shares) { s.AllYield = true }, open: []Owner{source(1), source(1)}, asked: []int{1, 0}, enter: source(1), gone: 1, cause: CauseSource},
	} {
		t.Run(row.name, func(t *testing.T) {
			shares := shares
			if row.shape != nil {
				row.shape(&shares)
			}
			b := newBook(t, shares)
			all := make([]*held, len(row.open))
			for i, who := range row.open {
				var cause Cause
				if all[i], cause = b.enter(fmt.Sprint(i), who); cause != NoCause {
					t.Fatal(cause)
				}
			}
			for _, i := range row.asked {
				all[i].Begin()
				all[i].asked++
			}
			_, cause := b.enter("new", row.enter)
			if (cause != NoCause) != row.full || row.full && cause != row.cause {
				t.Errorf("enter: %v", cause)
			}
			for i, h := range all {
				want := NoCause
				if i == row.gone {
					want = row.cause
				}
				if h.GivenUp() != want {
					t.Errorf("%d was given up for %v, want %v", i, h.GivenUp(), want)
				}
				if h.Begin() != (want == NoCause) {
					t.Errorf("%d: a slot takes a request, or not, and is given up for %v", i, want)
				}
			}
		})
	}
}

// TestSharesOf checks that the shares of every total fit into each other, and that those
// of the default total are the documented ones.
func TestSharesOf(t *testing.T) {
	for total := range 2000 {
		s := SharesOf(total)
		least := min(s.Unidentified, s.PerSource, s.Identified, s.PerIdentity, s.PerLocal)
		if least < 1 || s.Unidentified+s.Identified != max(2, total) || s.PerSource > s.Unidentified || s.PerIdentity > s.Identified || s.PerLocal > s.Identified {
			t.Fatalf("of %d: %+v", total, s)
		}
	}
	want := Shares{Unidentified: 4096, PerSource: 512, Identified: 12288, PerIdentity: 6144, PerLocal: 4096}
	if got := SharesOf(16384); got != want {
		t.Errorf("of the default %+v, want %+v", got, want)
	}
}

// TestZeroSlots checks that the zero Slots has no room, and that the zero Slot takes
// requests.
func TestZeroSlots(t *testing.T) {
	var none Slots
	for _, who := range []Owner{{}, {Share: ShareProxy}, identified(1), local(1)} {
		if none.Enter(new(Slot), who, func(Cause) {}) == NoCause {
			t.Errorf("zero slots have room for %+v", who)
		}
	}
	var s Slot
	s.End()
	s.Leave()
	if !s.Begin() || s.Move(local(1)) != NoCause || s.GivenUp() != NoCause {
		t.Error("the zero slot is given up")
	}
}

// TestConcurrentSlotsStayBelowTheBound checks that concurrent callers never have more
// slots than there are, and that a slot which was given up is not returned a second
// time.
func TestConcurrentSlotsStayBelowTheBound(t *testing.T) {
	slots := NewSlots(SharesOf(64))
	var running sync.WaitGroup
	for n := range 8 {
		running.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 2))
			var open []*Slot
			for range 2000 {
				s := new(Slot)
				if slots.Enter(s, source(r.IntN(20)), func(Cause) {}) == NoCause {
					open = append(open, s)
				}
				if len(open) == 0 {
					continue
				}
				switch s = open[r.IntN(len(open))]; r.IntN(4) {
				case 0:
					s.Move(identified(r.IntN(3)))
				case 1:
					s.Begin()
				case 2:
					s.End()
				case 3:
					s.Leave()
				}
				if used := slots.InUse(); used > 64 {
					t.Errorf("%d are in use", used)
				}
			}
			for _, s := range open {
				s.Leave()
			}
		})
	}
	running.Wait()
	if n := slots.InUse(); n != 0 {
		t.Errorf("%d are in use when all have left", n)
	}
}

// TestSlotsAllocateNothing checks that a connection takes its slot, shows its identity,
// begins a request and leaves without an allocation, however many connections there are.
func TestSlotsAllocateNothing(t *testing.T) {
	slots := NewSlots(SharesOf(16384))
	open := make([]Slot, 3000)
	for i := range open {
		if slots.Enter(&open[i], source(i%50), func(Cause) {}) != NoCause {
			t.Fatal(i)
		}
	}
	cut, s := func(Cause) {}, new(Slot)
	if n := testing.AllocsPerRun(100, func() {
		*s = Slot{}
		slots.Enter(s, Owner{Addr: netip.IPv6Unspecified()}, cut)
		s.Move(Owner{Share: ShareIdentity, Name: "spiffe://prod.example/a"})
		s.Begin()
		s.Leave()
	}); n > 0 {
		t.Errorf("a connection allocates %v times for its slot", n)
	}
}

func BenchmarkSlot(b *testing.B) {
	slots := NewSlots(SharesOf(16384))
	open := make([]Slot, 4096)
	for i := range open {
		slots.Enter(&open[i], source(i), func(Cause) {})
	}
	cut, s := func(Cause) {}, new(Slot)
	b.ReportAllocs()
	for b.Loop() {
		*s = Slot{}
		slots.Enter(s, Owner{Addr: netip.IPv6Unspecified()}, cut)
		s.Move(Owner{Share: ShareIdentity, Name: "spiffe://prod.example/a"})
		s.Begin()
		s.Leave()
	}
}
