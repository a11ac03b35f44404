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

// sources returns n sources of different addresses.
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

// inUse is a permit in use, whose user gives it back when it is taken away.
type inUse struct {
	permit *Permit
	cut    chan struct{}
	gone   bool
}

func hold(t *testing.T, p *Permits, s *Source) *inUse {
	t.Helper()
	h := &inUse{cut: make(chan struct{}, 1)}
	var err error
	if h.permit, err = p.Take(t.Context(), s, func() { h.cut <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestAGreedySourceGivesWay checks that a source which has all permits loses them, the
// oldest first, until another source has as many, and that no source displaces itself.
func TestAGreedySourceGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, src := NewPermits(4), sources(t, 2)
		var greedy []*inUse
		for range 4 {
			greedy = append(greedy, hold(t, p, src[0]))
		}
		var taking sync.WaitGroup
		over := make(chan struct{})
		take := func(s *Source) {
			taking.Go(func() {
				h := hold(t, p, s)
				<-over
				h.permit.Close()
			})
			synctest.Wait()
		}
		take(src[0])                          // it waits before the other one, and is served after it
		for n, want := range []int{1, 2, 2} { // a third permit would be more than half for the other source
			take(src[1])
			cut := 0
			for _, h := range greedy {
				cut += len(h.cut)
				if len(h.cut) > 0 && !h.gone {
					h.gone = h.permit.Close()
					synctest.Wait()
				}
			}
			if cut != want {
				t.Errorf("after %d of another source, %d permits are taken away, want %d", n+1, cut, want)
			}
		}
		for i, h := range greedy {
			if !h.gone && h.permit.Close() || h.gone != (i < 2) || len(h.cut) != 0 != (i < 2) {
				t.Errorf("permit %d: taken away %v, cut %d times", i, h.gone, len(h.cut))
			}
		}
		close(over)
		taking.Wait()
		p.empty(t, 4)
	})
}

// TestPermitsGoInTurn checks that the callers of a source that waits for many permits are
// not all served before those of another source.
func TestPermitsGoInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, src := NewPermits(1), sources(t, 3)
		first := hold(t, p, src[0])
		var order []int
		var taking sync.WaitGroup
		for _, who := range []int{1, 1, 1, 2, 0} {
			taking.Go(func() {
				h := hold(t, p, src[who])
				order = append(order, who) // needs no lock, since there is only one permit
				h.permit.Close()
			})
			synctest.Wait()
		}
		first.permit.Close()
		taking.Wait()
		want := []int{1, 2, 0, 1, 1}
		for i := range want {
			if order[i] != want[i] {
				t.Fatalf("permits were given to %v, want %v", order, want)
			}
		}
		p.empty(t, 1)
	})
}

// TestWaitingForAPermitEnds checks that a caller stops waiting for a permit when its
// context is done.
func TestWaitingForAPermitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, src := NewPermits(1), sources(t, 2)
		first := hold(t, p, src[0])
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Take(ctx, src[1], func() {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if len(first.cut) != 0 {
			t.Error("the only permit of a source was taken away")
		}
		first.permit.Close()
		p.empty(t, 1)
	})
}

// TestPermitsStayBelowTheBound checks that callers which come, wait and give up never
// have more permits than there are.
func TestPermitsStayBelowTheBound(t *testing.T) {
	const permits = 3
	p, src := NewPermits(permits), sources(t, 5)
	var used, most int
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 400 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond)
			defer cancel()
			permit, err := p.Take(ctx, src[i*i%5], func() {})
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
			permit.Close()
		})
	}
	all.Wait()
	if most > permits {
		t.Errorf("%d permits were taken at a time", most)
	}
	p.empty(t, permits)
}

// empty checks that nobody has a permit or waits for one.
func (p *Permits) empty(t *testing.T, free int) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free != free || len(p.taken)+len(p.waiting)+len(p.turns) != 0 {
		t.Errorf("%d permits are free, want %d; taken %v, wait %v, turns %v", p.free, free, p.taken, p.waiting, p.turns)
	}
}

// TestUnverifiedCertificatesCostTheirSource checks that verifying certificates which do
// not verify costs their source its budget of time, that the source owes at most a
// second beyond it, and that the budget refills.
func TestUnverifiedCertificatesCostTheirSource(t *testing.T) {
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

// TestASourceInDebtIsRemembered checks that a source which owes time is not forgotten,
// because it would come back with a fresh budget.
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
