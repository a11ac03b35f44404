package resolve

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

func id(name string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://td.example/" + name) }

// shown returns a holder whose identity is proved by a certificate.
func shown(name string) allowlist.Holder {
	return allowlist.HolderOf(id(name), allowlist.ProofX509SVID)
}

// answerOf returns an answer that was given at now, with a time to live.
func answerOf(tb testing.TB, name string, ttl uint32, now time.Time, texts ...string) Answer {
	tb.Helper()
	return Answer{msg: wire.Local(dns.TypeA, addrs(texts...), ttl), name: host(tb, name), at: now}
}

// bound returns the names that lead an identity to an address, sorted.
func bound(r *Resolver, who, addr string, now time.Time) string {
	var names []string
	for _, b := range r.Bound(id(who), netip.MustParseAddr(addr), now) {
		names = append(names, b.Name.String())
	}
	slices.Sort(names)
	return fmt.Sprint(names)
}

// onlyTo is a filter that allows one name.
type onlyTo struct {
	everything

	name string
}

// Hop implements Filter.
func (o onlyTo) Hop(name allowlist.Host) bool { return name.String() == o.name }

// TestHiddenAddressesAreNotBound checks that addresses which the caller does not see are
// not bound to the name: hints of a service whose target the filter refuses, and
// addresses after a refused alias.
func TestHiddenAddressesAreNotBound(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		if q.typ == dns.TypeA {
			return answer{records: []string{"x.example. 60 IN CNAME evil.example.", "evil.example. 60 IN A 192.0.2.3"}}
		}
		return answer{records: []string{
			"x.example. 60 IN HTTPS 1 good.example. ipv4hint=192.0.2.1", "x.example. 60 IN HTTPS 2 evil.example. ipv4hint=192.0.2.2",
		}}
	})
	r, now := newResolver(t, Config{}, s), time.Now()
	for _, typ := range []uint16{dns.TypeHTTPS, dns.TypeA} {
		a, err := r.Lookup(t.Context(), Asker{}, question(t, "x.example", typ))
		if err != nil {
			t.Fatal(err)
		}
		r.Bind(shown("a"), a, now, onlyTo{name: "good.example"})
	}
	for addr, want := range map[string]string{"192.0.2.1": "[x.example]", "192.0.2.2": "[]", "192.0.2.3": "[]"} {
		if got := bound(r, "a", addr, now); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// TestBindings checks which names lead an identity to an address, and for how long.
func TestBindings(t *testing.T) {
	r, now := newResolver(t, Config{}), time.Now()
	r.Bind(shown("a"), answerOf(t, "x.example", 10, now, "192.0.2.1", "10.0.0.1"), now, public{})
	r.Bind(shown("a"), answerOf(t, "y.example", 300, now, "192.0.2.1"), now, public{})
	r.Bind(shown("a"), answerOf(t, "x.example", 10, now, "192.0.2.2"), now.Add(30*time.Second), public{}) // rotation
	for _, row := range []struct {
		name, who, addr string
		after           time.Duration
		want            string
	}{
		{"two names lead to one address", "a", "192.0.2.1", 0, "[x.example y.example]"},
		{"an IPv4-mapped address is the address", "a", "::ffff:192.0.2.1", 0, "[x.example y.example]"},
		{"an address that the filter hid has no name", "a", "10.0.0.1", 0, "[]"},
		{"another identity has no name for the address", "b", "192.0.2.1", 0, "[]"},
		{"another address", "a", "192.0.2.9", 0, "[]"},
		{"a binding lasts at least a minute", "a", "192.0.2.1", 59 * time.Second, "[x.example y.example]"},
		{"after a rotation both the old address and the new one have the name", "a", "192.0.2.2", 60 * time.Second, "[x.example]"},
		{"a binding ends after a minute if the answer's time to live is shorter", "a", "192.0.2.1", 60 * time.Second, "[y.example]"},
		{"a binding lasts for the answer's time to live", "a", "192.0.2.1", 299 * time.Second, "[y.example]"},
		{"a binding ends after the answer's time to live", "a", "192.0.2.1", 300 * time.Second, "[]"},
		{"all bindings end", "a", "192.0.2.2", time.Hour, "[]"},
	} {
		if got := bound(r, row.who, row.addr, now.Add(row.after)); got != row.want {
			t.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
	}
	if n := r.bindings.proved.total; n != 0 {
		t.Errorf("%d names are kept past their time", n)
	}
}

// TestUnseenAnswerBindsNothing checks that an answer binds an address only if the filter
// shows the name of it, and that a shown hint of a service binds one.
func TestUnseenAnswerBindsNothing(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		if q.typ == dns.TypeHTTPS {
			return answer{records: []string{`www.example. 60 IN HTTPS 1 . ipv4hint="192.0.2.2"`}}
		}
		return answer{records: []string{"www.example. 60 IN CNAME edge.example.", "edge.example. 60 IN A 192.0.2.1"}}
	})
	r, now := newResolver(t, Config{}, s), time.Now()
	a, err := r.Lookup(t.Context(), Asker{}, question(t, "www.example", dns.TypeA))
	if err != nil {
		t.Fatal(err)
	}
	r.Bind(shown("a"), a, now, noNames{})
	check(t, bound(r, "a", "192.0.2.1", now), "[]")
	r.Bind(shown("a"), a, now, everything{})
	check(t, bound(r, "a", "192.0.2.1", now), "[www.example]")
	hint, err := r.Lookup(t.Context(), Asker{}, question(t, "www.example", dns.TypeHTTPS))
	if err != nil {
		t.Fatal(err)
	}
	r.Bind(shown("a"), hint, now, everything{})
	check(t, bound(r, "a", "192.0.2.2", now), "[www.example]")
}

// noNames is a filter that refuses every name.
type noNames struct{ everything }

// Hop implements Filter.
func (noNames) Hop(allowlist.Host) bool { return false }

// TestBindingsAreBounded checks the bounds on bindings, and that the least recently used
// ones, or those that expire first, are replaced.
func TestBindingsAreBounded(t *testing.T) {
	r, now := newResolver(t, Config{}), time.Now()
	addr := func(i int) string { return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}).String() }
	for i := range maxBoundAddrs {
		r.Bind(shown("a"), answerOf(t, "x.example", 60, now, addr(i)), now, everything{})
	}
	check(t, bound(r, "a", addr(0), now), "[x.example]") // it is now the most recently used one
	r.Bind(shown("a"), answerOf(t, "x.example", 60, now, addr(maxBoundAddrs)), now, everything{})
	check(t, bound(r, "a", addr(0), now), "[x.example]")
	check(t, bound(r, "a", addr(1), now), "[]")
	check(t, bound(r, "a", addr(maxBoundAddrs), now), "[x.example]")
	if n := r.bindings.proved.total; n != maxBoundAddrs {
		t.Errorf("%d names", n)
	}

	for i := range maxBoundNames + 1 { // the one that expires first is replaced
		r.Bind(shown("b"), answerOf(t, fmt.Sprintf("n%d.example", i), uint32(1000-i), now, "192.0.2.1"), now, everything{})
	}
	names := r.Bound(id("b"), netip.MustParseAddr("192.0.2.1"), now)
	if len(names) != maxBoundNames || slices.ContainsFunc(names, func(b Binding) bool { return b.Name == host(t, fmt.Sprintf("n%d.example", maxBoundNames-1)) }) {
		t.Errorf("%v", names)
	}
	r.Bind(shown("b"), answerOf(t, "late.example", 60, now, "192.0.2.1"), now.Add(2000*time.Second), everything{})
	check(t, bound(r, "b", "192.0.2.1", now.Add(2000*time.Second)), "[late.example]")

	for i := range maxBoundIdentities {
		r.Bind(shown(fmt.Sprintf("many-%d", i)), answerOf(t, "x.example", 60, now, "192.0.2.1"), now, everything{})
	}
	if n := r.bindings.proved.identities.len(); n != maxBoundIdentities {
		t.Errorf("%d identities", n)
	}
	check(t, bound(r, "a", addr(0), now), "[]")
	check(t, bound(r, "many-0", "192.0.2.1", now), "[x.example]")
	if r.bindings.proved.total != maxBoundIdentities {
		t.Errorf("%d names of %d identities", r.bindings.proved.total, maxBoundIdentities)
	}

	greedy := newBoundPart(1)
	greedy.most = 2 * maxBoundAddrs
	for i := range 2 * maxBoundAddrs { // as many as there is room for
		greedy.bind(id(fmt.Sprint(i%2)), netip.MustParseAddr(addr(i/2)), boundName{name: host(t, "x.example"), until: now.Add(time.Minute)}, now)
	}
	if greedy.total != greedy.most || greedy.identities.len() != 2 {
		t.Errorf("%d names of %d identities", greedy.total, greedy.identities.len())
	}
	greedy.bind(id("2"), netip.MustParseAddr(addr(0)), boundName{name: host(t, "x.example"), until: now.Add(time.Minute)}, now)
	if greedy.total != maxBoundAddrs+1 || greedy.identities.len() != 2 || greedy.names(id("0"), netip.MustParseAddr(addr(0)), now) != nil {
		t.Errorf("%d names of %d identities, whose oldest did not make room", greedy.total, greedy.identities.len())
	}
}

// TestTheWayToAnAddressIsChecked checks aliases on the way to an address which are
// denied, or not allowed, on one port only. Such an alias hides no answer, but must not
// be followed to an address on that port.
func TestTheWayToAnAddressIsChecked(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		if q.typ == dns.TypeA {
			return answer{records: []string{"www.example. 60 IN CNAME edge.example.", "edge.example. 60 IN A 192.0.2.1"}}
		}
		return answer{records: []string{
			"www.example. 60 IN CNAME mid.example.", "mid.example. 60 IN HTTPS 1 edge.example. ipv4hint=192.0.2.2",
			"mid.example. 60 IN HTTPS 2 . ipv4hint=192.0.2.3",
		}}
	})
	for _, inspect := range []bool{false, true} {
		r, now := newResolver(t, Config{Inspect: inspect}, s), time.Now()
		for _, typ := range []uint16{dns.TypeA, dns.TypeHTTPS} {
			a, err := r.Lookup(t.Context(), Asker{}, question(t, "www.example", typ))
			if err != nil {
				t.Fatal(err)
			}
			r.Bind(shown("a"), a, now, everything{})
		}
		for _, row := range []struct {
			addr          string
			allow, deny   []string
			want, inspect allowlist.Reason
		}{
			{"192.0.2.1", []string{"www.example"}, nil, 0, allowlist.NotOnAllowlist},
			{"192.0.2.1", []string{"*.example"}, nil, 0, 0},
			{"192.0.2.1", []string{"*.example"}, []string{"edge.example"}, allowlist.DeniedByRule, allowlist.DeniedByRule},
			{"192.0.2.2", []string{"*.example"}, []string{"edge.example"}, allowlist.DeniedByRule, allowlist.DeniedByRule},
			{"192.0.2.2", []string{"*.example"}, []string{"mid.example"}, allowlist.DeniedByRule, allowlist.DeniedByRule},
			{"192.0.2.3", []string{"*.example"}, []string{"edge.example"}, 0, 0},
			{"192.0.2.3", []string{"*.example"}, []string{"mid.example"}, allowlist.DeniedByRule, allowlist.DeniedByRule},
		} {
			want := row.want
			if inspect {
				want = row.inspect
			}
			dec := decide(t, "www.example", row.allow, row.deny)
			b := r.Bound(id("a"), netip.MustParseAddr(row.addr), now)
			if len(b) != 1 || b[0].Name != dec.Dest.Host || dec.CheckWay(b[0].Way) != want {
				t.Errorf("%s, inspect %t, deny %q: %+v, want %q", row.addr, inspect, row.deny, b, want)
			}
		}
	}
}

// TestNamesOfBindingsAreBounded checks that names and the aliases on their way are
// counted, whether or not their address has other names.
func TestNamesOfBindingsAreBounded(t *testing.T) {
	now := time.Now()
	b := newBoundPart(1)
	b.most = 2 * maxBoundPerIdentity
	names := make([]allowlist.Host, maxBoundNames)
	for i := range names {
		names[i] = host(t, fmt.Sprintf("n%d.example", i))
	}
	alias := wire.Way{Aliases: []allowlist.Host{host(t, "edge.example")}}
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}) }
	fill := func(who string) {
		for i := range maxBoundAddrs {
			for _, name := range names {
				b.bind(id(who), addr(i), boundName{name, alias, now.Add(time.Minute)}, now)
			}
		}
	}
	fill("a")
	if len(b.names(id("a"), addr(maxBoundAddrs-1), now)) != maxBoundNames || b.names(id("a"), addr(0), now) != nil || b.total != maxBoundPerIdentity {
		t.Errorf("%d names and aliases of one identity, want %d, of the addresses used last", b.total, maxBoundPerIdentity)
	}
	fill("b")
	fill("c")
	if b.total != 2*maxBoundPerIdentity || b.names(id("a"), addr(maxBoundAddrs-1), now) != nil || b.names(id("b"), addr(maxBoundAddrs-1), now) == nil {
		t.Errorf("%d names and aliases of three identities, want %d, of those used last", b.total, 2*maxBoundPerIdentity)
	}
}

// TestForgedBindings checks that names by source-map lead to an address until they are
// displaced by others, that they come last, and that they displace no names by other
// proofs.
func TestForgedBindings(t *testing.T) {
	r, now := newResolver(t, Config{}), time.Now()
	addr := func(i int) string {
		return netip.AddrFrom4([4]byte{192, byte(i >> 16), byte(i >> 8), byte(i)}).String()
	}
	forged := func(name string) allowlist.Holder { return allowlist.HolderOf(id(name), allowlist.ProofSourceMap) }
	led := func(who, to string) (names string) {
		t.Helper()
		for _, b := range r.Bound(id(who), netip.MustParseAddr(to), now) {
			names += fmt.Sprintf(" %s %v", b.Name, b.Mapped)
		}
		return names
	}
	r.Bind(forged("a"), answerOf(t, "told.example", 60, now, addr(1)), now, everything{})
	check(t, led("a", addr(1)), " told.example true")
	check(t, led("b", addr(1)), "")
	r.Bind(shown("a"), answerOf(t, "asked.example", 60, now, addr(1)), now, everything{})
	r.Bind(shown("a"), answerOf(t, "told.example", 60, now, addr(2)), now, everything{})
	check(t, led("a", addr(1)), " asked.example false told.example true")
	check(t, led("a", addr(2)), " told.example false")

	// More names of one address, more addresses of the identity, and more identities
	// than there is room for.
	for i := range 2 * maxBoundNames {
		r.Bind(forged("a"), answerOf(t, fmt.Sprintf("n%d.example", i), 3600, now, addr(1)), now, everything{})
	}
	if n := len(r.Bound(id("a"), netip.MustParseAddr(addr(1)), now)); n != 1+maxBoundNames/mappedBounds {
		t.Errorf("%d names of an address", n)
	}
	for i := range 2 * maxBoundAddrs {
		r.Bind(forged("a"), answerOf(t, "x.example", 3600, now, addr(100+i)), now, everything{})
	}
	if n := r.bindings.mapped.total; n != maxBoundAddrs/mappedBounds {
		t.Errorf("%d forged bindings of one identity, want %d", n, maxBoundAddrs/mappedBounds)
	}
	for i := range 2 * maxBoundIdentities {
		r.Bind(forged(fmt.Sprint("many-", i)), answerOf(t, "x.example", 3600, now, addr(1)), now, everything{})
	}
	if n := r.bindings.mapped.identities.len(); n != maxBoundIdentities/mappedBounds {
		t.Errorf("%d identities with forged bindings, want %d", n, maxBoundIdentities/mappedBounds)
	}
	for i := range 2 * maxBound / maxBoundPerIdentity { // more names in all than there is room for
		for a := range maxBoundAddrs / mappedBounds {
			for n := range maxBoundNames / mappedBounds {
				r.Bind(forged(fmt.Sprint("full-", i)), answerOf(t, fmt.Sprintf("n%d.example", n), 3600, now, addr(a)), now, everything{})
			}
		}
	}
	if n := r.bindings.mapped.total; n > maxBound/mappedBounds {
		t.Errorf("%d forged bindings, want %d at most", n, maxBound/mappedBounds)
	}
	check(t, led("a", addr(1)), " asked.example false")
	check(t, led("a", addr(2)), " told.example false")
	if n := r.bindings.proved.total; n != 2 {
		t.Errorf("%d bindings by certificate, want 2", n)
	}
}
