package resolve

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

func (c *cache) keep(tb testing.TB, name string, addrs ...netip.Addr) {
	tb.Helper()
	h, err := allowlist.ParseHost(name)
	if err != nil {
		tb.Fatal(err)
	}
	q := Question{Name: h, Type: dns.TypeA}
	c.put(q, wire.Local(dns.TypeA, addrs, 60), time.Now(), c.generation(h))
}

// checkShards checks that the bytes, the map and the list of each shard agree.
func (c *cache) checkShards(t *testing.T) {
	t.Helper()
	for i := range c.shards {
		s := &c.shards[i]
		n, bytes := 0, 0
		var newer *entry
		for e := s.newest; e != nil; e = e.older {
			if e.newer != newer || s.entries[e.question] != e {
				t.Fatalf("shard %d: %v is out of place", i, e.question)
			}
			n, bytes, newer = n+1, bytes+e.size, e
		}
		if s.oldest != newer || n != len(s.entries) || bytes != s.bytes || bytes > s.most {
			t.Fatalf("shard %d: %d of %d entries, %d bytes of %d, at most %d", i, n, len(s.entries), bytes, s.bytes, s.most)
		}
		if s.hand != nil && s.entries[s.hand.question] != s.hand {
			t.Fatalf("shard %d: the hand points to what is gone", i)
		}
	}
}

// TestTheCacheIsBoundedInBytes checks that the cache stays within its bound, by its own
// count and by the memory of the process.
func TestTheCacheIsBoundedInBytes(t *testing.T) {
	const most = 8 << 20
	addrs := addrs("192.0.2.1", "192.0.2.2")
	for name, n := range map[string]int{"many small answers": 100_000, "a few": 100} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			c := newCache(most, time.Hour)
			for i := range n {
				c.keep(t, fmt.Sprintf("some-host-%d.namespace.svc.example", i), addrs...)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			entries, bytes := c.size()
			c.checkShards(t)
			if bytes > most || n == 100 && entries != n || n > 100 && bytes < most*9/10 {
				t.Errorf("%d entries with %d bytes", entries, bytes)
			}
			grown := int(after.HeapAlloc) - int(before.HeapAlloc)
			t.Logf("%d entries count as %d bytes, the heap grew by %d", entries, bytes, grown)
			if grown > most*5/4 {
				t.Errorf("the heap grew by %d bytes for a cache of %d", grown, most)
			}
			runtime.KeepAlive(c)
		})
	}
}

// TestUsedEntriesStayInTheCache checks that entries which are used stay in the cache
// while ten times as many as there is room for are added and used once.
func TestUsedEntriesStayInTheCache(t *testing.T) {
	c := newCache(1<<20, time.Hour)
	wanted := func(i int) Question {
		return question(t, fmt.Sprintf("wanted-%d.example", i), dns.TypeA)
	}
	for i := range 100 {
		c.keep(t, wanted(i).Name.String(), addrs("192.0.2.1")...)
	}
	for i := range 30_000 {
		c.keep(t, fmt.Sprintf("once-%d.example", i), addrs("192.0.2.1")...)
		c.get(wanted(i % 100))
	}
	c.checkShards(t)
	for i := range 100 {
		if c.get(wanted(i)) == nil {
			t.Errorf("%v is gone", wanted(i))
		}
	}
	if c.get(question(t, "once-1.example", dns.TypeA)) != nil {
		t.Error("what came once and first is there still")
	}
}

// TestUsedEntryStaysUntilTheHandHasGoneRound checks that a used entry stays until the hand
// has gone round, even if it is not used in between.
func TestUsedEntryStaysUntilTheHandHasGoneRound(t *testing.T) {
	c := newCache(cacheShards*4096, time.Hour)
	n := 0
	keep := func() (name string) { // in the first shard
		for {
			name = fmt.Sprintf("n%d.example", n)
			n++
			if c.shard(host(t, name)) == &c.shards[0] {
				c.keep(t, name, addrs("192.0.2.1")...)
				return name
			}
		}
	}
	keep()
	spared := question(t, keep(), dns.TypeA)
	for before := -1; len(c.shards[0].entries) > before; {
		before = len(c.shards[0].entries)
		keep()
	}
	// The first was evicted for the last; the hand points to the second.
	c.get(spared)
	for range len(c.shards[0].entries) - 2 {
		keep()
	}
	if c.get(spared) == nil {
		t.Error("it went before the others that were there")
	}
}

// TestAnAnswerLargerThanTheCache checks that an answer which is too large for the cache
// is not kept, and removes the answer that it would have replaced.
func TestAnAnswerLargerThanTheCache(t *testing.T) {
	c := newCache(cacheShards*1024, time.Hour)
	var many []netip.Addr
	for i := range 200 {
		many = append(many, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	c.keep(t, "a.example", addrs("192.0.2.1")...)
	c.keep(t, "a.example", many...) // replaces the other one, for which it is too large
	if n, bytes := c.size(); n != 0 || bytes != 0 {
		t.Errorf("%d entries, %d bytes", n, bytes)
	}
	c.checkShards(t)
}

// TestTheCacheInAnyOrder keeps, gets and flushes in a random order, and checks that the
// bytes, the map and the list of each shard agree.
func TestTheCacheInAnyOrder(t *testing.T) {
	c := newCache(cacheShards*2048, time.Hour)
	random := uint32(1)
	for range 20_000 {
		random = random*1664525 + 1013904223
		name := fmt.Sprintf("n%d.example", random>>8%150)
		switch random >> 24 % 4 {
		case 0:
			c.flush(host(t, name))
		case 1:
			c.get(question(t, name, dns.TypeA))
		default:
			c.keep(t, name, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")[:1+random>>16%3]...)
		}
	}
	c.checkShards(t)
}

// public is a filter that allows every name and no private address.
type public struct{ everything }

// Addr implements Filter.
func (public) Addr(addr netip.Addr) bool { return !addr.IsPrivate() }

// warm returns a resolver that has cached the answer to a question, with an alias and
// two addresses, one of which is private.
func warm(tb testing.TB) (*Resolver, Question, Reply) {
	tb.Helper()
	s := newServer(tb, always(answer{records: []string{
		"www.api.example. 60 IN CNAME edge.example.", "edge.example. 60 IN A 192.0.2.1", "edge.example. 60 IN A 10.0.0.1",
	}}))
	r := newResolver(tb, Config{}, s)
	q := question(tb, "www.api.example", dns.TypeA)
	if _, err := r.Lookup(tb.Context(), Asker{}, q); err != nil {
		tb.Fatal(err)
	}
	return r, q, Reply{ID: 7, RD: true, Question: []byte("\x03WWW\x03api\x07example\x00\x00\x01\x00\x01")}
}

// TestCacheHitAllocatesNothing checks that a look-up, its response and the binding of addresses
// that are bound already allocate nothing.
func TestCacheHitAllocatesNothing(t *testing.T) {
	r, q, reply := warm(t)
	id, now := decide(t, "a.example", []string{"a.example"}, nil).Holder(), time.Now()
	buf := make([]byte, 0, 1232)
	var filter Filter = public{}
	hit := func() {
		a, ok := r.Cached(q, now)
		if !ok {
			t.Fatal("no hit")
		}
		r.Bind(id, a, now, filter)
		buf, _ = a.Append(buf[:0], reply, now, filter)
	}
	hit()
	if n := testing.AllocsPerRun(1000, hit); n != 0 {
		t.Errorf("%v allocations", n)
	}
	var m dns.Msg
	if err := m.Unpack(buf); err != nil || len(m.Answer) != 2 || m.Id != 7 {
		t.Errorf("%v, %v", m, err)
	}
}

func BenchmarkHit(b *testing.B) {
	r, q, reply := warm(b)
	buf, now := make([]byte, 0, 1232), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		a, ok := r.Cached(q, now)
		if !ok {
			b.Fatal("no hit")
		}
		buf, _ = a.Append(buf[:0], reply, now, public{})
	}
}

func BenchmarkHitAndBind(b *testing.B) {
	r, q, reply := warm(b)
	id := decide(b, "a.example", []string{"a.example"}, nil).Holder()
	buf, now := make([]byte, 0, 1232), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		a, ok := r.Cached(q, now)
		if !ok {
			b.Fatal("no hit")
		}
		r.Bind(id, a, now, public{})
		buf, _ = a.Append(buf[:0], reply, now, public{})
	}
}

func BenchmarkHitParallel(b *testing.B) {
	r, q, reply := warm(b)
	now := time.Now()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 0, 1232)
		for pb.Next() {
			a, _ := r.Cached(q, now)
			buf, _ = a.Append(buf[:0], reply, now, public{})
		}
	})
}
