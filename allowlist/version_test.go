package allowlist

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// others returns values that the bases of the test do not have, by type.
func others() map[reflect.Type]any {
	all := map[reflect.Type]any{}
	for _, v := range []any{
		"another", true, 7, int64(7),
		time.Date(2031, 1, 2, 3, 4, 5, 6, time.UTC),
		must(ParseIdentityPattern("spiffe://prod.example/ns/other/*")), must(ParseHostPattern("*.other.example")),
		netip.MustParsePrefix("203.0.113.0/24"),
		[]netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		[]PortRange{{First: 7, Last: 9}},
		[]string{"PATCH"},
		[]PathPattern{must(ParsePathPattern("/other/**"))},
		[]QueryType{TypeSRV},
		ProofsOf(ProofSourceMap), ModeObserve, TLSAuto, ECHRefuse,
		[]Quarantined{{Pattern: must(ParseIdentityPattern("spiffe://prod.example/ns/other/*"))}},
	} {
		all[reflect.TypeOf(v)] = v
	}
	return all
}

// bases returns policies with one entry each. Every field matters in one of them.
func bases() []Spec {
	date := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var all []Spec
	for _, rules := range [][2]Rule{
		{rule("api.example", expires(date)), rule("bad.example")},
		{rule("198.51.100.0/24"), rule("192.0.2.0/24")},
	} {
		e := entryOf("spiffe://prod.example/ns/a/sa/b", allow(rules[0]), deny(rules[1]))
		e.ObserveUntil = date
		all = append(all, Spec{Entries: []Entry{e}})
	}
	return all
}

// eachField calls visit for every field of a struct and of the structs in its lists. path
// ends in the name of the field.
func eachField(v reflect.Value, path string, visit func(path string, field reflect.Value)) {
	for i := range v.NumField() {
		field, name := v.Field(i), path+"."+v.Type().Field(i).Name
		switch t := field.Type(); {
		case t == reflect.TypeFor[Limits]():
			eachField(field, name, visit)
		case t == reflect.TypeFor[[]Entry](), t == reflect.TypeFor[[]Rule]():
			for n := range field.Len() {
				eachField(field.Index(n), fmt.Sprintf("%s[%d]", name, n), visit)
			}
		default:
			visit(name, field)
		}
	}
}

// TestVersionCoversEveryField changes one field after another and checks that each change
// has a version of its own. Only places must not change the version. The fields are found
// by reflection, so that none is forgotten.
func TestVersionCoversEveryField(t *testing.T) {
	meaningless := func(path string) bool {
		return slices.ContainsFunc([]string{".At", ".UseAt"}, func(s string) bool { return path[len(path)-min(len(s), len(path)):] == s })
	}
	seen, visited, changed := map[string]string{}, map[string]bool{}, map[string]bool{}
	for n, base := range bases() {
		before := must(Compile(base))
		if of, twice := seen[before.Version()]; twice {
			t.Errorf("base %d has the version of %s", n, of)
		}
		seen[before.Version()] = fmt.Sprintf("base %d", n)
		eachField(reflect.ValueOf(&base).Elem(), "", func(path string, field reflect.Value) {
			if path == ".Version" {
				return
			}
			visited[path] = true
			other, known := others()[field.Type()]
			if !known {
				t.Fatalf("%s has the type %s, of which this test knows no value", path, field.Type())
			}
			was := reflect.ValueOf(field.Interface())
			field.Set(reflect.ValueOf(other))
			after, err := Compile(base)
			field.Set(was)
			if err != nil {
				return // the change gives a rule both a host and a cidr
			}
			changed[path] = true
			switch {
			case meaningless(path):
				if after.Version() != before.Version() {
					t.Errorf("%s changes the version", path)
				}
			case path == ".Quarantine":
				if after.Version() != before.Version() || after.QuarantineVersion() == "" || before.QuarantineVersion() != "" {
					t.Errorf("%s: version %q, and %q of the quarantine", path, after.Version(), after.QuarantineVersion())
				}
			default:
				if of, twice := seen[after.Version()]; twice {
					t.Errorf("base %d: %s gives the version of %s", n, path, of)
				}
				seen[after.Version()] = fmt.Sprintf("base %d, %s", n, path)
			}
		})
	}
	for path := range visited {
		if !changed[path] {
			t.Errorf("%s was never changed", path)
		}
	}
	if len(seen) < 60 {
		t.Errorf("only %d versions were compared", len(seen))
	}
}

// TestVersionOfEqualPolicies checks that the version does not depend on the spelling of
// values, or on the order of entries, of lists, and of rules where it has no meaning.
func TestVersionOfEqualPolicies(t *testing.T) {
	zone := time.FixedZone("", 3600)
	a := entryOf("spiffe://prod.example/ns/a/sa/b",
		allow(rule("one.example port 443,8443"), rule("*.two.example", methods("POST", "GET"), paths("/b", "/a")), rule("one.example", addresses("10.0.0.0/8", "192.0.2.0/24"))),
		deny(rule("bad.one.example"), rule("bad.two.example")))
	a.Allow[0].Expires = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	b := entryOf("everyone of prod.example", allow(rule("all.example")))
	c := entryOf("spiffe://prod.example/ns/a/*", allow(rule("all.example")))
	first := must(Compile(Spec{Entries: []Entry{a, b, c}}))

	d := a
	d.Mode = ModeEnforce // an entry with a list enforces anyway
	d.Allow = []Rule{
		rule("*.two.example", methods("GET", "POST"), paths("/a", "/b")),
		rule("one.example port 8443,443"),
		rule("one.example", addresses("192.0.2.7/24", "::ffff:10.0.0.0/104")),
	}
	d.Allow[1].Expires = time.Date(2030, 1, 1, 1, 0, 0, 0, zone)
	d.Deny = []Rule{rule("bad.two.example"), rule("bad.one.example")}
	again := must(Compile(Spec{Entries: []Entry{c, d, b}}))
	if first.Version() != again.Version() {
		t.Errorf("version %s, want %s", again.Version(), first.Version())
	}

	// Of two rules for the same host the first one is recorded.
	a.Allow = []Rule{a.Allow[2], a.Allow[1], a.Allow[0]}
	if turned := must(Compile(Spec{Entries: []Entry{a, b, c}})); turned.Version() == first.Version() {
		t.Error("the order of rules for one host does not change the version")
	}
}

// TestVersionsAreUnambiguous checks that a part which moves from the end of a text or
// list to the beginning of the next changes the version.
func TestVersionsAreUnambiguous(t *testing.T) {
	seen := map[string]int{}
	for i, e := range []Entry{
		entryOf("spiffe://prod.example/a", allow(Rule{Name: "ab", Ticket: "c", Host: must(ParseHostPattern("x.example"))})),
		entryOf("spiffe://prod.example/a", allow(Rule{Name: "a", Ticket: "bc", Host: must(ParseHostPattern("x.example"))})),
		entryOf("spiffe://prod.example/a", allow(rule("a.example"), rule("b.example"))),
		entryOf("spiffe://prod.example/a", allow(rule("a.example")), deny(rule("b.example"))),
		entryOf("spiffe://prod.example/a", deny(rule("a.example"), rule("b.example"))),
		entryOf("spiffe://prod.example/a", allow(rule("a.example", methods("GET")))),
		entryOf("spiffe://prod.example/a", allow(rule("a.example", addresses()))),
		entryOf("spiffe://prod.example/a", allow(rule("a.example"))),
		entryOf("spiffe://prod.example/a", allow()),
		entryOf("spiffe://prod.example/a/*"),
		entryOf("spiffe://prod.example/a/**"),
		{Pattern: EveryonePattern(spiffeid.RequireTrustDomainFromString("prod.example"))},
		entryOf("spiffe://prod.example/**"),
	} {
		version := must(Compile(Spec{Entries: []Entry{e}})).Version()
		if other, twice := seen[version]; twice {
			t.Errorf("entries %d and %d have the same version", other, i)
		}
		seen[version] = i
	}
}

// TestQuarantineVersion checks that the version depends on the patterns and reasons of
// the lines, and not on the list that they are in.
func TestQuarantineVersion(t *testing.T) {
	cut := func(id, reason, at string) Quarantined {
		return Quarantined{Pattern: must(ParseIdentityPattern(id)), Reason: reason, At: at}
	}
	of := func(inline []Quarantined, list ...Quarantined) string {
		return must(Compile(Spec{Quarantine: inline})).WithQuarantine(NewQuarantineList(list)).QuarantineVersion()
	}
	a, b := cut("spiffe://prod.example/a", "INC-1", "q:1"), cut("spiffe://prod.example/b/*", "", "q:2")
	want := of([]Quarantined{a, b})
	if len(want) != 12 {
		t.Errorf("got %q, want 12 digits", want)
	}
	moved := a
	moved.At = "other:7"
	for name, got := range map[string]string{
		"another order": of([]Quarantined{b, a}), "in the list": of(nil, a, b), "in both": of([]Quarantined{b}, moved, b),
	} {
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for name, got := range map[string]string{
		"one less": of(nil, a), "another reason": of(nil, cut("spiffe://prod.example/a", "INC-2", ""), b),
		"wider": of(nil, a, cut("spiffe://prod.example/b/**", "", "")),
	} {
		if got == want || got == "" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := of(nil); got != "" {
		t.Errorf("without a quarantine the version is %q", got)
	}
}
