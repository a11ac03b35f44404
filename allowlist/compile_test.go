package allowlist

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestCompileRefuses(t *testing.T) {
	for want, entries := range map[string][]Entry{
		"an entry has no identity pattern":        {{}},
		checkout + " has two entries":             {entryOf(checkout), entryOf(checkout)},
		"everyone of spiffe://td has two entries": {entryOf("everyone of td"), entryOf("everyone of td")},
		"mode observe has no end":                 {entryOf(checkout, observe(time.Time{}))},
		"a rule needs either a host or a cidr":    {entryOf(checkout, allow(Rule{}))},
		checkout + ": a rule needs either a host": {entryOf(checkout, deny(Rule{Host: rule("a.example").Host, CIDR: rule("8.8.8.8/32").CIDR}))},
	} {
		if p, err := Compile(Spec{Entries: entries}); err == nil || p != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Compile: %v, want %q", err, want)
		}
	}
}

// TestNamesOfRules checks that an unnamed rule has a name that depends on its meaning,
// and not on its place.
func TestNamesOfRules(t *testing.T) {
	name := func(id string, r Rule) string {
		t.Helper()
		host := "a.example:443"
		if r.CIDR.IsValid() {
			host = r.CIDR.Addr().Unmap().String() + ":443"
		}
		d := policyOf(t, entryOf(id, allow(rule("z.example"), r))).Decide(tunnel(checkout, host))
		if d.Rule == nil {
			t.Fatalf("%+v admits nothing: %s", r, d.Reason)
		}
		return d.Rule.Name()
	}
	if got := name(checkout, rule("a.example", named("ledger"))); got != "ledger" {
		t.Errorf("a named rule is %q", got)
	}
	plain := name(checkout, rule("a.example"))
	if !regexp.MustCompile(`^[0-9a-f]{10}$`).MatchString(plain) {
		t.Errorf("an unnamed rule is %q, want 10 hex digits", plain)
	}
	moved := rule("a.example")
	moved.At = "other.yaml:99"
	for why, same := range map[string]Rule{
		"the default port written out": rule("a.example port 443"),
		"another line":                 moved,
	} {
		if got := name(checkout, same); got != plain {
			t.Errorf("%s renames the rule: %q, was %q", why, got, plain)
		}
	}
	seen := map[string]string{}
	for why, r := range map[string]Rule{
		"plain": rule("a.example"), "port": rule("a.example port 443,80"), "wildcard": rule("*.example"), "expiry": rule("a.example", expires(now().Add(1))), "expiry a moment later": rule("a.example", expires(now().Add(2))),
		"addresses": rule("a.example", addresses("10.0.0.0/8")), "no addresses": rule("a.example", addresses()),
	} {
		got := name(checkout, r)
		if other, taken := seen[got]; taken && why != "no addresses" && other != "no addresses" {
			t.Errorf("%s and %s have the name %s", why, other, got)
		}
		seen[got] = why
	}
	if other := name("spiffe://prod.example/**", rule("a.example")); other == plain {
		t.Error("the same rule of another identity has the same name")
	}
	if a, b := name(checkout, rule("8.8.8.8/24")), name(checkout, rule("::ffff:8.8.8.0/120")); a != b {
		t.Errorf("two spellings of a range have the names %s and %s", a, b)
	}
	if a, b := name(checkout, rule("a.example", addresses("10.1.2.3/8"))), name(checkout, rule("a.example", addresses("::ffff:10.0.0.0/104"))); a != b {
		t.Errorf("two spellings of addresses give the names %s and %s", a, b)
	}
}

// TestPlaceOfARule checks that the place of a rule names the file and line, and those of
// its use.
func TestPlaceOfARule(t *testing.T) {
	for useAt, want := range map[string]string{"": "a.yaml:3", "b.yaml:9": "a.yaml:3, used at b.yaml:9"} {
		r := rule("api.example")
		r.At, r.UseAt = "a.yaml:3", useAt
		d := policyOf(t, entryOf(checkout, allow(r))).Decide(tunnel(checkout, "api.example:443"))
		if got := d.Rule.Place(); got != want {
			t.Errorf("place %q, want %q", got, want)
		}
	}
}

func TestOwnerIsThatOfTheMostSpecificEntry(t *testing.T) {
	wide, narrow := entryOf("spiffe://prod.example/**"), entryOf(checkout)
	wide.Owner = "platform"
	if got := policyOf(t, wide, narrow).Decide(tunnel(checkout, "a.example:443")).Owner; got != "platform" {
		t.Errorf("owner %q, want platform", got)
	}
	narrow.Owner = "payments"
	if got := policyOf(t, wide, narrow).Decide(tunnel(checkout, "a.example:443")).Owner; got != "payments" {
		t.Errorf("owner %q, want payments", got)
	}
}

// TestPortTables checks that overlapping ranges of ports are split at every boundary.
func TestPortTables(t *testing.T) {
	p := policyOf(t, entryOf(checkout, allow(
		rule("a.example port 100-200", named("first")),
		rule("a.example port 150-300,1,65535", named("second")),
		rule("a.example port 250-260", named("hidden")),
		rule("a.example port 299-400", named("last")))))
	want := func(port int) string {
		switch {
		case port >= 100 && port <= 200:
			return "allow by first"
		case port > 200 && port <= 300, port == 1, port == 65535:
			return "allow by second"
		case port > 300 && port <= 400:
			return "allow by last"
		}
		return "port-not-allowed"
	}
	req := tunnel(checkout, "a.example:443")
	for port := 1; port < 1<<16; port++ {
		req.Dest.Port = uint16(port)
		if got := answer(p.Decide(req)); got != want(port) {
			t.Fatalf("port %d: %s, want %s", port, got, want(port))
		}
	}
	req.Dest.Port = 443
	if got := p.Decide(req).AllowedPorts(); got != "1, 100-149, 150-200, 201-249, 250-260, 261-298, 299-300, 301-400, 65535" {
		t.Errorf("allowed ports %q", got)
	}
}

// TestSetOfDepths checks the set of numbers of labels in which the index has entries.
func TestSetOfDepths(t *testing.T) {
	var d depths
	for _, n := range []int{0, 1, 63, 64, 127, 128} {
		d.set(n)
	}
	var got []int
	for n := d.below(129); n >= 0; n = d.below(n) {
		if !d.has(n) {
			t.Errorf("below returned %d, which is not in the set", n)
		}
		got = append(got, n)
	}
	if len(got) != 6 || got[0] != 128 || got[5] != 0 {
		t.Errorf("members %v", got)
	}
	if d.has(2) || d.has(192) || d.has(1000) {
		t.Error("the set contains numbers that were not added")
	}
}
