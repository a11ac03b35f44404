package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// exeat runs a command line in this process.
func exeat(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const goodPolicy = `version: 1
identities:
  - id: spiffe://td.example/ns/ci/sa/builder
    owner: team-ci
    allow:
      - host: api.example
        name: the-api
      - host: db.example
        ports: [5432]
  - id: spiffe://td.example/observed
    mode: observe
    observe_until: 2100-01-01
`

const (
	builder  = "spiffe://td.example/ns/ci/sa/builder"
	observed = "spiffe://td.example/observed"
)

// TestDemoOrigins runs the demo with its origin at addresses other than the default.
// Other tests of the command line are in testdata/script.
func TestDemoOrigins(t *testing.T) {
	for _, origin := range []string{"127.0.0.2:0", "0.0.0.0:0"} {
		t.Run(origin, func(t *testing.T) {
			if code, stdout, stderr := exeat(t, "demo", "--check", "--origin", origin); code != 0 || !strings.Contains(stdout, "ok   1. allowed") {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

// TestEveryCommandHasAnExample checks that the help of every command has an example.
func TestEveryCommandHasAnExample(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Runnable() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		if c.Short == "" {
			t.Errorf("%s has no short text", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}

// TestServeCheck checks a configuration with serve --check while another process uses
// its port.
func TestServeCheck(t *testing.T) {
	dir := t.TempDir()
	if code, _, stderr := exeat(t, "authority", "mint", "--dir", filepath.Join(dir, "ca"), "--id", "spiffe://td.example/gateway", "--out", filepath.Join(dir, "gateway")); code != 0 {
		t.Fatal(stderr)
	}
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	put := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	put("policy.yaml", goodPolicy)
	config := "version: 1\nidentity: {dir: gateway}\npolicy: policy.yaml\nlisteners:\n  - {name: main, address: \"" + taken.Addr().String() + "\"%}\n"
	tests := []struct {
		name, config, more string
		code               int
		stdout, stderr     string
	}{
		{"no error", config, "", 0, "no errors, policy ", ""},
		{"a policy with an error", strings.Replace(config, "policy.yaml", "bad.yaml", 1), "", 2, "", "bad.yaml:1:1: version is missing"},
		{"no identity yet", strings.Replace(config, "gateway", "nowhere", 1), "", 2, "", "identity directory"},
		{"a certificate that is not there", config, ", present: {certificate: c.pem, key: k.pem}", 2, "", "listener main: "},
		{"a name server's authorities that are not there", config + "resolver: {servers: [{dot: 192.0.2.1, name: dns.example, ca: c.pem}]}\n", "", 2, "", "c.pem"},
		{"an empty policy directory", strings.Replace(config, "policy.yaml", "policies", 1), "", 0, "no errors, no policy yet", "the policy directory is empty"},
	}
	put("bad.yaml", "identities: []\n")
	if err := os.Mkdir(filepath.Join(dir, "policies"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := put("exeat.yaml", strings.Replace(tt.config, "%", tt.more, 1))
			code, stdout, stderr := exeat(t, "serve", "--check", "--config", path)
			if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout, stderr, tt.code, tt.stdout, tt.stderr)
			}
		})
	}
}

// TestServeCheckWarns checks that serve --check warns of each identity that a listener
// gives its callers if the policy refuses every request of it.
func TestServeCheckWarns(t *testing.T) {
	dir := t.TempDir()
	if code, _, stderr := exeat(t, "authority", "mint", "--dir", filepath.Join(dir, "ca"), "--id", "spiffe://td.example/gateway", "--out", filepath.Join(dir, "gateway")); code != 0 {
		t.Fatal(stderr)
	}
	put := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const entries = "version: 1\nidentities:\n- {id: spiffe://td.example/known}\n- {id: \"spiffe://td.example/mapped/*\", accept: source-map}\n"
	const strange, unaccepted = ": no entry of the policy matches spiffe://td.example/", ": no entry of spiffe://td.example/"
	const unknown, source = ", so whatever it asks for is refused as identity-unknown", ", so whatever it asks for is refused as identity-source-not-accepted"
	for name, row := range map[string]struct {
		listener, policy string
		want             []string
	}{
		"certificates":                                                {"address: 127.0.0.1:0", entries, nil},
		"a fixed identity that the policy knows":                      {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/known", entries, nil},
		"a fixed identity that the policy does not know":              {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/other", entries, []string{strange + "other" + unknown}},
		"a fixed identity for DNS that the policy does not know":      {"address: 127.0.0.1:0, protocol: dns, identity: fixed, id: spiffe://td.example/other", entries, []string{strange + "other" + unknown}},
		"a fixed identity for which the policy accepts another proof": {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/mapped/a", entries, []string{unaccepted + "mapped/a accepts listener" + source}},
		"a fixed identity that everyone with unlisted admits":         {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/other", "everyone: {unlisted: true}\n" + entries, nil},
		"a fixed identity in quarantine":                              {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/other", "quarantine: [{id: spiffe://td.example/other}]\n" + entries, nil},
		"the gateway's own identity":                                  {"address: 127.0.0.1:0, identity: self", entries, []string{strange + "gateway" + unknown}},
		"identities by address": {
			"address: 127.0.0.1:0, protocol: dns, identity: source-map, sources: {10.1.0.0/16: spiffe://td.example/other, 10.2.0.0/16: spiffe://td.example/other, " +
				"10.3.0.0/16: spiffe://td.example/mapped/a, 10.4.0.0/16: spiffe://td.example/known}", entries,
			[]string{unaccepted + "known accepts source-map" + source, strange + "other" + unknown},
		},
	} {
		t.Run(name, func(t *testing.T) {
			put("policy.yaml", row.policy)
			path := put("exeat.yaml", "version: 1\nidentity: {dir: gateway}\npolicy: policy.yaml\nlisteners: [{name: main, "+row.listener+"}]\n")
			code, stdout, stderr := exeat(t, "serve", "--check", "--config", path)
			var want strings.Builder
			for _, warning := range row.want {
				want.WriteString(path + ": warning: listener main" + warning + "\n")
			}
			warnings, _, good := strings.Cut(stdout, path+": no errors, policy ")
			if code != 0 || warnings != want.String() || !good || stderr != "" {
				t.Errorf("exit code %d, stdout %q, stderr %q; want 0 and %q", code, stdout, stderr, want.String())
			}
		})
	}
}

// TestVersionsThatArePrinted checks that lint and serve --check print the same version
// of a policy, whatever its file is called, and that of the quarantine list if there is
// one.
func TestVersionsThatArePrinted(t *testing.T) {
	const cut = "version: 1\nquarantine: [{id: spiffe://td.example/w, reason: INC-1}]\n"
	said := func(name string, files map[string]string) string {
		t.Helper()
		dir := t.TempDir()
		if code, _, stderr := exeat(t, "authority", "mint", "--dir", filepath.Join(dir, "ca"), "--id", "spiffe://td.example/gateway", "--out", filepath.Join(dir, "gateway")); code != 0 {
			t.Fatal(stderr)
		}
		policies := filepath.Join(dir, "policies")
		if err := os.Mkdir(policies, 0o700); err != nil {
			t.Fatal(err)
		}
		files["../exeat.yaml"] = "version: 1\nidentity: {dir: gateway}\npolicy: policies\nlisteners: [{name: main, address: \"127.0.0.1:0\"}]\n"
		for file, text := range files {
			if err := os.WriteFile(filepath.Join(policies, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		config := filepath.Join(dir, "exeat.yaml")
		_, linted, _ := exeat(t, "policy", "lint", policies)
		_, checked, _ := exeat(t, "serve", "--check", "--config", config)
		versions := strings.TrimSuffix(linted, ": no errors\n")
		if want := config + ": no errors, " + versions + "\n"; checked != want || versions == linted {
			t.Errorf("%s: lint prints %q, serve --check %q", name, linted, checked)
		}
		return versions
	}
	one := said("one file", map[string]string{"a.yaml": goodPolicy})
	if again := said("another name, and a comment", map[string]string{"b.yaml": "# the same\n" + goodPolicy}); again != one {
		t.Errorf("got %q, want %q", again, one)
	}
	beside := said("a quarantine", map[string]string{"a.yaml": goodPolicy, "quarantine.yaml": cut})
	if !strings.HasPrefix(beside, one+", quarantine ") {
		t.Errorf("got %q, want %q and the quarantine", beside, one)
	}
	if inside := said("the same in the policy", map[string]string{"a.yaml": goodPolicy + strings.TrimPrefix(cut, "version: 1\n")}); inside != beside {
		t.Errorf("got %q, want %q", inside, beside)
	}
}
