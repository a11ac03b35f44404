package main

import (
	"bytes"
	"encoding/json"
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

func TestCommandLine(t *testing.T) {
	good := write(t, "policy.yaml", goodPolicy)
	bad := write(t, "policy.yaml", "version: 1\nidentites: []\n")
	check := func(dest string, more ...string) []string {
		return append([]string{"policy", "check", "-p", good, "--identity", builder, "--dest", dest}, more...)
	}
	tests := []struct {
		name   string
		args   []string
		code   int
		stdout string // contained
		stderr string // contained
	}{
		{"a good policy lints clean", []string{"policy", "lint", good}, 0, "no errors", ""},
		{"a bad policy is the answer no, with its place", []string{"policy", "lint", bad}, 1, ":2:1: unknown key \"identites\"", ""},
		{"lint in JSON", []string{"policy", "lint", "-o", "json", bad}, 1, `"line":2`, ""},
		{"a missing policy is wrong use", []string{"policy", "lint", good + ".not"}, 2, "", "no such file"},
		{"allowed", check("api.example:443"), 0, "allow: " + builder + " to api.example:443, rule the-api at policy.yaml:6", ""},
		{"denied", check("evil.example:443"), 1, "deny (not-on-allowlist)", ""},
		{"denied, with what would allow it", check("evil.example:444"), 1, "\n  - id: " + builder + "\n    allow:\n      - host: evil.example\n        ports: [444]\n", ""},
		{"observed, with what would allow it", check("new.example:443", "--identity", observed), 0, "      - host: new.example\n", ""},
		{"what would allow it, in JSON", check("evil.example:443", "-o", "json"), 1, `"allow_with":"  - id: ` + builder, ""},
		{"denied by port names the ports", check("db.example:443"), 1, "allowed ports 5432", ""},
		{"denied in JSON", check("evil.example:443", "-o", "json"), 1, `"reason":"not-on-allowlist"`, ""},
		{"another proof is not accepted", check("api.example:443", "--with", "source-map"), 1, "identity-source-not-accepted): " + builder + " to api.example:443 with source-map", ""},
		{"a name is resolved", check("db.example", "--type", "AAAA"), 0, "allow: " + builder + " to AAAA of db.example, rule ", ""},
		{"a name is not resolved for a type", check("db.example", "--type", "TXT"), 1, "deny (type-not-allowed): " + builder + " to TXT of db.example, rule ", ""},
		{"a name is not resolved, in JSON", check("evil.example", "--type", "A", "-o", "json"), 1, `"destination":"A of evil.example"`, ""},
		{"a name is observed", check("new.example", "--type", "A", "--identity", observed), 0, "observe (not-on-allowlist)", ""},
		{"a special name is not looked up, observed or not", check("host.local", "--type", "A", "--identity", observed), 1, "observe (special-name)", ""},
		{"a name with a port", check("db.example:5432", "--type", "A"), 2, "", "write a name without a port"},
		{"a type that no rule allows", check("db.example", "--type", "ANY"), 2, "", "--type ANY: no rule allows it"},
		{"a destination without a port", check("api.example"), 2, "", "--dest api.example: malformed target: want HOST:PORT"},
		{"an unknown proof", check("api.example:443", "--with", "magic"), 2, "", "write x509-svid"},
		{"an unknown output", check("api.example:443", "-o", "xml"), 2, "", "--output xml: write text or json"},
		{"check with a broken policy", []string{"policy", "check", "-p", bad, "--identity", builder, "--dest", "a.example:443"}, 2, "", "unknown key"},
		{"check without a policy", []string{"policy", "check", "-p", good + ".not", "--identity", builder, "--dest", "a.example:443"}, 2, "", "no such file or directory (--policy names the files)"},
		{"a flag is missing", []string{"policy", "check"}, 2, "", "exeat policy check needs --identity and --dest: see exeat policy check --help"},
		{"an unknown verb", []string{"serv"}, 2, "", "unknown command"},
		{"an unknown verb of a group", []string{"policy", "lnt"}, 2, "", `unknown command "lnt" for "exeat policy"`},
		{"serve without its file", []string{"serve", "-c", good + ".not"}, 2, "", "no such file"},
		{"mint with a bad id", []string{"authority", "mint", "--id", "http://x", "--out", t.TempDir()}, 2, "", "--id http://x"},
		{"a flag that does not exist", []string{"serve", "--conf", "x"}, 2, "", "unknown flag: --conf: see exeat serve --help"},
		{"help about nothing", []string{"help", "policy", "lnt"}, 2, "", "did you mean lint?"},
		{"help about a command", []string{"help", "policy", "lint"}, 0, "exeat policy lint policy.yaml", ""},
		{"help about help about nothing", []string{"help", "serve", "x"}, 2, "", "see exeat serve --help"},
		{"the version as a flag", []string{"--version"}, 0, "exeat ", ""},
		{"lint without a file", []string{"policy", "lint"}, 2, "", "policy.yaml: no such file"},
		{"a URL as the destination", check("https://api.example/"), 2, "", "write one such as api.example:443"},
		{"denied by port names the ports in JSON", check("db.example:443", "-o", "json"), 1, `"allowed_ports":"5432"`, ""},
		{"mint in JSON", []string{"authority", "mint", "-o", "json", "--dir", t.TempDir(), "--id", builder, "--out", t.TempDir()}, 0, `"id":"` + builder + `"`, ""},
		{"mint without flags", []string{"authority", "mint"}, 2, "", "needs --id and --out"},
		{"demo with an origin at another address", []string{"demo", "--check", "--origin", "127.0.0.2:0"}, 0, "ok   1. allowed", ""},
		{"demo with an origin at every address", []string{"demo", "--check", "--origin", "0.0.0.0:0"}, 0, "ok   1. allowed", ""},
		{"demo on no address", []string{"demo", "--listen", "nowhere"}, 2, "", "--listen nowhere: write an IP address and a port"},
		{"a group is used by its commands", []string{"policy", "--help"}, 0, "Usage:\n  exeat policy [command]\n", ""},
		{"a flag says what it takes", []string{"serve", "--help"}, 0, "--config file ", ""},
		{"no verb prints the help", []string{}, 0, "exeat demo", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := exeat(t, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(stdout, tt.stdout) {
				t.Errorf("stdout %q lacks %q", stdout, tt.stdout)
			}
			if !strings.Contains(stderr, tt.stderr) {
				t.Errorf("stderr %q lacks %q", stderr, tt.stderr)
			}
			if tt.code == exitUsage && (strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "exeat: ")) {
				t.Errorf("stderr %q is not one line that begins with exeat:", stderr)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	code, stdout, _ := exeat(t, "version", "-o", "json")
	var v map[string]string
	if err := json.Unmarshal([]byte(stdout), &v); code != 0 || err != nil || v["version"] == "" || v["go"] == "" {
		t.Errorf("version: code %d, %q, %v", code, stdout, err)
	}
}

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

func TestMintMakesWhatServeReads(t *testing.T) {
	dir := t.TempDir()
	ca, gw := filepath.Join(dir, "ca"), filepath.Join(dir, "gateway")
	code, stdout, stderr := exeat(t, "authority", "mint", "--dir", ca, "--id", "spiffe://td.example/gateway", "--dns", "localhost", "--out", gw)
	if code != 0 || !strings.Contains(stdout, "spiffe://td.example/gateway in "+gw) {
		t.Fatalf("mint: code %d, %q, %q", code, stdout, stderr)
	}
	// The same authority mints again, and another trust domain is refused.
	if code, _, stderr = exeat(t, "authority", "mint", "--dir", ca, "--id", "spiffe://td.example/w", "--out", filepath.Join(dir, "w")); code != 0 {
		t.Errorf("second mint: %s", stderr)
	}
	if code, _, _ = exeat(t, "authority", "mint", "--dir", ca, "--id", "spiffe://other.example/w", "--out", filepath.Join(dir, "o")); code != exitUsage {
		t.Errorf("minting for another trust domain: exit code %d, want %d", code, exitUsage)
	}
}

// TestServeCheck reads what a start reads, while another process has the port.
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
		{"everything is good", config, "", 0, "no errors, policy ", ""},
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

// TestServeCheckWarns of identities that listeners give their callers, and that
// the policy refuses whatever these ask for.
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
		"certificates":                 {"address: 127.0.0.1:0", entries, nil},
		"a known fixed one":            {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/known", entries, nil},
		"a fixed one":                  {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/other", entries, []string{strange + "other" + unknown}},
		"a fixed one for DNS":          {"address: 127.0.0.1:0, protocol: dns, identity: fixed, id: spiffe://td.example/other", entries, []string{strange + "other" + unknown}},
		"a fixed one by another proof": {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/mapped/a", entries, []string{unaccepted + "mapped/a accepts listener" + source}},
		"one that everyone admits":     {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/other", "everyone: {unlisted: true}\n" + entries, nil},
		"one that is cut off":          {"address: 127.0.0.1:0, identity: fixed, id: spiffe://td.example/other", "quarantine: [{id: spiffe://td.example/other}]\n" + entries, nil},
		"the gateway's own":            {"address: 127.0.0.1:0, identity: self", entries, []string{strange + "gateway" + unknown}},
		"by address": {
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

// TestVersionsThatArePrinted: lint and serve --check say the same of a policy, whatever
// its file is named, and name the quarantine list if there is one.
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
