package policyfile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
)

// describe returns a rule of a Spec as text, without its place.
func describe(r allowlist.Rule) string {
	words := []string{r.Host.String()}
	if r.CIDR.IsValid() {
		words[0] = r.CIDR.String()
	}
	for _, p := range r.Ports {
		words = append(words, ":"+p.String())
	}
	for _, p := range r.Addresses {
		words = append(words, "in "+p.String())
	}
	if r.Name != "" {
		words = append(words, "named "+r.Name)
	}
	if r.Ticket != "" {
		words = append(words, "for "+r.Ticket)
	}
	if !r.Expires.IsZero() {
		words = append(words, "until "+r.Expires.Format(time.RFC3339))
	}
	if r.UseAt != "" {
		words = append(words, "at "+r.At+", used at "+r.UseAt)
	}
	return strings.Join(words, " ")
}

// rules loads a policy with an entry that has the given lists, and returns descriptions
// of its rules.
func rules(t *testing.T, destinations, lists string) []string {
	t.Helper()
	spec := mustSpec(t, map[string]string{
		"a.yaml": "version: 1\nidentities:\n- id: spiffe://corp.example/a\n" + lists,
		"d.yaml": "version: 1\ndestinations:\n" + destinations,
	})
	var all []string
	for _, r := range spec.Entries[0].Allow {
		all = append(all, "allow "+describe(r))
	}
	for _, r := range spec.Entries[0].Deny {
		all = append(all, "deny "+describe(r))
	}
	return all
}

// TestRulesMean checks the rule that each way to write one means.
func TestRulesMean(t *testing.T) {
	destinations := `  plain: [{host: p.example}]
  full: [{host: f.example, ports: 8443, name: own, ticket: D-1, expires: 2027-06-30}]
`
	for name, row := range map[string]struct{ lists, want string }{
		"a host alone":                                      {"  allow: [{host: a.example}]", "allow a.example"},
		"one port as a number":                              {"  allow: [{host: a.example, ports: 8443}]", "allow a.example :8443"},
		"one port as text":                                  {"  allow: [{host: a.example, ports: \"8443\"}]", "allow a.example :8443"},
		"ranges keep their order":                           {"  allow: [{host: a.example, ports: [8000-8999, 443]}]", "allow a.example :8000-8999 :443"},
		"an IPv4-mapped range is IPv4":                      {"  allow: [{host: a.example, addresses: [\"::ffff:10.1.0.0/112\"]}]", "allow a.example in 10.1.0.0/16"},
		"an IPv6 range is canonical":                        {"  allow: [{cidr: 2001:DB8:0::/32}]", "allow 2001:db8::/32"},
		"everything":                                        {"  allow: [{cidr: 0.0.0.0/0}, {cidr: ::/0}]", "allow 0.0.0.0/0\nallow ::/0"},
		"a day ends at its end":                             {"  allow: [{host: a.example, expires: 2027-01-31}]", "allow a.example until 2027-02-01T00:00:00Z"},
		"a time is exact":                                   {"  allow: [{host: a.example, expires: 2027-01-31T10:00:00+01:00}]", "allow a.example until 2027-01-31T09:00:00Z"},
		"a use knows both places":                           {"  allow:\n  - use: plain", "allow p.example at d.yaml:3, used at a.yaml:5"},
		"a use names and dates":                             {"  allow:\n  - {use: plain, name: n, ticket: U-1, expires: 2027-01-31}", "allow p.example named n for U-1 until 2027-02-01T00:00:00Z at d.yaml:3, used at a.yaml:5"},
		"a destination keeps its own name, ticket and date": {"  allow:\n  - {use: full}", "allow f.example :8443 named own for D-1 until 2027-07-01T00:00:00Z at d.yaml:4, used at a.yaml:5"},
		"the name and ticket of the use count":              {"  allow:\n  - {use: full, name: n, ticket: U-1}", "allow f.example :8443 named n for U-1 until 2027-07-01T00:00:00Z at d.yaml:4, used at a.yaml:5"},
		"the earlier date counts, which is that of the use": {"  allow:\n  - {use: full, expires: 2027-01-31}", "allow f.example :8443 named own for D-1 until 2027-02-01T00:00:00Z at d.yaml:4, used at a.yaml:5"},
		"the earlier date counts, which is that of the set": {"  allow:\n  - {use: full, expires: 2028-01-31}", "allow f.example :8443 named own for D-1 until 2027-07-01T00:00:00Z at d.yaml:4, used at a.yaml:5"},
		"a denied use covers every port":                    {"  deny:\n  - {use: plain}", "deny p.example at d.yaml:3, used at a.yaml:5"},
		"a denied range may be a name's range":              {"  deny: [{cidr: 10.0.0.0/8, ports: [22]}]", "deny 10.0.0.0/8 :22"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(strings.Join(rules(t, destinations, row.lists), "\n"), row.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

// TestModesMean checks the mode that each way to write one means.
func TestModesMean(t *testing.T) {
	for settings, want := range map[string]string{
		"owner: x":                      "enforce force=false until=never private=false",
		"mode: enforce":                 "enforce force=false until=never private=false",
		"force: enforce, mode: enforce": "enforce force=true until=never private=false",
		"force: enforce":                "enforce force=true until=never private=false",
		"mode: observe, observe_until: 2027-03-01":                        "observe force=false until=2027-03-02T00:00:00Z private=false",
		"observe_until: 2027-03-01, observe_private: true, mode: observe": "observe force=false until=2027-03-02T00:00:00Z private=true",
	} {
		spec := mustSpec(t, map[string]string{
			"a.yaml": "version: 1\nidentities: [{id: spiffe://corp.example/a, " + settings + "}]\n",
		})
		e, until := spec.Entries[0], "never"
		if !e.ObserveUntil.IsZero() {
			until = e.ObserveUntil.Format(time.RFC3339)
		}
		got := fmt.Sprintf("%s force=%v until=%s private=%v", e.Mode, e.Force, until, e.ObservePrivate)
		if got != want {
			t.Errorf("%s means %s, want %s", settings, got, want)
		}
	}
}

// TestFilesUnite checks that the lists of one pattern are joined in the order of the
// files' names.
func TestFilesUnite(t *testing.T) {
	spec := mustSpec(t, map[string]string{
		"b.yaml": "version: 1\nidentities: [{id: spiffe://corp.example/a, owner: team, allow: [{host: b.example}], deny: [{host: x.example}]}]\n",
		"a.yaml": "version: 1\nidentities: [{id: spiffe://corp.example/a, accept: [source-map], allow: [{host: a.example}]}]\n",
		"c.yaml": "version: 1\nidentities: [{id: spiffe://corp.example/a, allow: [{host: a.example}], deny: [{host: y.example}]}]\n",
	})
	want := []allowlist.Entry{{
		Pattern: identity(t, "spiffe://corp.example/a"),
		Owner:   "team",
		Accept:  allowlist.ProofsOf(allowlist.ProofSourceMap),
		Allow: []allowlist.Rule{
			{At: "a.yaml:2", Host: host(t, "a.example")}, {At: "b.yaml:2", Host: host(t, "b.example")}, {At: "c.yaml:2", Host: host(t, "a.example")},
		},
		Deny: []allowlist.Rule{{At: "b.yaml:2", Host: host(t, "x.example")}, {At: "c.yaml:2", Host: host(t, "y.example")}},
	}}
	if diff := cmp.Diff(spec.Entries, want, values()...); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}
