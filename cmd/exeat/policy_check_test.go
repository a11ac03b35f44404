package main

import (
	"strings"
	"testing"
)

const checkPolicy = `version: 1
everyone:
  trust_domains: [td.example]
  allow: [{host: everyone.example}]
  deny: [{name: never, host: denied.example}]
identities:
  - id: spiffe://td.example/ns/ci/sa/builder
    allow:
      - {name: the-api, host: api.example, addresses: [10.1.0.0/16]}
      - {name: the-site, host: www.example, ports: [80], methods: [GET, HEAD], paths: [/public/**], addresses: [10.1.0.0/16]}
  - id: spiffe://td.example/legacy
    allow: [{host: api.example}]
  - id: spiffe://td.example/observed
    mode: observe
    observe_until: 2100-01-01
    allow: [{host: www.example, ports: [80], methods: [GET], addresses: [10.1.0.0/16]}]
quarantine:
  - id: spiffe://td.example/legacy
`

// TestPolicyCheck decides tunnels, plain requests and names. The rule that is offered
// allows exactly what was asked for.
func TestPolicyCheck(t *testing.T) {
	policy := write(t, "policy.yaml", checkPolicy)
	ask := func(dest string, more ...string) []string {
		return append([]string{"policy", "check", "-p", policy, "--identity", builder, "--dest", dest}, more...)
	}
	line := func(lines ...string) string {
		return "\nTo allow it, the policy needs:\n\n  - id: " + builder + "\n    allow:\n      - " + strings.Join(lines, "\n        ") + "\n"
	}
	const inner = `addresses: ["10.1.0.0/16"]`
	for _, tt := range []struct {
		name string
		args []string
		code int
		says string // all of standard output, or of the error
	}{
		{"a plain request", ask("www.example:80", "--method", "HEAD", "--path", "/public/x?y=%20"), 0, "allow: " + builder + " to HEAD http://www.example:80/public/x, rule the-site at policy.yaml:10\n"},
		{"GET unless written", ask("www.example:80", "--path", "/public/x"), 0, "allow: " + builder + " to GET http://www.example:80/public/x, rule the-site at policy.yaml:10\n"},
		{"the path / unless written", ask("www.example:80", "--method", "GET"), 1, "deny (path-not-allowed): " + builder + " to GET http://www.example:80/, rule the-site at policy.yaml:10" +
			line("host: www.example", "ports: [80]", inner, `methods: ["GET"]`, `paths: ["/"]`)},
		{"another method", ask("www.example:80", "--method", "POST", "--path", "/public/x"), 1, "deny (method-not-allowed): " + builder + " to POST http://www.example:80/public/x, rule the-site at policy.yaml:10" +
			line("host: www.example", "ports: [80]", inner, `methods: ["POST"]`, `paths: ["/public/x"]`)},
		{"a tunnel", ask("www.example:80"), 1, "deny (method-not-allowed): " + builder + " to www.example:80, rule the-site at policy.yaml:10" +
			line("host: www.example", "ports: [80]", inner)},
		{"another port", ask("api.example:8443"), 1, "deny (port-not-allowed): " + builder + " to api.example:8443, allowed ports 443" +
			line("host: api.example", "ports: [8443]", inner)},
		{"another port of a plain request", ask("www.example:8080", "--path", "/x"), 1, "deny (port-not-allowed): " + builder + " to GET http://www.example:8080/x, allowed ports 80" +
			line("host: www.example", "ports: [8080]", inner, `methods: ["GET"]`, `paths: ["/x"]`)},
		{"an upgrade", ask("www.example:80", "--upgrade", "--path", "/public/x"), 1, "deny (upgrade-not-allowed): " + builder + " to GET http://www.example:80/public/x with an upgrade, rule the-site at policy.yaml:10" +
			line("host: www.example", "ports: [80]", inner, `methods: ["GET", "HEAD"]`, `paths: ["/public/**"]`, "upgrade: true")},
		{"an upgrade to a host that no rule names", ask("new.example:80", "--upgrade"), 1, "deny (not-on-allowlist): " + builder + " to GET http://new.example:80/ with an upgrade" +
			line("host: new.example", "ports: [80]", `methods: ["GET"]`, `paths: ["/"]`, "upgrade: true")},
		{"a malformed path under a rule with paths", ask("www.example:80", "--path", "/public/../x"), 1, "deny (malformed-target): " + builder + " to GET http://www.example:80/public/../x, rule the-site at policy.yaml:10\n"},
		{"a path that no rule can name", ask("new.example:80", "--path", "/a;b"), 1, "deny (not-on-allowlist): " + builder + " to GET http://new.example:80/a;b\nNo rule is offered: the policy cannot name this method or path by itself, and a rule without it would open every other one.\n"},
		{"a method that no rule can name", ask("www.example:80", "--method", "get"), 1, "deny (method-not-allowed): " + builder + " to get http://www.example:80/, rule the-site at policy.yaml:10\nNo rule is offered: the policy cannot name this method or path by itself, and a rule without it would open every other one.\n"},
		{"the server itself", ask("new.example:80", "--method", "OPTIONS", "--path", "*"), 1, "deny (not-on-allowlist): " + builder + " to OPTIONS http://new.example:80\nNo rule is offered: the policy cannot name this method or path by itself, and a rule without it would open every other one.\n"},
		{"a plain request to port 443", ask("new.example:443", "--path", "/"), 1, "deny (not-on-allowlist): " + builder + " to GET http://new.example:443/" +
			line("host: new.example", `methods: ["GET"]`, `paths: ["/"]`, "tls: auto")},
		{"a name", ask("new.example", "--type", "AAAA"), 1, "deny (not-on-allowlist): " + builder + " to AAAA of new.example" + line("host: new.example", "tunnel: false")},
		{"a special name", ask("printer.local", "--type", "A"), 1, "deny (special-name): " + builder + " to A of printer.local" + line("host: printer.local", "tunnel: false")},
		{"another type of a name", ask("www.example", "--type", "TXT"), 1, "deny (type-not-allowed): " + builder + " to TXT of www.example, rule the-site at policy.yaml:10" +
			line("host: www.example", inner, "dns: [TXT]", "tunnel: false")},
		{"a deny rule", ask("denied.example:80", "--path", "/"), 1, "deny (denied-by-rule): " + builder + " to GET http://denied.example:80/, rule never at policy.yaml:5\nNo rule can allow it: the deny rule never at policy.yaml:5 is in the way.\n"},
		{"a deny rule for a name", ask("denied.example", "--type", "A"), 1, "deny (denied-by-rule): " + builder + " to A of denied.example, rule never at policy.yaml:5\nNo rule can allow it: the deny rule never at policy.yaml:5 is in the way.\n"},
		{"a quarantine", ask("api.example:443", "--identity", "spiffe://td.example/legacy"), 1, "deny (quarantined): spiffe://td.example/legacy to api.example:443\nNo rule can allow it: the identity is in quarantine.\n"},
		{"another proof", ask("api.example:443", "--with", "source-map"), 1, "deny (identity-source-not-accepted): " + builder + " to api.example:443 with source-map\nNo rule can allow it: this way to prove the identity is not accepted, see accept.\n"},
		{"an unknown identity", ask("api.example:443", "--identity", "spiffe://other.example/x"), 1, "deny (identity-unknown): spiffe://other.example/x to api.example:443" +
			strings.ReplaceAll(line("host: api.example"), builder, "spiffe://other.example/x")},
		{"an unknown identity beside everyone", ask("api.example:443", "--identity", "spiffe://td.example/x"), 1, "deny (identity-unknown): spiffe://td.example/x to api.example:443" +
			strings.ReplaceAll(line("host: api.example"), builder, "spiffe://td.example/x") + "With an entry of its own, the identity may do all that everyone may, too.\n"},
		{"an unknown identity that everyone is denied it", ask("denied.example:443", "--identity", "spiffe://td.example/x"), 1, "deny (identity-unknown): spiffe://td.example/x to denied.example:443\nNo rule can allow it: the deny rule never at policy.yaml:5 is in the way.\n"},
		{"an observed request", ask("www.example:80", "--method", "POST", "--identity", observed), 0, "observe (method-not-allowed): " + observed + " to POST http://www.example:80/" +
			strings.ReplaceAll(line("host: www.example", "ports: [80]", inner, `methods: ["POST"]`, `paths: ["/"]`), builder+"\n", observed+"\n    mode: inherit\n")},
		{"in JSON", ask("denied.example:443", "-o", "json"), 1, `{"allow_with":"","allowed_ports":"","destination":"denied.example:443","identity":"` + builder + `","mode":"enforce","note":"No rule can allow it: the deny rule never at policy.yaml:5 is in the way.",` +
			`"owner":"","policy":"POLICY","reason":"denied-by-rule","rule":"never","rule_at":"policy.yaml:5","verdict":"deny","would_reason":""}` + "\n"},
		{"a plain request in JSON", ask("www.example:80", "--path", "/public/x", "-o", "json"), 0, `{"allow_with":"","allowed_ports":"","destination":"GET http://www.example:80/public/x","identity":"` + builder + `","mode":"enforce","note":"",` +
			`"owner":"","policy":"POLICY","reason":"","rule":"the-site","rule_at":"policy.yaml:10","verdict":"allow","would_reason":""}` + "\n"},

		{"a path and a type", ask("api.example", "--type", "A", "--path", "/"), 2, "exeat: --type asks for a DNS query, which has no method, path or upgrade: remove one of them\n"},
		{"a method that opens a tunnel", ask("api.example:443", "--method", "connect"), 2, "exeat: --method connect: write one such as GET; without --method, --path and --upgrade a CONNECT is asked for\n"},
		{"a path that is none", ask("api.example:80", "--path", "x"), 2, "exeat: --path x: the gateway refuses it as malformed: write one such as /a/b, escaped as in a URL\n"},
		{"a path that is a port", ask("api.example:80", "--path", "80/x"), 2, "exeat: --path 80/x: the gateway refuses it as malformed: write one such as /a/b, escaped as in a URL\n"},
		{"a path with a fragment", ask("api.example:80", "--path", "/#x"), 2, "exeat: --path /#x: the gateway refuses it as malformed: write one such as /a/b, escaped as in a URL\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := exeat(t, tt.args...)
			got := stdout + stderr
			if before, after, ok := strings.Cut(got, `"policy":"`); ok {
				got = before + `"policy":"POLICY` + after[strings.IndexByte(after, '"'):]
			}
			if code != tt.code || got != tt.says {
				t.Errorf("exit code %d, want %d\n got %q\nwant %q", code, tt.code, got, tt.says)
			}
		})
	}
}
