package allowlist

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// generator makes random policies and requests from so few names and identities that
// rules often overlap.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) generator { return generator{rand.New(rand.NewPCG(seed, 21))} }

func pick[T any](g generator, from ...T) T { return from[g.IntN(len(from))] }

func (g generator) id() string {
	return pick(g, "spiffe://td/a", "spiffe://td/b", "spiffe://td/a/b", "spiffe://td/a/c", "spiffe://td/a/b/c", "spiffe://td.x/a", "spiffe://td/ab")
}

func (g generator) identityPattern() IdentityPattern {
	if g.IntN(6) == 0 {
		return EveryonePattern(spiffeid.RequireTrustDomainFromString(pick(g, "td", "td.x")))
	}
	return must(ParseIdentityPattern(pick(g, g.id()+pick(g, "", "/*", "/**"), "spiffe://td/*", "spiffe://td/**", "spiffe://td/a/*", "spiffe://td/a/**", "spiffe://td/a/b/**")))
}

func (g generator) name() string {
	name := pick(g, "x", "y")
	for range g.IntN(3) {
		name = pick(g, "a", "b") + "." + name
	}
	return name
}

func (g generator) addr() netip.Addr {
	return netip.MustParseAddr(pick(g, "8.8.8.8", "8.8.8.9", "8.8.4.4", "10.0.0.1", "10.0.1.1", "127.0.0.1", "169.254.169.254", "255.255.255.255", "2606:4700::1", "2606:4700::2", "64:ff9b::808:808", "64:ff9b::a00:1"))
}

func (g generator) ports() []PortRange {
	return pick(g, nil, nil, []PortRange{{443, 443}}, []PortRange{{80, 80}}, []PortRange{{80, 443}}, []PortRange{{1, 65535}}, []PortRange{{443, 443}, {80, 80}}, []PortRange{{400, 500}, {440, 450}, {443, 65535}})
}

func (g generator) rule(n int, denies bool) Rule {
	r := Rule{Name: fmt.Sprintf("r%d", n), Ports: g.ports()}
	if g.IntN(3) == 0 {
		addr := g.addr()
		bits := pick(g, 0, 8, 24, 31, 32)
		if addr.Is6() {
			bits = pick(g, 0, 32, 96, 104, 127, 128)
		}
		r.CIDR = netip.PrefixFrom(addr, bits)
	} else {
		r.Host = must(ParseHostPattern(pick(g, "", "*.", "**.") + g.name()))
	}
	if denies {
		return r
	}
	if g.IntN(4) == 0 {
		r.Expires = pick(g, now(), now().Add(time.Second), now().Add(-time.Second))
	}
	if g.IntN(4) == 0 {
		r.Methods = pick(g, []string{"GET"}, []string{"GET", "POST"})
	}
	if g.IntN(4) == 0 {
		r.Paths = []PathPattern{must(ParsePathPattern(pick(g, "/p", "/p/**", "/**")))}
	}
	if g.IntN(4) == 0 {
		r.Types = pick(g, []QueryType{TypeTXT}, []QueryType{TypeSRV, TypeTXT})
	}
	r.Upgrade = g.IntN(8) == 0
	r.NoTunnel = g.IntN(8) == 0
	return r
}

func (g generator) spec() *Spec {
	spec := &Spec{Version: "v1"}
	seen := map[IdentityPattern]bool{}
	for range 2 + g.IntN(8) {
		e := Entry{Pattern: g.identityPattern()}
		if seen[e.Pattern] {
			continue
		}
		seen[e.Pattern] = true
		for n := range pick(g, 0, 1, 1, 1, 1, 1, 1) * g.IntN(17) { // one entry in seven has no allow list
			e.Allow = append(e.Allow, g.rule(100*len(seen)+n, false))
		}
		for n := range pick(g, 0, 0, 1, 2) {
			e.Deny = append(e.Deny, g.rule(100*len(seen)+50+n, true))
		}
		e.Unlisted = strings.HasPrefix(e.Pattern.String(), "everyone") && g.IntN(2) == 0
		e.Accept = pick(g, 0, 0, 0, 0, 0, ProofsOf(ProofX509SVID), ProofsOf(ProofSourceMap))
		e.Mode = pick(g, ModeUnset, ModeUnset, ModeEnforce, ModeObserve)
		e.InheritMode = g.IntN(2) == 0
		e.Force = e.Mode == ModeEnforce && g.IntN(2) == 0
		if e.Mode == ModeObserve {
			e.ObserveUntil = pick(g, now(), now().Add(time.Hour))
		}
		spec.Entries = append(spec.Entries, e)
	}
	if g.IntN(4) == 0 {
		spec.Quarantine = []Quarantined{{Pattern: g.identityPattern()}}
	}
	return spec
}

func (g generator) request() Request {
	req := Request{
		ID: spiffeid.RequireFromString(g.id()), Proof: pick(g, ProofX509SVID, ProofX509SVID, ProofX509SVID, ProofX509SVID, ProofX509SVID, ProofListener, ProofSourceMap, NoProof),
		Dest: Destination{Host: must(ParseHost(g.name())), Port: pick[uint16](g, 443, 443, 80, 445, 8080)}, Time: now(),
	}
	if g.IntN(3) == 0 {
		req.Dest.Host = HostOf(g.addr())
	}
	if g.IntN(3) == 0 {
		req.Method, req.Path = pick(g, "GET", "POST"), pick(g, "/p", "/p/", "/p/q", "/q", "/p/../q")
		req.Upgrade = pick(g, NoUpgrade, NoUpgrade, NoUpgrade, NoUpgrade, MayUpgrade, MustUpgrade)
	}
	return req
}

// eachPolicy runs check for many random policies, and reports the seed of a failure.
func eachPolicy(t *testing.T, check func(g generator, spec *Spec, p *Policy)) {
	t.Helper()
	for seed := range uint64(600) {
		g := newGenerator(seed)
		spec := g.spec()
		p, err := Compile(*spec)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		check(g, spec, p)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// TestDecisionsEqualTheReference compares Decide with the reference, for random policies
// and requests.
func TestDecisionsEqualTheReference(t *testing.T) {
	answers := map[string]int{}
	eachPolicy(t, func(g generator, spec *Spec, p *Policy) {
		for range 40 {
			req := g.request()
			got, want := answer(p.Decide(req)), naive(spec, req)
			if got != want {
				t.Errorf("%s %s to %s %s: %s, want %s", req.ID, req.Method, req.Dest, req.Path, got, want)
			}
			kind, _, _ := strings.Cut(want, " by ")
			answers[kind]++
		}
	})
	for _, r := range Reasons() {
		if r >= IdentityUnknown && r <= ResolvedAddressDenied && r != TypeNotAllowed && r != SpecialName && answers[r.String()] == 0 {
			t.Errorf("the generator never made %s", r)
		}
	}
	if answers["allow"] < 1000 {
		t.Errorf("the generator made %d allowed requests: too few to mean anything", answers["allow"])
	}
}

// TestTheOrderOfRulesChangesNoDecision shuffles the rules and entries of random
// policies, and checks that the decisions stay the same.
func TestTheOrderOfRulesChangesNoDecision(t *testing.T) {
	eachPolicy(t, func(g generator, spec *Spec, p *Policy) {
		shuffled := Spec{Quarantine: spec.Quarantine, Entries: slices.Clone(spec.Entries)}
		g.Shuffle(len(shuffled.Entries), func(i, j int) {
			shuffled.Entries[i], shuffled.Entries[j] = shuffled.Entries[j], shuffled.Entries[i]
		})
		for i := range shuffled.Entries {
			e := &shuffled.Entries[i]
			e.Allow, e.Deny = slices.Clone(e.Allow), slices.Clone(e.Deny)
			g.Shuffle(len(e.Allow), func(i, j int) { e.Allow[i], e.Allow[j] = e.Allow[j], e.Allow[i] })
			g.Shuffle(len(e.Deny), func(i, j int) { e.Deny[i], e.Deny[j] = e.Deny[j], e.Deny[i] })
		}
		other := must(Compile(shuffled))
		for range 20 {
			req := g.request()
			a, b := p.Decide(req), other.Decide(req)
			if a.Verdict != b.Verdict || a.Reason != b.Reason || a.WouldReason != b.WouldReason {
				t.Errorf("%s to %s: %s, in another order %s", req.ID, req.Dest, answer(a), answer(b))
			}
			if a.Allowed() && a.Rule != nil && (hostRank(&a.Rule.Rule) != hostRank(&b.Rule.Rule)) {
				t.Errorf("%s to %s: by %s, in another order by the less specific %s", req.ID, req.Dest, a.Rule.Host, b.Rule.Host)
			}
		}
	})
}

// TestAnAddedAllowRuleNeverDenies checks that an added allow rule never denies anything,
// unless it is the more specific one for the same host and port. Then only its addresses
// can deny.
func TestAnAddedAllowRuleNeverDenies(t *testing.T) {
	eachPolicy(t, func(g generator, spec *Spec, p *Policy) {
		added := g.rule(999, false)
		wider := Spec{Quarantine: spec.Quarantine, Entries: slices.Clone(spec.Entries)}
		e := &wider.Entries[g.IntN(len(wider.Entries))]
		at := g.IntN(len(e.Allow) + 1)
		e.Allow = slices.Insert(slices.Clone(e.Allow), at, added)
		after := must(Compile(wider))
		for range 20 {
			req := g.request()
			before, now := p.Decide(req), after.Decide(req)
			if before.Verdict != Allow || now.Verdict == Allow {
				continue
			}
			t.Errorf("%s to %s: allowed, and with rule %+v %s", req.ID, req.Dest, added, answer(now))
		}
	})
}

// TestADenyRuleWithoutPortsCoversEveryPort adds a deny rule without ports to random
// policies, and checks that it denies its destinations on every port.
func TestADenyRuleWithoutPortsCoversEveryPort(t *testing.T) {
	p := policyOf(t, entryOf(checkout, allow(rule("**.example port 1-65535"), rule("0.0.0.0/0 port 1-65535")), deny(rule("api.example"), rule("8.8.8.8/32"))))
	for port := range 1 << 16 {
		req := tunnel(checkout, "api.example:443")
		for _, host := range []Host{must(ParseHost("api.example")), must(ParseHost("8.8.8.8"))} {
			req.Dest = Destination{Host: host, Port: uint16(port)}
			if p.Decide(req).Allowed() {
				t.Fatalf("port %d of a denied host is allowed", port)
			}
		}
	}
}

// TestAWideRangeOpensNoSpecialClass checks, for random policies, that a range which is
// wider than a special class opens none of its addresses.
func TestAWideRangeOpensNoSpecialClass(t *testing.T) {
	p := policyOf(t, entryOf(checkout,
		allow(rule("0.0.0.0/0"), rule("::/0"), rule("api.example", addresses("0.0.0.0/0", "::/0")))))
	byName := p.Decide(tunnel(checkout, "api.example:443"))
	g := newGenerator(1)
	ranges := classRanges()
	for range 20_000 {
		addr := within(netip.MustParsePrefix(ranges[g.IntN(len(ranges))].prefix), g.Uint64())
		class, _ := p.classifier.Classify(addr)
		if class == Public {
			continue
		}
		if byName.CheckAddr(netip.AddrPortFrom(addr, 443)) == nil {
			t.Fatalf("%s (%s) is open by name", addr, class)
		}
		req := tunnel(checkout, "api.example:443")
		req.Dest.Host = HostOf(addr)
		if p.Decide(req).Allowed() {
			t.Fatalf("%s (%s) is open as a literal", addr, class)
		}
	}
}

// TestSingleOnly checks that SingleOnly recognizes, in any spelling, a range inside a
// class that only single addresses open, and that such a range opens none of its
// addresses.
func TestSingleOnly(t *testing.T) {
	g, c := newGenerator(2), NewClassifier(Local{})
	for _, row := range classRanges() {
		around := netip.MustParsePrefix(row.prefix)
		for bits := around.Bits(); bits < around.Addr().BitLen(); bits++ {
			inner := netip.PrefixFrom(within(around, g.Uint64()), bits).Masked()
			want := classAround(inner)
			if !want.singleOnly() {
				want = Invalid
			}
			for _, p := range spellings(inner) {
				if class := c.SingleOnly(p); class != want {
					t.Errorf("%s opens by single addresses of %s only, want %s", p, class, want)
				}
				if want == Invalid {
					continue
				}
				opens := policyOf(t, entryOf(checkout, allow(rule("api.example", addresses(p.String()))))).Decide(tunnel(checkout, "api.example:443"))
				for range 4 {
					addr := netip.AddrPortFrom(within(p, g.Uint64()), 443)
					if opens.CheckAddr(addr) == nil {
						t.Errorf("%s opens %s", p, addr)
					}
				}
			}
		}
	}
	for _, text := range []string{"127.0.0.1/32", "::1/128", "::ffff:127.0.0.1/128", "0.0.0.0/0", "126.0.0.0/7", "168.0.0.0/6", "fe00::/8", "::/0", "::/96", "64:ff9b::/96", "100.100.100.200/31"} {
		if class := c.SingleOnly(netip.MustParsePrefix(text)); class != Invalid {
			t.Errorf("%s opens only by single addresses of %s", text, class)
		}
	}
}

// classAround returns the class of the longest range of the table that contains p.
func classAround(p netip.Prefix) Class {
	class, bits := Invalid, -1
	for _, row := range classRanges() {
		if r := netip.MustParsePrefix(row.prefix); r.Contains(p.Addr()) && r.Bits() <= p.Bits() && r.Bits() > bits {
			class, bits = row.class, r.Bits()
		}
	}
	return class
}

// spellings returns the ranges that mean the same addresses as p.
func spellings(p netip.Prefix) []netip.Prefix {
	if p.Addr().Is6() {
		return []netip.Prefix{p}
	}
	mapped := p.Addr().As16()
	nat64 := netip.MustParseAddr("64:ff9b::").As16()
	copy(nat64[12:], mapped[12:])
	return []netip.Prefix{p, netip.PrefixFrom(netip.AddrFrom16(mapped), p.Bits()+96), netip.PrefixFrom(netip.AddrFrom16(nat64), p.Bits()+96)}
}

// TestAddressesFollowTheDecision checks, for random policies, that CheckAddr opens no
// address for a denied request, and only the address itself for an address literal.
func TestAddressesFollowTheDecision(t *testing.T) {
	eachPolicy(t, func(g generator, _ *Spec, p *Policy) {
		for range 10 {
			req := g.request()
			d := p.Decide(req)
			addr := g.addr()
			open := d.CheckAddr(netip.AddrPortFrom(addr, req.Dest.Port)) == nil
			if open && !d.Allowed() {
				t.Errorf("%s to %s is %s, and %s is open", req.ID, req.Dest, answer(d), addr)
			}
			if literal := req.Dest.Host.Addr(); literal.IsValid() && d.Allowed() && open != (literal == addr) {
				t.Errorf("%s to %s is allowed, and %s open: %t", req.ID, req.Dest, addr, open)
			}
		}
	})
}

// FuzzDecide checks that Decide allows no request that the reference refuses. The
// generator replaces an ID or a destination that is not valid, so that most inputs
// concern the policy.
func FuzzDecide(f *testing.F) {
	f.Add(uint64(1), "spiffe://td/a", "a.x:443", "", "", byte(1))
	f.Add(uint64(2), "spiffe://td/a/b", "A.b.X.:80", "GET", "/p/q", byte(1))
	f.Add(uint64(3), "spiffe://td/a", "[::ffff:8.8.8.8]:443", "", "", byte(129))
	f.Add(uint64(4), "spiffe://td.x/a", "[64:ff9b::808:808]:443", "", "", byte(1))
	f.Add(uint64(5), "", "", "", "", byte(1))
	f.Fuzz(func(t *testing.T, seed uint64, caller, dest, method, path string, flags byte) {
		g := newGenerator(seed)
		spec, req := g.spec(), g.request()
		if id, err := spiffeid.FromString(caller); err == nil {
			req.ID = id
		}
		if d, err := ParseDestination(dest); err == nil {
			req.Dest = d
		}
		req.Proof, req.Method, req.Path, req.Upgrade = Proof(flags&7), method, path, Upgrade(flags>>6%3)
		p := must(Compile(*spec))
		got := p.Decide(req)
		want := naive(spec, req)
		if got.Allowed() && !strings.HasPrefix(want, "allow") && !strings.HasPrefix(want, "observe") {
			t.Fatalf("%s, and the reference says %s", answer(got), want)
		}
		if method == "" && answer(got) != want { // the reference knows fewer malformed paths
			t.Fatalf("%s, want %s", answer(got), want)
		}
		if (got.Verdict == Deny) != (got.Reason != NoReason) || (got.Verdict == Observe) != (got.WouldReason != NoReason) {
			t.Fatalf("verdict %s with reasons %q and %q", got.Verdict, got.Reason, got.WouldReason)
		}
	})
}
