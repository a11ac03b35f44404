package limit

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func id(path string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://td.example/" + path) }

// holder returns a holder whose identity is proved by a certificate.
func holder(path string) allowlist.Holder {
	return allowlist.HolderOf(id(path), allowlist.ProofX509SVID)
}

// entry returns a policy entry that gives own and shared limits to a pattern.
func entry(t *testing.T, pattern string, own, shared allowlist.Limits) allowlist.Entry {
	t.Helper()
	p, err := allowlist.ParseIdentityPattern("spiffe://td.example/" + pattern)
	if err != nil {
		t.Fatal(err)
	}
	return allowlist.Entry{Pattern: p, Limits: own, SharedLimits: shared}
}

func policy(t *testing.T, entries ...allowlist.Entry) *allowlist.Policy {
	t.Helper()
	p, err := allowlist.Compile(allowlist.Spec{Entries: entries})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// open opens a tunnel, and fails the test if it is refused.
func open(t *testing.T, b *Budgets, p *allowlist.Policy, who string) *Lease {
	t.Helper()
	l, reason, _ := b.Open(p, holder(who))
	if reason != allowlist.NoReason {
		t.Fatalf("%s: %s", who, reason)
	}
	return l
}

// refused tries to open a tunnel, and fails the test unless it is refused for want.
func refused(t *testing.T, b *Budgets, p *allowlist.Policy, who string, want allowlist.Reason) {
	t.Helper()
	if l, reason, _ := b.Open(p, holder(who)); reason != want || l != nil {
		t.Errorf("%s: got %q, want %q", who, reason, want)
	}
}

// TestRequestsOfAnIdentity checks the number of requests a second of an identity.
func TestRequestsOfAnIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{Requests: 3})
		for second := range 3 {
			for range 3 {
				if !b.Request(holder("a")) {
					t.Errorf("second %d: a request too few", second)
				}
			}
			if b.Request(holder("a")) {
				t.Errorf("second %d: a request too many", second)
			}
			if second == 0 && !b.Request(holder("b")) {
				t.Error("another identity is out of requests")
			}
			time.Sleep(time.Second)
		}
	})
}

// TestOpenTunnels checks the number of open tunnels of an identity.
func TestOpenTunnels(t *testing.T) {
	b := NewBudgets(Config{})
	p := policy(t, entry(t, "a", allowlist.Limits{Tunnels: 2}, allowlist.Limits{}), entry(t, "b", allowlist.Limits{}, allowlist.Limits{}))
	first := open(t, b, p, "a")
	open(t, b, p, "a")
	refused(t, b, p, "a", allowlist.TunnelLimit)
	open(t, b, p, "b")
	first.Close()
	open(t, b, p, "a")
	refused(t, b, p, "a", allowlist.TunnelLimit)
}

// TestPlainRequests checks that plain requests count as open tunnels and upload bytes,
// but not as new tunnels.
func TestPlainRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{})
		p := policy(t, entry(t, "a", allowlist.Limits{Tunnels: 2, ConnectsPerSecond: 1, UploadPerHour: 100}, allowlist.Limits{}))
		tunnel := open(t, b, p, "a")
		for range 3 {
			l, reason, _ := b.Exchange(p, holder("a"))
			if reason != allowlist.NoReason || !l.Spend(30) {
				t.Fatalf("a plain request: %q", reason)
			}
			if l, reason, _ := b.Exchange(p, holder("a")); reason != allowlist.TunnelLimit || l != nil {
				t.Errorf("one too many: %q", reason)
			}
			refused(t, b, p, "a", allowlist.TunnelLimit)
			l.Close()
		}
		if tunnel.Spend(11) || !tunnel.Spend(10) {
			t.Error("tunnels and plain requests do not share 100 bytes")
		}
		tunnel.Close()
		refused(t, b, p, "a", allowlist.UploadLimit)
	})
}

// TestNewTunnelsPerSecond checks the default limit of new tunnels a second, and that of
// a policy.
func TestNewTunnelsPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{Identity: allowlist.Limits{ConnectsPerSecond: 2}})
		p := policy(t, entry(t, "b", allowlist.Limits{ConnectsPerSecond: 1}, allowlist.Limits{}))
		for range 2 {
			open(t, b, p, "a").Close()
		}
		refused(t, b, p, "a", allowlist.RateLimited) // by the default limit
		open(t, b, p, "b").Close()
		refused(t, b, p, "b", allowlist.RateLimited) // by the limit of the policy
		time.Sleep(time.Second)
		open(t, b, p, "a").Close()
		open(t, b, p, "b").Close()
	})
}

// TestQueries checks the default limit of queries, a limit of the policy and a shared
// limit, and that a caller without an identity has the default.
func TestQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{Identity: allowlist.Limits{DNSPerSecond: 4}})
		p := policy(
			t, entry(t, "a", allowlist.Limits{DNSPerSecond: 2}, allowlist.Limits{}), entry(t, "b", allowlist.Limits{}, allowlist.Limits{}),
			entry(t, "ci/*", allowlist.Limits{}, allowlist.Limits{DNSPerSecond: 3}),
		)
		asked := func(who allowlist.Holder) (n int) {
			for range 10 {
				if b.Query(p, who) == NoKey {
					n++
				}
			}
			return n
		}
		for second := range 3 {
			for _, row := range []struct {
				who  allowlist.Holder
				want int
			}{{holder("a"), 2}, {holder("b"), 4}, {holder("ci/a"), 3}, {holder("ci/b"), 0}, {holder("stranger"), 4}, {allowlist.Holder{}, 4}} {
				if got := asked(row.who); got != row.want {
					t.Errorf("second %d: %s asked %d, want %d", second, row.who.ID(), got, row.want)
				}
			}
			open(t, b, p, "a").Close() // tunnels do not count as queries
			time.Sleep(time.Second)
		}
	})
}

// TestQueriesAfterAReload checks that queries which were spent before a reload stay
// spent.
func TestQueriesAfterAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{})
		give := func(n int) *allowlist.Policy {
			return policy(t, entry(t, "a", allowlist.Limits{DNSPerSecond: n}, allowlist.Limits{}))
		}
		left := func(p *allowlist.Policy) (n int) {
			for b.Query(p, holder("a")) == NoKey {
				n++
			}
			return n
		}
		if n := left(give(2)); n != 2 {
			t.Errorf("there were %d queries, want 2", n)
		}
		p := give(3)
		b.Apply(p)
		if n := left(p); n != 1 {
			t.Errorf("the new limit added %d queries, want 1", n)
		}
	})
}

// TestUpload checks the limit of uploaded bytes.
func TestUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{})
		p := policy(t, entry(t, "a", allowlist.Limits{UploadPerHour: 3600}, allowlist.Limits{}))
		one, two := open(t, b, p, "a"), open(t, b, p, "a")
		for _, spend := range []struct {
			from *Lease
			n    int
			want bool
		}{{one, 3000, true}, {two, 601, false}, {two, 600, true}, {one, 1, false}} {
			if got := spend.from.Spend(spend.n); got != spend.want {
				t.Errorf("%d bytes: %t, want %t", spend.n, got, spend.want)
			}
		}
		refused(t, b, p, "a", allowlist.UploadLimit)
		if l, reason, _ := b.Exchange(p, holder("a")); reason != allowlist.UploadLimit || l != nil {
			t.Errorf("a plain request: %q", reason)
		}
		open(t, b, p, "b")
		time.Sleep(time.Second) // one byte is left again
		if l := open(t, b, p, "a"); !l.Spend(1) || l.Spend(1) {
			t.Error("a second gave more or less than a byte")
		}
		time.Sleep(time.Hour)
		if !one.Spend(3600) {
			t.Error("an hour did not give all bytes back")
		}
	})
}

// TestSharedLimits checks that identities share the budget of a pattern with shared
// limits, each within its own limits.
func TestSharedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{})
		p := policy(
			t,
			entry(t, "ci/*", allowlist.Limits{}, allowlist.Limits{Tunnels: 3, UploadPerHour: 100}),
			entry(t, "**", allowlist.Limits{}, allowlist.Limits{ConnectsPerSecond: 5}),
			entry(t, "ci/a", allowlist.Limits{Tunnels: 1}, allowlist.Limits{}),
		)
		a := open(t, b, p, "ci/a")
		refused(t, b, p, "ci/a", allowlist.TunnelLimit) // over its own limit
		c := open(t, b, p, "ci/b")
		open(t, b, p, "ci/b")
		refused(t, b, p, "ci/c", allowlist.TunnelLimit) // over the shared limit
		if !a.Spend(60) || c.Spend(60) || !c.Spend(40) || a.Spend(1) {
			t.Error("two identities do not share 100 bytes")
		}
		a.Close()
		refused(t, b, p, "ci/c", allowlist.UploadLimit)
		for range 2 { // three new tunnels are spent already
			open(t, b, p, "web")
		}
		refused(t, b, p, "web", allowlist.RateLimited)
		time.Sleep(time.Second)
		open(t, b, p, "web")
	})
}

// TestBudgetsAfterAReload checks that what was spent before a reload stays spent, and
// that new limits apply to open tunnels.
func TestBudgetsAfterAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{})
		give := func(upload int64, shared allowlist.Limits) *allowlist.Policy {
			return policy(
				t, entry(t, "a", allowlist.Limits{Tunnels: 1, UploadPerHour: upload}, allowlist.Limits{}),
				entry(t, "*", allowlist.Limits{}, shared),
			)
		}
		p := give(1000, allowlist.Limits{UploadPerHour: 5000})
		l := open(t, b, p, "a")
		if !l.Spend(900) || l.Spend(101) {
			t.Error("there are not 1000 bytes")
		}
		for range 3 { // the same policy, loaded again
			b.Apply(p)
		}
		if l.Spend(101) || !l.Spend(50) {
			t.Error("a reload gave bytes back, or took some")
		}
		refused(t, b, p, "a", allowlist.TunnelLimit)
		b.Apply(give(2000, allowlist.Limits{UploadPerHour: 5000}))
		if l.Spend(1051) || !l.Spend(1050) {
			t.Error("2000 bytes are not 1050 more than 950")
		}
		b.Apply(give(100, allowlist.Limits{}))
		if l.Spend(1) {
			t.Error("the tunnel goes on beyond a lower limit")
		}
		if len(b.proved.shared) != 1 {
			t.Errorf("%d shared budgets, want that of the open tunnel", len(b.proved.shared))
		}
		b.Apply(nil)
		if !l.Spend(1000) {
			t.Error("without a limit there is one")
		}
		l.Close()
		b.Apply(nil)
		if len(b.proved.shared) != 0 {
			t.Errorf("%d shared budgets are left", len(b.proved.shared))
		}
	})
}

// TestRequestOfAnOlderPolicy checks that a request which was decided by an older policy
// does not bring back a limit of that policy, neither for itself nor for open tunnels.
func TestRequestOfAnOlderPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{})
		give := func(n int, shared allowlist.Limits) *allowlist.Policy {
			own := allowlist.Limits{Tunnels: n, DNSPerSecond: n, UploadPerHour: int64(n)}
			return policy(t, entry(t, "a", own, allowlist.Limits{}), entry(t, "*", allowlist.Limits{}, shared))
		}
		before := give(1000, allowlist.Limits{Tunnels: 1000})
		b.Apply(before)
		l := open(t, b, before, "a")
		b.Apply(give(2, allowlist.Limits{}))
		open(t, b, before, "a").Close()
		if l.Spend(3) || !l.Spend(2) {
			t.Error("the open tunnel has the bytes of the policy before")
		}
		queries := 0
		for b.Query(before, holder("a")) == NoKey {
			queries++
		}
		if queries != 2 {
			t.Errorf("there are %d queries, want 2", queries)
		}
		if late, reason, _ := b.Exchange(before, holder("a")); reason != allowlist.UploadLimit || late != nil {
			t.Errorf("a plain request: %q", reason)
		}
		l.Close()
		b.Apply(nil)
		if len(b.proved.shared) != 0 {
			t.Errorf("%d shared budgets of the policy before", len(b.proved.shared))
		}
	})
}

// TestBudgetsAreBounded checks that idle identities are forgotten, and that identities
// beyond the bound share one budget.
func TestBudgetsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudgets(Config{Requests: 2, Identity: allowlist.Limits{Tunnels: 2}})
		time.Sleep(sweepEvery)
		held := open(t, b, nil, "0")
		for n := range maxKeys {
			b.Request(holder(fmt.Sprint(n)))
		}
		for _, who := range []string{"x", "y"} {
			if !b.Request(holder(who)) {
				t.Errorf("%s has no request", who)
			}
		}
		if b.Request(holder("z")) || len(b.proved.byID) != maxKeys {
			t.Errorf("%d budgets, and one for each beyond them", len(b.proved.byID))
		}
		open(t, b, nil, "0").Close()
		time.Sleep(2 * sweepEvery)
		if !b.Request(holder("z")) || len(b.proved.byID) != 2 {
			t.Errorf("%d budgets, want that with a tunnel and a new one", len(b.proved.byID))
		}
		held.Close()
	})
}

// TestConnectionsOfASource checks that a source is within its limit of connections, then
// over it, and is refused far over it, and that a unix socket has no limit.
func TestConnectionsOfASource(t *testing.T) {
	s := NewSources(Config{Connections: 8})
	addr := netip.MustParseAddr("192.0.2.1")
	var last *Source
	for n, want := range []Standing{Within, Within, Within, Within, Within, Within, Within, Within, Over, Refused, Refused} {
		src, got := s.Open(addr)
		if got != want {
			t.Errorf("connection %d: %d, want %d", n, got, want)
		}
		if got != Refused {
			last = src
		}
	}
	if _, got := s.Open(netip.MustParseAddr("192.0.2.2")); got != Within {
		t.Errorf("another address: %d", got)
	}
	last.Close()
	if _, got := s.Open(addr); got != Over {
		t.Errorf("after one has left: %d", got)
	}
	for range 100 {
		src, got := s.Open(netip.Addr{})
		if got != Within || !src.Handshake() {
			t.Fatalf("a unix socket: %d", got)
		}
		src.Close()
	}
}

// TestHandshakesOfASource checks that the handshakes of a source are counted by the
// second, across its connections.
func TestHandshakesOfASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSources(Config{Handshakes: 2})
		src, _ := s.Open(netip.MustParseAddr("192.0.2.1"))
		for n, want := range []bool{true, true, false} {
			if src.Handshake() != want {
				t.Errorf("handshake %d in the first second: %t", n, !want)
			}
		}
		src.Close()
		again, _ := s.Open(netip.MustParseAddr("192.0.2.1"))
		if again.Handshake() {
			t.Error("a new connection brings a new budget")
		}
		time.Sleep(time.Second)
		if !again.Handshake() {
			t.Error("there is none in the next second")
		}
	})
}

// TestSourcesAreBounded checks that sources beyond the bound share one account, and that
// idle sources are forgotten.
func TestSourcesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSources(Config{Connections: 1, Handshakes: 1})
		time.Sleep(sweepEvery)
		addr := netip.MustParseAddr("10.0.0.0")
		for range maxKeys + 100 {
			src, _ := s.Open(addr)
			src.Handshake()
			if src != s.overflow {
				src.Close()
			}
			addr = addr.Next()
		}
		if len(s.byAddr) != maxKeys || s.overflow == nil || s.overflow.Handshake() {
			t.Errorf("%d sources, and one for each beyond them", len(s.byAddr))
		}
		time.Sleep(2 * sweepEvery)
		s.Open(addr)
		if len(s.byAddr) != 1 {
			t.Errorf("%d sources, want the new one", len(s.byAddr))
		}
	})
}

// TestAllocations checks that counting a request, a query or bytes allocates nothing,
// and that opening a tunnel allocates its lease and, with shared limits, their list.
func TestAllocations(t *testing.T) {
	b := NewBudgets(Config{})
	p := policy(t, entry(t, "**", allowlist.Limits{}, allowlist.Limits{UploadPerHour: 1 << 40, ConnectsPerSecond: 1e6, DNSPerSecond: 1e6}),
		entry(t, "a", allowlist.Limits{ConnectsPerSecond: 1e6}, allowlist.Limits{}))
	l := open(t, b, p, "a")
	who := holder("a")
	for _, row := range []struct {
		name string
		most float64
		do   func()
	}{
		{"a request", 0, func() { b.Request(who) }},
		{"a query", 0, func() { b.Query(p, who) }},
		{"bytes", 0, func() { l.Spend(1) }},
		{"a tunnel", 2, func() {
			if l, reason, _ := b.Open(p, who); reason == allowlist.NoReason {
				l.Close()
			}
		}},
	} {
		if n := testing.AllocsPerRun(100, row.do); n > row.most {
			t.Errorf("%s: %v allocations, want %v", row.name, n, row.most)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	budgets := NewBudgets(Config{Identity: allowlist.Limits{ConnectsPerSecond: 1e9}})
	who := holder("a")
	b.ReportAllocs()
	for b.Loop() {
		budgets.Request(who)
		if l, reason, _ := budgets.Open(nil, who); reason == allowlist.NoReason {
			l.Close()
		}
	}
}

func BenchmarkQuery(b *testing.B) {
	budgets := NewBudgets(Config{Identity: allowlist.Limits{DNSPerSecond: 1e9}})
	who := holder("a")
	b.ReportAllocs()
	for b.Loop() {
		budgets.Query(nil, who)
	}
}

func BenchmarkSpend(b *testing.B) {
	l, _, _ := NewBudgets(Config{Identity: allowlist.Limits{UploadPerHour: 1 << 60}}).Open(nil, holder("a"))
	b.ReportAllocs()
	for b.Loop() {
		l.Spend(32 << 10)
	}
}
