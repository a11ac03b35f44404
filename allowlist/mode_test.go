package allowlist

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestRequestsThatObserveLetsThrough checks which denials observe mode lets through.
func TestRequestsThatObserveLetsThrough(t *testing.T) {
	p := policyOf(t, entryOf(checkout, observe(now().Add(time.Hour)),
		allow(rule("api.example"), rule("old.example", expires(now())), rule("get.example port 80", methods("GET"), paths("/p/**")), rule("10.0.0.0/8")),
		deny(rule("gist.example"), rule("9.9.9.9/32"))))
	checkRows(t, p, []row{
		{"an allowed request", tunnel(checkout, "api.example:443"), "allow"},
		{"a name that is not listed", tunnel(checkout, "other.example:443"), "observe not-on-allowlist"},
		{"another port", tunnel(checkout, "api.example:80"), "observe port-not-allowed"},
		{"an expired rule", tunnel(checkout, "old.example:443"), "observe rule-expired"},
		{"another method", plain(checkout, "PUT", "get.example:80", "/p/x"), "observe method-not-allowed"},
		{"another path", plain(checkout, "GET", "get.example:80", "/q"), "observe path-not-allowed"},
		{"a public address", tunnel(checkout, "8.8.8.8:443"), "observe ip-not-on-allowlist"},
		{"a public address through NAT64", tunnel(checkout, "[64:ff9b::808:808]:443"), "observe ip-not-on-allowlist"},

		{"a deny rule", tunnel(checkout, "gist.example:443"), "denied-by-rule"},
		{"a denied address", tunnel(checkout, "9.9.9.9:443"), "denied-by-rule"},
		{"a malformed path", plain(checkout, "GET", "get.example:80", "/p/../q"), "malformed-target"},
		{"a private address", tunnel(checkout, "192.168.0.1:443"), "ip-not-on-allowlist"},
		{"the wrong port of a private address", tunnel(checkout, "10.0.0.1:80"), "port-not-allowed"},
		{"loopback", tunnel(checkout, "127.0.0.1:443"), "ip-not-on-allowlist"},
		{"metadata", tunnel(checkout, "169.254.169.254:443"), "ip-not-on-allowlist"},
		{"another identity", tunnel(builder, "other.example:443"), "identity-unknown"},
		{"another source", Request{ID: spiffeid.RequireFromString(checkout), Proof: ProofSourceMap, Dest: must(ParseDestination("a.example:443"))}, "identity-source-not-accepted"},
		{"no host", Request{ID: spiffeid.RequireFromString(checkout), Proof: ProofListener, Dest: Destination{Port: 443}}, "malformed-target"},
		{"no port", Request{ID: spiffeid.RequireFromString(checkout), Proof: ProofListener, Dest: Destination{Host: must(ParseHost("a.example"))}}, "malformed-port"},
	})
	d := p.Decide(tunnel(checkout, "192.168.0.1:443"))
	if d.Class != Private || d.WouldReason != NoReason {
		t.Errorf("a private literal: class %s, would %q, want private and none", d.Class, d.WouldReason)
	}
	observed := p.Decide(tunnel(checkout, "other.example:443"))
	if observed.Rule != nil || observed.Mode != ModeObserve || !observed.Allowed() {
		t.Errorf("an observed request: %+v", observed)
	}
	for addr, want := range map[string]Class{"8.8.8.8": Public, "10.0.0.1": Private, "127.0.0.1": Loopback, "9.9.9.9": DenyRule} {
		if got := classOf(observed.CheckAddr(netip.AddrPortFrom(netip.MustParseAddr(addr), 443))); got != want {
			t.Errorf("an observed name at %s: %s, want %s", addr, got, want)
		}
	}
}

// TestObservePrivate checks that observe_private lets private addresses through, and no
// other special ones.
func TestObservePrivate(t *testing.T) {
	e := entryOf(checkout, observe(now().Add(time.Hour)))
	e.ObservePrivate = true
	p := policyOf(t, e).WithClassifier(NewClassifier(Local{Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.3")}}))
	checkRows(t, p, []row{
		{"a private address", tunnel(checkout, "192.168.0.1:443"), "observe ip-not-on-allowlist"},
		{"a unique local address", tunnel(checkout, "[fd00::1]:443"), "observe ip-not-on-allowlist"},
		{"loopback", tunnel(checkout, "127.0.0.1:443"), "ip-not-on-allowlist"},
		{"link-local", tunnel(checkout, "169.254.1.1:443"), "ip-not-on-allowlist"},
		{"metadata", tunnel(checkout, "169.254.169.254:443"), "ip-not-on-allowlist"},
		{"an own address", tunnel(checkout, "10.1.2.3:443"), "ip-not-on-allowlist"},
	})
}

// TestModeIsThatOfTheMostSpecificEntryThatDecidesIt checks that the mode of an identity
// is that of its most specific entry which sets a mode, or which has an allow list of
// its own.
func TestModeIsThatOfTheMostSpecificEntryThatDecidesIt(t *testing.T) {
	const everyone, namespace = "everyone of prod.example", "spiffe://prod.example/ns/payments/**"
	const account = "spiffe://prod.example/ns/payments/sa/*"
	later := now().Add(time.Hour)
	list := allow(rule("only.example"))
	old := allow(rule("old.example", expires(now())))
	name := allow(rule("_sip.example", noTunnel))
	empty := func(e *Entry) { e.Allow = []Rule{} }
	denying := deny(rule("bad.example"))
	settings := func(e *Entry) {
		e.Owner, e.Limits, e.SharedLimits = "team", Limits{Tunnels: 1}, Limits{Tunnels: 2}
	}
	for _, row := range []struct {
		why     string
		want    string
		entries []Entry
	}{
		{"nothing set enforces", "not-on-allowlist", []Entry{entryOf(checkout)}},
		{"observe from a less specific entry", "observe not-on-allowlist", []Entry{entryOf(checkout), entryOf(namespace, observe(later))}},
		{"the more specific entry enforces", "not-on-allowlist", []Entry{entryOf(checkout, enforce), entryOf(namespace, observe(later))}},
		{"the more specific entry observes", "observe not-on-allowlist", []Entry{entryOf(checkout, observe(later)), entryOf(namespace, enforce)}},
		{"force cannot be overridden", "not-on-allowlist", []Entry{entryOf(checkout, observe(later)), entryOf(namespace, force)}},
		{"force of everyone cannot be overridden", "not-on-allowlist", []Entry{entryOf(checkout, observe(later)), entryOf(everyone, force)}},
		{"everyone observes", "observe not-on-allowlist", []Entry{entryOf(checkout), entryOf(everyone, observe(later))}},
		{"an end that has come enforces", "not-on-allowlist", []Entry{entryOf(checkout, observe(now()))}},
		{"an end that has come does not pass the mode on to a less specific entry", "not-on-allowlist", []Entry{entryOf(checkout, observe(now())), entryOf(namespace, observe(later))}},
		{"the instant before the end observes", "observe not-on-allowlist", []Entry{entryOf(checkout, observe(now().Add(1)))}},

		{"an entry with an allow list of its own enforces", "not-on-allowlist", []Entry{entryOf(checkout, list), entryOf(namespace, observe(later))}},
		{"an allow list enforces although everyone observes", "not-on-allowlist", []Entry{entryOf(checkout, list), entryOf(everyone, observe(later))}},
		{"an allow list enforces although a less specific entry has one, too, and observes", "not-on-allowlist", []Entry{entryOf(checkout, list), entryOf(namespace, observe(later), list)}},
		{"an allow list of a pattern enforces", "not-on-allowlist", []Entry{entryOf(account, list), entryOf(namespace, observe(later))}},
		{"an expired allow list enforces", "not-on-allowlist", []Entry{entryOf(checkout, old), entryOf(namespace, observe(later))}},
		{"an allow list of names that are only resolved enforces", "not-on-allowlist", []Entry{entryOf(checkout, name), entryOf(namespace, observe(later))}},
		{"an empty allow list enforces", "not-on-allowlist", []Entry{entryOf(checkout, empty), entryOf(namespace, observe(later))}},
		{"an allow list beside deny rules enforces", "not-on-allowlist", []Entry{entryOf(checkout, list, denying), entryOf(namespace, observe(later))}},
		{"an allow list of an entry in between enforces", "not-on-allowlist", []Entry{entryOf(checkout, denying), entryOf(account, list), entryOf(namespace, observe(later))}},
		{"an entry with an allow list and the mode observe observes", "observe not-on-allowlist", []Entry{entryOf(checkout, list, observe(later)), entryOf(namespace, list)}},
		{"an allow list of everyone does not decide for a more specific entry", "observe not-on-allowlist", []Entry{entryOf(checkout, observe(later)), entryOf(everyone, list)}},
		{"an allow list of everyone enforces where nothing else decides", "not-on-allowlist", []Entry{entryOf(checkout), entryOf(everyone, list)}},
		{"deny rules do not decide", "observe not-on-allowlist", []Entry{entryOf(checkout, denying), entryOf(namespace, observe(later))}},
		{"owner and limits do not decide", "observe not-on-allowlist", []Entry{entryOf(checkout, settings), entryOf(namespace, observe(later))}},
		{"an allow list with inherit_mode does not decide", "observe not-on-allowlist", []Entry{entryOf(checkout, list, inherit), entryOf(namespace, observe(later))}},
		{"inherit_mode takes the mode of the next entry that decides", "not-on-allowlist", []Entry{entryOf(checkout, list, inherit), entryOf(account, list), entryOf(namespace, observe(later))}},
		{"inherit_mode passes over other entries that inherit", "observe not-on-allowlist", []Entry{entryOf(checkout, list, inherit), entryOf(account, list, inherit), entryOf(everyone, observe(later))}},
		{"inherit_mode without a less specific entry enforces", "not-on-allowlist", []Entry{entryOf(checkout, list, inherit)}},
		{"a mode beside inherit decides", "observe not-on-allowlist", []Entry{entryOf(checkout, list, inherit, observe(later)), entryOf(namespace, enforce)}},
		{"inherit_mode inherits an end that has come", "not-on-allowlist", []Entry{entryOf(checkout, list, inherit), entryOf(account, observe(now())), entryOf(namespace, observe(later))}},
		{"force holds for a list that inherits", "not-on-allowlist", []Entry{entryOf(checkout, list, inherit), entryOf(account, observe(later)), entryOf(everyone, force)}},
	} {
		p := policyOf(t, row.entries...)
		if got := answer(p.Decide(tunnel(checkout, "other.example:443"))); got != row.want {
			t.Errorf("%s: %s, want %s", row.why, got, row.want)
		}
		got := strings.TrimSuffix(nameAnswer(p.DecideName(lookup(checkout, "other.example"))), " above")
		if got != row.want {
			t.Errorf("%s: its name %s, want %s", row.why, got, row.want)
		}
	}
}

// TestRulesOfEveryone checks to which identities the rules of everyone apply, with and
// without unlisted.
func TestRulesOfEveryone(t *testing.T) {
	everyone := entryOf("everyone of prod.example", allow(rule("otel.example")))
	p := policyOf(t, entryOf(checkout), everyone)
	checkRows(t, p, []row{
		{"an identity with an entry", tunnel(checkout, "otel.example:443"), "allow"},
		{"an identity without an entry", tunnel(builder, "otel.example:443"), "identity-unknown"},
		{"another trust domain", tunnel("spiffe://prod.example.evil/a", "otel.example:443"), "identity-unknown"},
	})
	everyone.Unlisted = true
	p = policyOf(t, entryOf(checkout), entryOf("spiffe://dev.example/a"), everyone)
	checkRows(t, p, []row{
		{"an identity without an entry, with unlisted", tunnel(builder, "otel.example:443"), "allow"},
		{"another name, with unlisted", tunnel(builder, "other.example:443"), "not-on-allowlist"},
		{"an entry of another trust domain", tunnel("spiffe://dev.example/a", "otel.example:443"), "not-on-allowlist"},
		{"the trust domain itself", tunnel("spiffe://prod.example", "otel.example:443"), "identity-invalid"},
	})
}

// TestAcceptedProofs checks which proofs an entry accepts.
func TestAcceptedProofs(t *testing.T) {
	accepting := func(id string, sources ...Proof) Entry {
		e := entryOf(id, allow(rule("api.example")))
		e.Accept = ProofsOf(sources...)
		return e
	}
	for _, row := range []struct {
		why     string
		entries []Entry
		want    map[Proof]bool
	}{
		{"the default", []Entry{accepting(checkout)}, map[Proof]bool{ProofX509SVID: true, ProofListener: true}},
		{"listeners only", []Entry{accepting(checkout, ProofListener)}, map[Proof]bool{ProofListener: true}},
		{"the more specific entry", []Entry{accepting(checkout, ProofSourceMap), accepting("spiffe://prod.example/**", ProofX509SVID)}, map[Proof]bool{ProofSourceMap: true}},
		{"the less specific entry where the more specific one sets none", []Entry{accepting(checkout), accepting("spiffe://prod.example/**", ProofSourceMap)}, map[Proof]bool{ProofSourceMap: true}},
		{"no proof is never accepted", []Entry{accepting(checkout, NoProof)}, map[Proof]bool{}},
	} {
		p := policyOf(t, row.entries...)
		for s := range Proof(255) {
			req := tunnel(checkout, "api.example:443")
			req.Proof = s
			if got := p.Decide(req).Allowed(); got != row.want[s] {
				t.Errorf("%s: source %d (%s) accepted: %t", row.why, s, s, got)
			}
		}
	}
	for s := ProofX509SVID; s <= ProofSourceMap; s++ {
		if got, ok := ParseProof(s.String()); got != s || !ok {
			t.Errorf("ParseProof(%s) = %v, %t", s, got, ok)
		}
	}
	for _, word := range []string{"", "invalid", "X509-SVID", "jwt-svid"} {
		if s, ok := ParseProof(word); ok || s != NoProof {
			t.Errorf("ParseProof(%q) = %s, want none", word, s)
		}
	}
}

// TestQuarantineCutsOff checks which identities a line of the quarantine list matches,
// and that everything is denied to them.
func TestQuarantineCutsOff(t *testing.T) {
	lines := func(patterns ...string) (q []Quarantined) {
		for _, p := range patterns {
			pattern, err := ParseIdentityPattern(p)
			if err != nil {
				pattern = EveryonePattern(spiffeid.RequireTrustDomainFromString(p))
			}
			q = append(q, Quarantined{Pattern: pattern, Reason: p})
		}
		return q
	}
	entries := []Entry{entryOf("spiffe://prod.example/**", observe(now().Add(time.Hour)), allow(rule("api.example")))}
	for _, row := range []struct {
		why, pattern string
		want         bool
	}{
		{"the identity", checkout, true},
		{"another identity", builder, false},
		{"a prefix of the text", "spiffe://prod.example/ns/payments/sa/check", false},
		{"the parent path of the identity", "spiffe://prod.example/ns/payments/sa", false},
		{"one segment", "spiffe://prod.example/ns/payments/sa/*", true},
		{"one segment too high", "spiffe://prod.example/ns/payments/*", false},
		{"many segments", "spiffe://prod.example/ns/**", true},
		{"the trust domain", "spiffe://prod.example/**", true},
		{"everyone", "prod.example", true},
		{"everyone elsewhere", "dev.example", false},
	} {
		inline := must(Compile(Spec{Entries: entries, Quarantine: lines(row.pattern)}))
		list := must(Compile(Spec{Entries: entries})).WithQuarantine(NewQuarantineList(lines(row.pattern)))
		for where, p := range map[string]*Policy{"inline": inline, "list": list} {
			d := p.Decide(tunnel(checkout, "api.example:443"))
			if got := d.Reason == QuarantinedIdentity; got != row.want || got == d.Allowed() {
				t.Errorf("%s, %s: quarantined %t, want %t", row.why, where, got, row.want)
			}
			if row.want && (d.Quarantine == nil || d.Quarantine.Reason != row.pattern) {
				t.Errorf("%s, %s: line %v", row.why, where, d.Quarantine)
			}
		}
		if d := list.WithQuarantine(nil).Decide(tunnel(checkout, "api.example:443")); !d.Allowed() {
			t.Errorf("%s: the quarantine remains after its list was removed: %s", row.why, d.Reason)
		}
		if d := inline.WithQuarantine(nil).Decide(tunnel(checkout, "api.example:443")); d.Allowed() == row.want {
			t.Errorf("%s: the policy's own list was removed with the other", row.why)
		}
	}
	unknown := must(Compile(Spec{Quarantine: lines(checkout)})).Decide(tunnel(checkout, "api.example:443"))
	if unknown.Reason != QuarantinedIdentity {
		t.Errorf("an unknown quarantined identity: %s, want quarantined", unknown.Reason)
	}
	first := NewQuarantineList([]Quarantined{{Pattern: lines(checkout)[0].Pattern, Reason: "first"}, {Pattern: lines(checkout)[0].Pattern, Reason: "second"}})
	if q := first.find(spiffeid.RequireFromString(checkout)); q.Reason != "first" {
		t.Errorf("of two lines the %s is kept, want the first", q.Reason)
	}
}

// TestARuleHoldsUntilItExpires checks that a rule allows requests before its date, and
// not from that date on.
func TestARuleHoldsUntilItExpires(t *testing.T) {
	p := policyOf(t, entryOf(checkout, allow(rule("api.example", expires(now())))))
	checkRows(t, p, []row{
		{"a year before", at(tunnel(checkout, "api.example:443"), now().AddDate(-1, 0, 0)), "allow"},
		{"a nanosecond before", at(tunnel(checkout, "api.example:443"), now().Add(-1)), "allow"},
		{"the instant itself", at(tunnel(checkout, "api.example:443"), now()), "rule-expired"},
		{"the instant in another zone", at(tunnel(checkout, "api.example:443"), now().In(time.FixedZone("", 3600))), "rule-expired"},
		{"a nanosecond after", at(tunnel(checkout, "api.example:443"), now().Add(1)), "rule-expired"},
	})
}

// TestZeroValuesDeny checks that zero policies, requests and decisions deny.
func TestZeroValuesDeny(t *testing.T) {
	req := tunnel(checkout, "api.example:443")
	var none *Policy
	open := policyOf(t, entryOf(checkout, observe(now().Add(time.Hour)), allow(rule("api.example"))))
	for why, d := range map[string]Decision{
		"the zero decision":               {},
		"a nil policy":                    none.Decide(req),
		"a nil policy with a list":        none.WithQuarantine(nil).WithClassifier(nil).Decide(req),
		"the zero policy":                 new(Policy).Decide(req),
		"the policy of the zero spec":     must(Compile(Spec{})).Decide(req),
		"the zero request":                open.Decide(Request{}),
		"a request without an identity":   open.Decide(Request{Dest: req.Dest, Proof: ProofX509SVID, Time: now()}),
		"a request without a source":      open.Decide(Request{ID: req.ID, Dest: req.Dest, Time: now()}),
		"a request without a destination": open.Decide(Request{ID: req.ID, Proof: ProofX509SVID, Time: now()}),
	} {
		if d.Allowed() || d.Verdict != Deny {
			t.Errorf("%s: %s", why, d.Verdict)
		}
		if d.CheckAddr(netip.MustParseAddrPort("8.8.8.8:443")) == nil {
			t.Errorf("%s: CheckAddr lets an address through", why)
		}
	}
	if got := none.Decide(req).Reason; got != PolicyUnavailable {
		t.Errorf("a nil policy: %s, want policy-unavailable", got)
	}
	if none.Version() != "" || none.Decide(req).PolicyVersion() != "" {
		t.Error("a nil policy has a version")
	}
	if !open.WithClassifier(nil).Decide(req).Allowed() {
		t.Error("a nil classifier does not set the one that Compile sets")
	}
}

// TestNextEndIsTheNextDate checks that NextEnd returns the next date at which a rule or
// an observe mode ends.
func TestNextEndIsTheNextDate(t *testing.T) {
	day := func(d int) time.Time { return time.Date(2027, 1, d, 0, 0, 0, 0, time.UTC) }
	pattern, err := ParseIdentityPattern("spiffe://td.example/w")
	if err != nil {
		t.Fatal(err)
	}
	host := func(name string) HostPattern {
		p, err := ParseHostPattern(name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p, err := Compile(Spec{Entries: []Entry{{
		Pattern: pattern, Mode: ModeObserve, ObserveUntil: day(9),
		Allow: []Rule{{Host: host("a.example"), Expires: day(5)}, {Host: host("b.example"), Expires: day(3)}, {Host: host("c.example")}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for now, want := range map[int]int{1: 3, 3: 5, 4: 5, 5: 9} {
		if at, ok := p.NextEnd(day(now)); !ok || !at.Equal(day(want)) {
			t.Errorf("after day %d: %v, %v; want day %d", now, at, ok, want)
		}
	}
	if at, ok := p.NextEnd(day(9)); ok {
		t.Errorf("after the last end: %v", at)
	}
	if _, ok := (*Policy)(nil).NextEnd(day(1)); ok {
		t.Error("a nil policy has an end")
	}
}

// TestQuarantinedArePatternsOfBothLists checks that the quarantined patterns are those
// of the policy and of the quarantine list, each once.
func TestQuarantinedArePatternsOfBothLists(t *testing.T) {
	line := func(texts ...string) (lines []Quarantined) {
		for _, text := range texts {
			p, err := ParseIdentityPattern(text)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, Quarantined{Pattern: p})
		}
		return lines
	}
	p, err := Compile(Spec{Quarantine: line("spiffe://td.example/b/**", "spiffe://td.example/a")})
	if err != nil {
		t.Fatal(err)
	}
	both := p.WithQuarantine(NewQuarantineList(line("spiffe://td.example/a", "spiffe://td.example/0/*")))
	for _, row := range []struct {
		p    *Policy
		want []string
	}{
		{nil, nil},
		{p, []string{"spiffe://td.example/a", "spiffe://td.example/b/**"}},
		{both, []string{"spiffe://td.example/0/*", "spiffe://td.example/a", "spiffe://td.example/b/**"}},
	} {
		if diff := cmp.Diff(row.p.Quarantined(), row.want); diff != "" {
			t.Errorf("(-got +want):\n%s", diff)
		}
	}
}
