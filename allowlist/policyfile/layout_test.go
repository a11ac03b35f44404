package policyfile

import "testing"

// TestVersionDependsOnMeaningOnly writes one policy in several ways, and checks that they
// have the same version and that a policy with another meaning has another one.
func TestVersionDependsOnMeaningOnly(t *testing.T) {
	of := func(files map[string]string) string {
		t.Helper()
		p, err := Parse(testOptions(), bytesOf(files))
		if err != nil {
			t.Fatal(err)
		}
		return p.Version()
	}
	const (
		a     = "identities:\n- id: spiffe://corp.example/a\n  owner: team-a\n  allow:\n  - host: one.example\n    ticket: T-1\n  - host: two.example\n    ports: [443, 8443]\n"
		b     = "identities:\n- id: spiffe://corp.example/b\n  allow:\n  - host: three.example\n"
		start = "version: 1\n"
	)
	want := of(map[string]string{"a.yaml": start + a, "b.yaml": start + b})
	for name, files := range map[string]map[string]string{
		"other names":  {"y.yaml": start + a, "x.yaml": start + b},
		"one file":     {"a.yaml": start + a + "- id: spiffe://corp.example/b\n  allow: [{host: three.example}]\n"},
		"comments":     {"a.yaml": "# of team a\n\n" + start + a + "# end\n", "b.yaml": b + start},
		"other keys":   {"a.yaml": start + "identities: [{allow: [{\"ticket\": 'T-1', host: 'one.example'}, {ports: [8443, 443], host: two.example}], owner: \"team-a\", id: spiffe://corp.example/a}]\n", "b.yaml": start + b},
		"destinations": {"a.yaml": start + "destinations: {set: [{host: one.example, ticket: T-1}, {host: two.example, ports: [443, 8443]}], unused: [{host: no.example}]}\nidentities:\n- {id: spiffe://corp.example/a, owner: team-a, allow: [{use: set}]}\n", "b.yaml": start + b},
		"one entry in two files": {
			"a.yaml": start + "identities: [{id: spiffe://corp.example/a, allow: [{host: two.example, ports: [443, 8443]}]}]\n", "b.yaml": start + b,
			"c.yaml": start + "identities: [{id: spiffe://corp.example/a, owner: team-a, allow: [{host: one.example, ticket: T-1}]}]\n",
		},
		"a file that says nothing":   {"a.yaml": start + a, "b.yaml": start + b, "c.yaml": start},
		"somebody is in quarantine":  {"a.yaml": start + a, "b.yaml": start + b, "quarantine.yaml": start + "quarantine: [{id: spiffe://corp.example/a}]\n"},
		"the mode that it has":       {"a.yaml": start + a + "  mode: enforce\n", "b.yaml": start + b},
		"the port that it has":       {"a.yaml": start + a, "b.yaml": start + b + "    ports: 443\n"},
		"the quarantine in a policy": {"a.yaml": start + a + "quarantine: [{id: spiffe://corp.example/a}]\n", "b.yaml": start + b},
	} {
		if got := of(files); got != want {
			t.Errorf("%s: version %s, want %s", name, got, want)
		}
	}
	seen := map[string]string{want: "the first"}
	for name, files := range map[string]map[string]string{
		"a rule less":      {"a.yaml": start + a},
		"another ticket":   {"a.yaml": start + "identities:\n- id: spiffe://corp.example/a\n  owner: team-a\n  allow: [{host: one.example, ticket: T-2}, {host: two.example, ports: [443, 8443]}]\n", "b.yaml": start + b},
		"another owner":    {"a.yaml": start + a, "b.yaml": start + b + "  owner: team-b\n"},
		"a name":           {"a.yaml": start + a, "b.yaml": start + b + "    name: three\n"},
		"another identity": {"a.yaml": start + a, "b.yaml": start + "identities: [{id: spiffe://corp.example/b/*, allow: [{host: three.example}]}]\n"},
		"a rule moved":     {"a.yaml": start + "identities: [{id: spiffe://corp.example/a, owner: team-a, allow: [{host: one.example, ticket: T-1}]}]\n", "b.yaml": start + b + "  - host: two.example\n    ports: [443, 8443]\n"},
	} {
		got := of(files)
		if other, twice := seen[got]; twice {
			t.Errorf("%s has the version of %s", name, other)
		}
		seen[got] = name
	}
}
