package allowlist

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func types(types ...QueryType) func(*Rule) { return func(r *Rule) { r.Types = types } }

// lookup returns a request of id for a question such as "TXT api.example", or
// "api.example" for A records.
func lookup(id, question string) NameRequest {
	kind, name, found := strings.Cut(question, " ")
	if !found {
		kind, name = "A", question
	}
	t, ok := ParseQueryType(kind)
	if !ok {
		panic(kind)
	}
	return NameRequest{
		ID: spiffeid.RequireFromString(id), Proof: ProofX509SVID,
		Host: must(ParseHost(name)), Type: t, Time: now(),
	}
}

// nameAnswer returns a decision as answer does, with "above" after it if Above is set.
func nameAnswer(d NameDecision) string {
	text := answer(Decision{Outcome: d.Outcome})
	if d.Above {
		text += " above"
	}
	return text
}

// TestNameDecisions checks the decision on names that are asked for.
func TestNameDecisions(t *testing.T) {
	p := policyOf(t,
		entryOf(checkout,
			allow(rule("api.example", named("api")), rule("api.example port 80", methods("GET"), paths("/x/**"), types(TypeTXT)),
				rule("only.plain.example port 80", methods("GET")), rule("*.one.example"), rule("**.many.example"),
				rule("old.example", expires(now())), rule("deep.old.sub.example", expires(now())),
				rule("_sip._tcp.voice.example", noTunnel, types(TypeSRV, TypeNAPTR)),
				rule("gist.example"), rule("half.example port 1-65535"), rule("pieces.example"),
				rule("printer.local"), rule("intranet"), rule("4.3.2.10.in-addr.arpa", noTunnel, types(TypePTR)),
				rule("8.8.8.8/32")),
			deny(rule("gist.example"), rule("half.example port 443"), rule("pieces.example port 1-442,444-65535"),
				rule("pieces.example port 443"), rule("**.bad.many.example"))),
		entryOf(builder, observe(now().Add(time.Hour)), allow(rule("deploy.example", types(TypeTXT))), deny(rule("paste.example"))),
	)
	for question, want := range map[string]string{
		"api.example": "allow by api", "AAAA api.example": "allow by api", "HTTPS api.example": "allow by api", "CNAME api.example": "allow by api",
		"TXT api.example": "allow", "MX api.example": "type-not-allowed", "API.Example.": "allow by api",
		"only.plain.example": "allow", "a.one.example": "allow", "one.example": "not-on-allowlist above", "a.b.one.example": "not-on-allowlist",
		"a.b.many.example": "allow", "SRV a.b.many.example": "type-not-allowed", "many.example": "not-on-allowlist above",
		"xapi.example": "not-on-allowlist", "v1.api.example": "not-on-allowlist", "xmany.example": "not-on-allowlist",
		"old.example": "rule-expired", "sub.example": "not-on-allowlist", "SRV _sip._tcp.voice.example": "allow",
		"_sip._tcp.voice.example": "allow", "TXT _sip._tcp.voice.example": "type-not-allowed", "_tcp.voice.example": "not-on-allowlist above",
		"gist.example": "denied-by-rule", "half.example": "allow", "pieces.example": "denied-by-rule",
		"bad.many.example": "allow", "x.bad.many.example": "denied-by-rule",
		"example": "special-name above", "com": "special-name", "localhost": "special-name", "x.localhost": "special-name",
		"a.invalid": "special-name", "a.onion": "special-name", "local": "special-name above", "printer.local": "allow", "scanner.local": "special-name",
		"intranet": "allow", "PTR 4.3.2.10.in-addr.arpa": "allow", "PTR 5.3.2.10.in-addr.arpa": "special-name", "2.10.in-addr.arpa": "special-name above",
		"api.example.ns.svc.cluster.local": "special-name", "api.example.corp.internal": "special-name", "api.example.lan": "special-name",
		"a.b.many.example.corp.example": "special-name", "intranet.corp.example": "special-name", "SRV a.b.many.example.corp.example": "not-on-allowlist",
		"old.example.corp.example": "not-on-allowlist", "gist.example.corp.example": "not-on-allowlist", "xapi.example.corp.example": "not-on-allowlist",
		"api.example.a.b.c.d.e.f.g.h": "special-name", "api.example.a.b.c.d.e.f.g.h.i": "not-on-allowlist",
		"_dns.resolver.arpa": "special-name", "PTR 1.0.ip6.arpa": "special-name", "x.arpa": "not-on-allowlist", "xin-addr.arpa": "not-on-allowlist",
	} {
		if got := nameAnswer(p.DecideName(lookup(checkout, question))); got != want {
			t.Errorf("%s: %s, want %s", question, got, want)
		}
	}
	for question, want := range map[string]string{
		"anything.example": "observe not-on-allowlist above", "AAAA anything.example": "observe not-on-allowlist above",
		"HTTPS anything.example": "observe not-on-allowlist above", "CNAME anything.example": "type-not-allowed above",
		"TXT anything.example": "type-not-allowed above", "TXT deploy.example": "allow", "MX deploy.example": "type-not-allowed above",
		"paste.example": "denied-by-rule above", "localhost": "observe special-name above",
		"deploy.example.corp.example": "observe special-name above", "other.example.corp.example": "observe not-on-allowlist above",
	} {
		d := p.DecideName(lookup(builder, question))
		if got := nameAnswer(d); got != want {
			t.Errorf("observed %s: %s, want %s", question, got, want)
		}
		if d.Special == d.Allowed() && d.Verdict == Observe {
			t.Errorf("observed %s: special %v, may be looked up %v", question, d.Special, d.Allowed())
		}
	}
}

// TestQueryTypes checks that the types that a policy can allow have a name and are read
// by it, and that no others are.
func TestQueryTypes(t *testing.T) {
	for _, typ := range QueryTypes() {
		got, ok := ParseQueryType(typ.String())
		if !ok || got != typ || !typ.Known() || only(typ)&(only(typ)-1) != 0 {
			t.Errorf("%s is read as %s, %t, known %t", typ, got, ok, typ.Known())
		}
	}
	for _, typ := range []QueryType{0, 10, 25, 251, 252, 255, 65280} {
		if got, ok := ParseQueryType(typ.String()); ok || got != 0 || typ.Known() {
			t.Errorf("%s can be allowed", typ)
		}
	}
}

// TestNamesAreRefusedBeforeRules checks the reasons for which a query is refused before
// any rule is looked at.
func TestNamesAreRefusedBeforeRules(t *testing.T) {
	p := must(Compile(Spec{
		Entries: []Entry{
			entryOf("spiffe://prod.example/**", allow(rule("api.example"))),
			entryOf(checkout, func(e *Entry) { e.Accept = ProofsOf(ProofSourceMap) }),
		},
		Quarantine: []Quarantined{{Pattern: must(ParseIdentityPattern(builder))}},
	}))
	good := lookup("spiffe://prod.example/a", "api.example")
	for why, row := range map[string]struct {
		change func(*NameRequest)
		want   Reason
	}{
		"good":                       {func(*NameRequest) {}, NoReason},
		"no name":                    {func(r *NameRequest) { r.Host = Host{} }, MalformedTarget},
		"an address":                 {func(r *NameRequest) { r.Host = must(ParseHost("8.8.8.8")) }, MalformedTarget},
		"no identity":                {func(r *NameRequest) { r.ID = spiffeid.ID{} }, IdentityMissing},
		"a trust domain":             {func(r *NameRequest) { r.ID = spiffeid.RequireFromString("spiffe://prod.example") }, IdentityInvalid},
		"an identity without entry":  {func(r *NameRequest) { r.ID = spiffeid.RequireFromString("spiffe://dev.example/a") }, IdentityUnknown},
		"a proof that is not enough": {func(r *NameRequest) { r.ID = spiffeid.RequireFromString(checkout) }, IdentitySourceNotAccepted},
		"quarantine":                 {func(r *NameRequest) { r.ID = spiffeid.RequireFromString(builder) }, QuarantinedIdentity},
		"type zero":                  {func(r *NameRequest) { r.Type = 0 }, TypeNotAllowed},
		"ANY":                        {func(r *NameRequest) { r.Type = 255 }, TypeNotAllowed},
		"a private type":             {func(r *NameRequest) { r.Type = 65280 }, TypeNotAllowed},
	} {
		req := good
		row.change(&req)
		d := p.DecideName(req)
		if d.Reason != row.want || d.Allowed() != (row.want == NoReason) {
			t.Errorf("%s: %s, allowed %t, want %s", why, d.Reason, d.Allowed(), row.want)
		}
		if knows := p.Knows(req.ID, req.Proof); (knows != NoReason) != (row.want >= IdentityMissing && row.want <= QuarantinedIdentity) {
			t.Errorf("%s: known as %s", why, knows)
		}
	}
	for _, none := range []*Policy{nil, {}} {
		if d := none.DecideName(good); d.Reason != PolicyUnavailable || d.Allowed() || none.Knows(good.ID, good.Proof) != PolicyUnavailable {
			t.Errorf("without a policy: %s", d.Reason)
		}
	}
	var zero NameDecision
	if zero.Allowed() || zero.CheckAddr(netip.MustParseAddr("8.8.8.8")) != Invalid || zero.CheckHop(good.Host, false) == NoReason {
		t.Error("the zero decision allows")
	}
}

// TestAddressesOfAnswers checks which addresses an answer may contain.
func TestAddressesOfAnswers(t *testing.T) {
	p := policyOf(t,
		entryOf(checkout,
			allow(rule("api.example"), rule("db.example port 5432", addresses("10.20.0.0/16")),
				rule("both.example"), rule("both.example port 80", addresses("10.20.0.0/16")),
				rule("*.example port 8080", addresses("192.168.7.0/24")), rule("gone.example", addresses("10.0.0.0/8"), expires(now()))),
			deny(rule("10.20.9.0/24"), rule("8.8.4.4/32 port 443"), rule("9.9.9.9/32"))),
		entryOf(builder, observe(now().Add(time.Hour))),
	)
	for _, row := range []struct {
		id, name, addr string
		want           Class
	}{
		{checkout, "api.example", "8.8.8.8", Public},
		{checkout, "api.example", "::ffff:8.8.8.8", Public},
		{checkout, "api.example", "10.20.0.1", Private},
		{checkout, "api.example", "169.254.169.254", Metadata},
		{checkout, "api.example", "8.8.4.4", Public}, // denied on one port only
		{checkout, "api.example", "9.9.9.9", DenyRule},
		{checkout, "api.example", "64:ff9b::909:909", DenyRule},
		{checkout, "api.example", "192.168.7.1", Public}, // *.example admits it, on port 8080
		{checkout, "db.example", "10.20.0.1", Public},
		{checkout, "db.example", "10.20.9.1", DenyRule},
		{checkout, "db.example", "10.21.0.1", Private},
		{checkout, "db.example", "8.8.8.8", OutsideRule},
		{checkout, "both.example", "10.20.0.1", Public},
		{checkout, "both.example", "8.8.8.8", Public},
		{checkout, "gone.example", "10.0.0.1", Private},
		{builder, "x.example", "8.8.8.8", Public},
		{builder, "x.example", "10.0.0.1", Private},
	} {
		d := p.DecideName(lookup(row.id, row.name))
		if got := d.CheckAddr(netip.MustParseAddr(row.addr)); got != row.want {
			t.Errorf("%s of %s: %s, want %s", row.addr, row.name, got, row.want)
		}
	}
}

// TestAliasesInAnswers checks which aliases an answer may contain, in the modes trust
// and inspect.
func TestAliasesInAnswers(t *testing.T) {
	p := policyOf(t, entryOf(checkout, allow(rule("api.example"), rule("**.cdn.example")), deny(rule("bad.cdn.example"), rule("half.cdn.example port 443"))))
	d := p.DecideName(lookup(checkout, "api.example"))
	for _, row := range []struct {
		hop            string
		trust, inspect Reason
	}{
		{"a.cdn.example", NoReason, NoReason},
		{"half.cdn.example", NoReason, NoReason},
		{"elsewhere.example", NoReason, NotOnAllowlist},
		{"bad.cdn.example", DeniedByRule, DeniedByRule},
		{"localhost", NoReason, SpecialName},
		{"api.example.elsewhere.example", NoReason, NotOnAllowlist}, // search lists do not apply to aliases
	} {
		hop := must(ParseHost(row.hop))
		if trust, inspect := d.CheckHop(hop, false), d.CheckHop(hop, true); trust != row.trust || inspect != row.inspect {
			t.Errorf("%s: %q and %q, want %q and %q", row.hop, trust, inspect, row.trust, row.inspect)
		}
	}
}

func TestNameDecisionsAllocateNothing(t *testing.T) {
	p := policyOf(t, entryOf(checkout,
		allow(rule("api.example"), rule("*.one.example"), rule("**.many.example"), rule("db.example", addresses("10.0.0.0/8"))),
		deny(rule("gist.example"), rule("9.9.9.9/32"))), entryOf("everyone of prod.example"))
	for _, question := range []string{"api.example", "a.one.example", "a.b.many.example", "db.example", "TXT api.example", "gist.example", "example", "a.b.c.other.example", "localhost", "PTR 1.2.in-addr.arpa", "api.example.corp.example"} {
		req := lookup(checkout, question)
		if n := testing.AllocsPerRun(100, func() {
			d := p.DecideName(req)
			d.CheckAddr(netip.AddrFrom4([4]byte{10, 1, 2, 3}))
			d.CheckHop(req.Host, true)
		}); n != 0 {
			t.Errorf("%s: %v allocations, want 0", question, n)
		}
	}
}

// naiveName decides a request by a search in all rules, and returns the words of
// nameAnswer without "above". It tries each shorter name that a search list may have made
// longer.
func naiveName(spec *Spec, req NameRequest) string {
	answer := naiveOwnName(spec, req)
	if !strings.HasSuffix(answer, "not-on-allowlist") {
		return answer
	}
	labels := strings.Split(req.Host.String(), ".")
	for n := 1; n < len(labels) && n <= 8; n++ {
		begin := req
		begin.Host.name = strings.Join(labels[:len(labels)-n], ".")
		if naiveOwnName(spec, begin) == "allow" {
			return strings.TrimSuffix(answer, "not-on-allowlist") + "special-name"
		}
	}
	return answer
}

// naiveOwnName decides a request by a search in all rules, without search lists. It knows
// only the special names that the generator makes, single labels.
func naiveOwnName(spec *Spec, req NameRequest) string {
	entries, refused := naiveEntries(spec, req.ID, req.Proof)
	if refused != "" {
		return refused
	}
	misses := []string{"not-on-allowlist", "rule-expired", "type-not-allowed"}
	if !strings.Contains(req.Host.String(), ".") {
		misses[0] = "special-name"
	}
	nearest, allowed := 0, false
	for _, e := range entries {
		byHost := map[HostPattern][]PortRange{}
		for _, r := range e.Deny {
			if naiveMatches(&r, req.Host) {
				ports := r.Ports
				if ports == nil {
					ports = []PortRange{{1, 65535}}
				}
				byHost[r.Host] = append(byHost[r.Host], ports...)
			}
		}
		for _, ranges := range byHost {
			open := false
			for port := 1; port < 1<<16 && !open; port++ {
				open = !slices.ContainsFunc(ranges, func(p PortRange) bool { return p.has(uint16(port)) })
			}
			if !open {
				return "denied-by-rule"
			}
		}
		for _, r := range e.Allow {
			switch {
			case !naiveMatches(&r, req.Host):
			case !r.Expires.IsZero() && !req.Time.Before(r.Expires):
				nearest = max(nearest, 1)
			case req.Type != TypeA && req.Type != TypeAAAA && req.Type != TypeHTTPS && req.Type != TypeCNAME && !slices.Contains(r.Types, req.Type):
				nearest = max(nearest, 2)
			default:
				allowed = true
			}
		}
	}
	switch {
	case allowed:
		return "allow"
	case !naiveObserves(entries, Request{Time: req.Time}) || nearest == 2:
		return misses[nearest]
	case req.Type != TypeA && req.Type != TypeAAAA && req.Type != TypeHTTPS:
		return "type-not-allowed"
	}
	return "observe " + misses[nearest]
}

// TestNameDecisionsEqualTheReference compares DecideName with the reference, for random
// policies and names.
func TestNameDecisionsEqualTheReference(t *testing.T) {
	answers := map[string]int{}
	eachPolicy(t, func(g generator, spec *Spec, p *Policy) {
		for range 30 {
			req := NameRequest{
				ID: spiffeid.RequireFromString(g.id()), Proof: pick(g, ProofX509SVID, ProofX509SVID, ProofX509SVID, ProofListener, ProofSourceMap),
				Host: must(ParseHost(g.name())), Type: pick(g, TypeA, TypeA, TypeHTTPS, TypeCNAME, TypeTXT, TypeSRV, TypePTR, QueryType(255)), Time: now(),
			}
			got, _, _ := strings.Cut(strings.TrimSuffix(nameAnswer(p.DecideName(req)), " above"), " by ")
			want := naiveName(spec, req)
			if got != want {
				t.Errorf("%s asks %s %s: %s, want %s", req.ID, req.Type, req.Host, got, want)
			}
			answers[want]++
		}
	})
	for _, want := range []string{"allow", "denied-by-rule", "not-on-allowlist", "rule-expired", "type-not-allowed", "special-name", "observe special-name", "observe rule-expired"} {
		if answers[want] < 10 {
			t.Errorf("the generator made %d of %s", answers[want], want)
		}
	}
}

// TestDecideNameAllowsWhatDecideAllows checks that DecideName allows every name that Decide
// allows on some port, and that the answer may contain every address that CheckAddr of the
// Decision admits.
func TestDecideNameAllowsWhatDecideAllows(t *testing.T) {
	ports := []uint16{1, 80, 400, 443, 445, 500, 8080, 65535}
	agreed := map[bool]int{}
	eachPolicy(t, func(g generator, _ *Spec, p *Policy) {
		for range 20 {
			req := g.request()
			if req.Dest.Host.IsAddr() {
				continue
			}
			names := NameRequest{ID: req.ID, Proof: req.Proof, Host: req.Dest.Host, Type: pick(g, TypeA, TypeAAAA), Time: req.Time}
			d := p.DecideName(names)
			agreed[d.Verdict != Deny]++
			for _, port := range ports {
				for _, method := range []string{"", "GET", "POST"} {
					req.Dest.Port, req.Method, req.Upgrade = port, method, NoUpgrade
					conn := p.Decide(req)
					if conn.Allowed() && d.Verdict == Deny {
						t.Errorf("%s may connect to %s, and its name is refused: %s", req.ID, req.Dest, d.Reason)
					}
					addr := g.addr()
					if conn.CheckAddr(netip.AddrPortFrom(addr, port)) == nil && !d.Special && d.CheckAddr(addr) != Public {
						t.Errorf("%s may connect to %s at %s, which its answer drops: %s", req.ID, req.Dest, addr, d.CheckAddr(addr))
					}
				}
			}
		}
	})
	if agreed[true] < 1000 || agreed[false] < 1000 {
		t.Errorf("%d names were answered and %d were not: too few to mean anything", agreed[true], agreed[false])
	}
}

// TestAboveIsFalseOnlyWithoutNamesBelow checks that Above is false only if no rule without
// a wildcard allows a name below the name.
func TestAboveIsFalseOnlyWithoutNamesBelow(t *testing.T) {
	eachPolicy(t, func(g generator, _ *Spec, p *Policy) {
		for range 20 {
			req := NameRequest{ID: spiffeid.RequireFromString(g.id()), Proof: ProofX509SVID, Host: must(ParseHost(g.name())), Type: TypeA, Time: now()}
			d := p.DecideName(req)
			if d.Verdict != Deny || d.Above {
				continue
			}
			for _, below := range []string{"a.", "b.", "b.a.", "x.a.b."} {
				child := req
				child.Host = must(ParseHost(below + req.Host.String()))
				if got := p.DecideName(child); got.Verdict == Allow && !strings.HasPrefix(got.Rule.Host.String(), "*") {
					t.Errorf("%s does not exist for %s, and %s does", req.Host, req.ID, child.Host)
				}
			}
		}
	})
}
