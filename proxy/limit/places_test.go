package limit

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sources returns that many of different addresses.
func sources(t *testing.T, n int) []*Source {
	t.Helper()
	s := NewSources(Config{})
	all := make([]*Source, n)
	for i := range all {
		source, standing := s.Open(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
		if standing != Within {
			t.Fatal(standing)
		}
		all[i] = source
	}
	return all
}

// placed is somebody who gives a place back when it is taken away.
type placed struct {
	place *Place
	cut   chan struct{}
	gone  bool
}

func hold(t *testing.T, p *Places, s *Source) *placed {
	t.Helper()
	h := &placed{cut: make(chan struct{}, 1)}
	var err error
	if h.place, err = p.Take(t.Context(), s, func() { h.cut <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestAGreedySourceGivesWay: a source that has all places loses them, the oldest
// first, until another one has as many; nobody loses one to its own source.
func TestAGreedySourceGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, src := NewPlaces(4), sources(t, 2)
		var greedy []*placed
		for range 4 {
			greedy = append(greedy, hold(t, p, src[0]))
		}
		var taking sync.WaitGroup
		over := make(chan struct{})
		take := func(s *Source) {
			taking.Go(func() {
				h := hold(t, p, s)
				<-over
				h.place.Close()
			})
			synctest.Wait()
		}
		take(src[0])                          // it waits before the other one, and is served after it
		for n, want := range []int{1, 2, 2} { // the third of the other one would be more than its half
			take(src[1])
			cut := 0
			for _, h := range greedy {
				cut += len(h.cut)
				if len(h.cut) > 0 && !h.gone {
					h.gone = h.place.Close()
					synctest.Wait()
				}
			}
			if cut != want {
				t.Errorf("after %d of another source, %d places are taken away, want %d", n+1, cut, want)
			}
		}
		for i, h := range greedy {
			if !h.gone && h.place.Close() || h.gone != (i < 2) || len(h.cut) != 0 != (i < 2) {
				t.Errorf("place %d: taken away %v, cut %d times", i, h.gone, len(h.cut))
			}
		}
		close(over)
		taking.Wait()
		p.empty(t, 4)
	})
}

// TestPlacesGoInTurn: a source that waits for many does not wait for all of them
// before another one.
func TestPlacesGoInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, src := NewPlaces(1), sources(t, 3)
		first := hold(t, p, src[0])
		var order []int
		var taking sync.WaitGroup
		for _, who := range []int{1, 1, 1, 2, 0} {
			taking.Go(func() {
				h := hold(t, p, src[who])
				order = append(order, who) // one at a time: there is one place
				h.place.Close()
			})
			synctest.Wait()
		}
		first.place.Close()
		taking.Wait()
		want := []int{1, 2, 0, 1, 1}
		for i := range want {
			if order[i] != want[i] {
				t.Fatalf("places were given to %v, want %v", order, want)
			}
		}
		p.empty(t, 1)
	})
}

func TestWaitingForAPlaceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, src := NewPlaces(1), sources(t, 2)
		first := hold(t, p, src[0])
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Take(ctx, src[1], func() {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if len(first.cut) != 0 {
			t.Error("the only place of a source was taken away")
		}
		first.place.Close()
		p.empty(t, 1)
	})
}

// TestPlacesAreNeverMore, whoever comes, waits, gives up and is displaced.
func TestPlacesAreNeverMore(t *testing.T) {
	const places = 3
	p, src := NewPlaces(places), sources(t, 5)
	var used, most int
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 400 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond)
			defer cancel()
			place, err := p.Take(ctx, src[i*i%5], func() {})
			if err != nil {
				return
			}
			mu.Lock()
			used++
			most = max(most, used)
			mu.Unlock()
			mu.Lock()
			used--
			mu.Unlock()
			place.Close()
		})
	}
	all.Wait()
	if most > places {
		t.Errorf("%d places were taken at a time", most)
	}
	p.empty(t, places)
}

// empty checks that nobody has a place or waits for one.
func (p *Places) empty(t *testing.T, free int) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free != free || len(p.taken)+len(p.wait)+len(p.turns) != 0 {
		t.Errorf("%d places are free, want %d; taken %v, wait %v, turns %v", p.free, free, p.taken, p.wait, p.turns)
	}
}

// TestStrangersOfASource: what certificates cost that do not verify is counted by
// source, is owed when it is more than was left, and comes back with time.
func TestStrangersOfASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := sources(t, 2)
		for range 10 {
			if !src[0].Left() {
				t.Fatal("nothing is left too early")
			}
			src[0].Spend(DefaultStrangers/10 + time.Microsecond)
		}
		if src[0].Left() || !src[1].Left() {
			t.Error("a source over its budget has something left, or another one has not")
		}
		time.Sleep(time.Second / 2)
		if !src[0].Left() {
			t.Error("nothing comes back")
		}
		src[0].Spend(time.Hour)
		time.Sleep(time.Second / 4)
		if src[0].Left() {
			t.Error("nothing is owed")
		}
		time.Sleep(time.Second)
		if !src[0].Left() {
			t.Error("more is owed than of a second")
		}
		var none *Source
		none.Spend(time.Hour)
		if !none.Left() {
			t.Error("a unix socket has a budget")
		}
	})
}

// TestASourceInDebtIsRemembered: it would come back with a fresh budget.
func TestASourceInDebtIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSources(Config{})
		addr := netip.MustParseAddr("198.51.100.7")
		debtor, _ := s.Open(addr)
		debtor.Spend(time.Hour)
		debtor.Spend(time.Hour)
		debtor.Close()
		time.Sleep(sweepEvery)
		for i := range maxKeys + 1 {
			other, _ := s.Open(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}))
			other.Close()
		}
		if again, _ := s.Open(addr); again.Left() {
			t.Error("the debt is forgotten")
		}
	})
}
