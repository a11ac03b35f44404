package audit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// party returns a denial of a random caller: an identity, or a source without one, in a
// few networks and on a few listeners.
func party(rng *rand.Rand) Record {
	rec := Record{
		Event: EventDecision, Verdict: allowlist.Deny, Listener: fmt.Sprint(rng.IntN(3)),
		Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(4)), byte(rng.IntN(5))}), 1),
	}
	if rng.IntN(2) == 0 {
		rec.Identity = spiffeid.RequireFromString(fmt.Sprint("spiffe://td.example/", rng.IntN(6)))
	}
	if rng.IntN(4) == 0 { // one caller has most denials
		rec.Identity = spiffeid.RequireFromString("spiffe://td.example/flooder")
	}
	return rec
}

// check compares the counts of a node with the nodes and seats below it.
func (n *node[T]) check(t *testing.T) {
	t.Helper()
	seats, most, turns := 0, 0, 0
	for at := n.first; at != nil; at = at.next {
		seats++
	}
	for k, kid := range n.kids {
		if kid.key != k || kid.parent != n || n.byCount[kid.index] != kid || kid.count == 0 {
			t.Fatalf("the kid %v is not in its place: %+v", k, kid)
		}
		kid.check(t)
		seats, most = seats+kid.count, max(most, kid.count)
	}
	for kid := n.turn; kid != nil && (turns == 0 || kid != n.turn); kid = kid.next {
		turns++
	}
	if seats != n.count || turns != len(n.kids) || len(n.byCount) != len(n.kids) {
		t.Fatalf("%v counts %d of %d, %d of %d kids have turns", n.key, n.count, seats, turns, len(n.kids))
	}
	if len(n.byCount) > 0 && n.byCount[0].count != most {
		t.Fatalf("the first kid of %v has %d, another %d", n.key, n.byCount[0].count, most)
	}
}

// TestCountsOfSharesAddUp adds and removes seats at random, and checks the counts.
func TestCountsOfSharesAddUp(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var s shares[int]
	var seats []*seat[int]
	for i := range 20000 {
		if rng.IntN(400) < len(seats) {
			j := rng.IntN(len(seats))
			s.remove(seats[j])
			s.remove(seats[j]) // a second call does nothing
			seats = slices.Delete(seats, j, j+1)
		} else {
			rec := party(rng)
			at := &seat[int]{value: i}
			s.put(at, s.leaf(networkPath(nil, &rec)))
			seats = append(seats, at)
		}
		if i%50 == 0 {
			s.root.check(t)
		}
		if s.root.count != len(seats) {
			t.Fatalf("%d seats, want %d", s.root.count, len(seats))
		}
	}
	for _, at := range seats {
		s.remove(at)
	}
	if s.root.check(t); s.root.count != 0 {
		t.Errorf("%d left", s.root.count)
	}
}

// TestEveryWaitingCallerGetsItsTurn lets callers wait at random and serves them. Between
// two turns of a waiting caller there may be at most twice as many turns as callers.
func TestEveryWaitingCallerGetsItsTurn(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const callers = 8 // six identities, the flooder, and all callers without an identity
	w := waiting{size: 1 << 20}
	passed := map[key]int{} // turns of others since a caller's last turn or its arrival
	left := map[key]int{}
	order := map[string]time.Time{} // time of a caller's last record at a place
	now := time.Unix(0, 0)
	for range 50000 {
		for range rng.IntN(3) {
			rec := party(rng)
			now = now.Add(1)
			rec.Time = now
			k := callerPath(nil, &rec)[0]
			if w.add(&waiter{rec: &rec}) != nil {
				t.Fatal("no room")
			}
			if left[k]++; left[k] == 1 {
				passed[k] = 0
			}
		}
		for range 1 + rng.IntN(2) {
			if w.count() == 0 {
				break
			}
			it := w.pop()
			served := callerPath(nil, it.rec)[0]
			one := fmt.Sprint(networkPath(nil, it.rec))
			if it.rec.Time.Before(order[one]) {
				t.Fatalf("%s is not served in its order", one)
			}
			order[one] = it.rec.Time
			for k := range passed {
				if k == served {
					continue
				}
				if passed[k]++; passed[k] > 2*callers {
					t.Fatalf("%v was passed over %d times", k, passed[k])
				}
			}
			if left[served]--; left[served] == 0 {
				delete(left, served)
				delete(passed, served)
			} else {
				passed[served] = 0
			}
		}
	}
}

// TestManyIdentitiesOfOneSourceDelayNoOther checks that neither many identities of one
// source nor one identity with many sources keep another caller waiting.
func TestManyIdentitiesOfOneSourceDelayNoOther(t *testing.T) {
	addr := func(a, b, c int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(a), byte(b), byte(c)}), 1)
	}
	for name, flood := range map[string]func(i int) Record{
		"identities of one source": func(i int) Record {
			return Record{Identity: spiffeid.RequireFromString(fmt.Sprint("spiffe://td.example/job/", i)), Client: addr(1, 1, 1)}
		},
		"identities of one network": func(i int) Record {
			return Record{Identity: spiffeid.RequireFromString(fmt.Sprint("spiffe://td.example/job/", i)), Client: addr(1, 1, i%250)}
		},
		"one identity of many networks": func(i int) Record {
			return Record{Identity: spiffeid.RequireFromString("spiffe://td.example/job"), Client: addr(1, i%250, i/250)}
		},
		"one identity of one source": func(int) Record {
			return Record{Identity: spiffeid.RequireFromString("spiffe://td.example/job"), Client: addr(1, 1, 1)}
		},
		"strangers of many networks": func(i int) Record { return Record{Client: addr(i/250, i%250, 1)} },
		"one stranger":               func(int) Record { return Record{Client: addr(1, 1, 1)} },
	} {
		for _, size := range []int{1 << 20, 1000} {
			w := waiting{size: size}
			refused := 0
			for i := range 1500 {
				rec := flood(i)
				if w.add(&waiter{rec: &rec}) != nil {
					refused++
				}
			}
			if size > 1500 && refused > 0 || w.count() > size {
				t.Errorf("%s: %d have no room, %d wait", name, refused, w.count())
			}
			quiet := &Record{Identity: spiffeid.RequireFromString("spiffe://td.example/quiet"), Client: addr(200, 1, 1)}
			it := &waiter{rec: quiet}
			if without := w.add(it); without == it {
				t.Fatalf("%s in a room of %d: the other has none", name, size)
			}
			for n := 1; w.pop() != it; n++ {
				if n == 4 {
					t.Fatalf("%s in a room of %d: the other waits for more than %d", name, size, n)
				}
			}
		}
	}
}

// TestCallerWithTheMostRecordsLosesOne checks that two identities that both had a record
// displaced have equal room, give or take one, in whatever order records arrive.
func TestCallerWithTheMostRecordsLosesOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		w := waiting{size: 40 + rng.IntN(100)}
		refused := map[key]bool{}
		for range 2000 {
			rec := party(rng)
			rec.Client = addrPort("192.0.2.1:1") // one place, so that only callers count
			if without := w.add(&waiter{rec: &rec}); without != nil {
				refused[callerPath(nil, without.rec)[0]] = true
			}
		}
		w.callers.root.check(t)
		w.networks.root.check(t)
		if w.count() != w.size || w.networks.root.count != w.size {
			t.Fatalf("%d and %d wait in a room of %d", w.count(), w.networks.root.count, w.size)
		}
		lowest, highest := w.size, 0
		for k := range refused {
			if n := w.callers.root.kids[k]; n != nil && k.name != "" {
				lowest, highest = min(lowest, n.count), max(highest, n.count)
			}
		}
		if highest-lowest > 1 {
			t.Errorf("%d and %d of %d", lowest, highest, w.size)
		}
	}
}
