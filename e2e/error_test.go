package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestErrors makes mistakes that users make, and checks the error messages.
func TestErrors(t *testing.T) {
	t.Parallel()
	s := newSite(t, 443)
	s.mint(t, "expired", -time.Hour, "URI:"+gateway)
	s.mint(t, "web", time.Hour, "DNS:localhost")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()

	file := func(name string) string { return filepath.Join(s.dir, name) }
	config := func(old, replacement string) string {
		if !strings.Contains(siteConfig, old) {
			t.Fatalf("the configuration has no %q", old)
		}
		return strings.Replace(siteConfig, old, replacement, 1)
	}
	badPolicy := config("policy: policy.yaml", "policy: bad.yaml")
	for _, row := range []struct {
		name   string
		config string   // the configuration file of serve
		policy string   // the content of bad.yaml
		args   []string // the arguments of exeat; nil means serve with config
		says   []string
	}{
		{name: "an unknown verb", args: []string{"srve"}, says: []string{`"srve"`}},
		{name: "an unknown flag", args: []string{"serve", "--conf", "x"}, says: []string{"--conf"}},
		{name: "an argument that serve does not take", args: []string{"serve", "exeat.yaml"}, says: []string{"exeat.yaml"}},
		{name: "no configuration", args: []string{"serve", "--config", "none.yaml"}, says: []string{"none.yaml", "no such file"}},
		{name: "a directory for a configuration", args: []string{"serve", "--config", "."}, says: []string{"is a directory"}},
		{name: "a broken configuration", config: "version: 1\npolicy: [\n", says: []string{"bad-config.yaml:"}},
		{name: "an unknown key", config: config("timeouts:", "timeout:"), says: []string{"bad-config.yaml:17:1:", "timeout"}},
		{name: "a listener without an address", config: config(`address: "127.0.0.1:0", `, ""), says: []string{"bad-config.yaml:8:", "no address", "HOST:PORT"}},
		{name: "a listener for everybody", config: config(`name: own, address: "127.0.0.1:0"`, `name: own, address: "0.0.0.0:0"`), says: []string{"bad-config.yaml:9:", "0.0.0.0:0"}},
		{name: "no certificate", config: config("gateway.pem", "none.pem"), says: []string{file("none.pem"), "no such file"}},
		{name: "a policy in the place of a certificate", config: config("gateway.pem", "policy.yaml"), says: []string{file("policy.yaml")}},
		{name: "a certificate that is no SVID", config: strings.Replace(config("gateway.pem", "web.pem"), "gateway_key.pem", "web_key.pem", 1), says: []string{file("web.pem"), "X509-SVID"}},
		{name: "the key of another certificate", config: config("gateway_key.pem", "builder_key.pem"), says: []string{file("builder_key.pem"), "does not belong"}},
		{name: "an expired certificate", config: strings.Replace(config("gateway.pem", "expired.pem"), "gateway_key.pem", "expired_key.pem", 1), says: []string{file("expired.pem"), "expired"}},
		{name: "no bundle", config: config("bundle: ca.pem", "bundle: none.pem"), says: []string{file("none.pem"), "no such file"}},
		{name: "no policy", config: config("policy: policy.yaml", "policy: none.yaml"), says: []string{file("none.yaml"), "no such file"}},
		{name: "a policy with an unknown key", config: badPolicy, policy: "version: 1\nidentity: []\n", says: []string{"bad.yaml:2:1:", "identity"}},
		{name: "a policy of 0 bytes", config: badPolicy, says: []string{"bad.yaml:1:1:", "0 bytes"}},
		{name: "a port that is taken", config: config("127.0.0.1:0", taken.Addr().String()), says: []string{"listener mtls", taken.Addr().String(), "taken"}},
		{name: "a socket in no directory", config: config("unix:exeat.sock", "unix:none/exeat.sock"), says: []string{"listener socket", "none/exeat.sock"}},
		{name: "a file in the place of the socket", config: config("unix:exeat.sock", "unix:policy.yaml"), says: []string{"listener socket", file("policy.yaml"), "no socket"}},
		{name: "records that cannot be written", config: siteConfig + "records: {file: none/records.jsonl}\n", says: []string{"records: sink records: open ", file("none/records.jsonl"), "no such file"}},
		{name: "a policy to check that is not there", args: []string{"policy", "check", "-p", "none.yaml", "--identity", builder, "--dest", "a.example:443"}, says: []string{"none.yaml"}},
		{name: "a destination without a port", args: []string{"policy", "check", "-p", "policy.yaml", "--identity", builder, "--dest", "a.example"}, says: []string{"--dest a.example"}},
		{name: "an unknown output format", args: []string{"version", "-o", "yaml"}, says: []string{"--output yaml", "json"}},
		{name: "a demo without its policy", args: []string{"demo", "--check", "--policy", "none.yaml"}, says: []string{"none.yaml"}},
		{name: "a demo on a port that is taken", args: []string{"demo", "--check", "--origin", taken.Addr().String()}, says: []string{"--origin " + taken.Addr().String(), "taken"}},
		{name: "a demo with its gateway on a port that is taken", args: []string{"demo", "--check", "--listen", taken.Addr().String()}, says: []string{taken.Addr().String(), "taken"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			args := row.args
			if args == nil {
				write(t, s.dir, map[string]string{"bad-config.yaml": row.config, "bad.yaml": row.policy})
				args = []string{"serve", "--config", file("bad-config.yaml")}
			}
			p := start(t, s.dir, args...)
			if code := p.exit(t); code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			text := p.stderr.String()
			if !strings.HasPrefix(text, "exeat: ") || strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
				t.Errorf("standard error is %q, want one line", text)
			}
			for _, part := range row.says {
				if !strings.Contains(text, part) {
					t.Errorf("standard error is %q, want it to say %q", text, part)
				}
			}
			if out := p.stdout.String(); out != "" {
				t.Errorf("standard output: %s", out)
			}
			p.checkNothingLeft(t)
			if _, err := os.Stat(file("exeat.sock")); err == nil {
				t.Error("a socket is left")
			}
		})
	}
}
