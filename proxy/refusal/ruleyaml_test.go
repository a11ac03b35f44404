package refusal

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
)

// now is the time of every request in these tests.
func now() time.Time { return time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC) }

const lineHead = "  - id: spiffe://prod.example/ns/ci/sa/builder\n    allow:\n"

// load parses a policy of one file for each text, which is its list of identities.
func load(t *testing.T, identities ...string) *allowlist.Policy {
	t.Helper()
	files := make(map[string][]byte, len(identities))
	for i, text := range identities {
		files[string(rune('a'+i))+".yaml"] = []byte("version: 1\nidentities:\n" + text)
	}
	policy, err := policyfile.Parse(policyfile.Options{}, files)
	if err != nil {
		t.Fatalf("%v in\n%s", err, strings.Join(identities, "\n"))
	}
	return policy
}

// TestOfferedRule checks the rule that a refusal offers, for each way to miss a rule: it
// keeps the conditions that the request meets, and takes the others from the request.
func TestOfferedRule(t *testing.T) {
	for _, row := range []struct {
		name, rule                  string // rule is one line of the policy
		method, dest, path, upgrade string
		reason                      string
		want                        []string // the lines of the rule; nil if none is offered
	}{
		{
			"a WebSocket keeps the methods and paths of a rule that has them", "{host: a.example, ports: [80], addresses: [10.1.0.0/16], methods: [GET, HEAD], paths: [/chat/**, /ws]}",
			"GET", "a.example:80", "/chat/x", "must", "upgrade-not-allowed",
			[]string{"host: a.example", "ports: [80]", `addresses: ["10.1.0.0/16"]`, `methods: ["GET", "HEAD"]`, `paths: ["/chat/**", "/ws"]`, "upgrade: true"},
		},
		{
			"a WebSocket at another path and port", "{host: a.example, ports: [80, 81], addresses: [10.1.0.0/16], methods: [GET], paths: [/chat/**]}",
			"GET", "a.example:80", "/other", "must", "upgrade-not-allowed",
			[]string{"host: a.example", "ports: [80]", `addresses: ["10.1.0.0/16"]`, `methods: ["GET"]`, `paths: ["/other"]`, "upgrade: true"},
		},
		{
			"a WebSocket under a rule for everything", "{host: '**.example', ports: [1-65535], addresses: [10.1.0.0/16]}",
			"GET", "a.example:80", "/chat", "must", "upgrade-not-allowed",
			[]string{"host: a.example", "ports: [80]", `addresses: ["10.1.0.0/16"]`, `methods: ["GET"]`, `paths: ["/chat"]`, "upgrade: true"},
		},
		{
			"an optional upgrade", "{host: a.example, ports: [80], methods: [POST]}",
			"GET", "a.example:80", "/", "may", "method-not-allowed",
			[]string{"host: a.example", "ports: [80]", `methods: ["GET"]`, `paths: ["/"]`},
		},
		{
			"another method", "{host: a.example, ports: [80], addresses: [10.1.0.0/16], methods: [GET], paths: [/public/**], expires: 2027-01-31}",
			"POST", "a.example:80", "/public/x", "", "method-not-allowed",
			[]string{"host: a.example", "ports: [80]", `addresses: ["10.1.0.0/16"]`, `methods: ["POST"]`, `paths: ["/public/x"]`, "expires: 2027-01-31"},
		},
		{
			"another path", "{host: a.example, ports: [80], addresses: [10.1.0.0/16, 'fd00::/8'], methods: [GET, POST], paths: [/public/**]}",
			"POST", "a.example:80", "/admin", "", "path-not-allowed",
			[]string{"host: a.example", "ports: [80]", `addresses: ["10.1.0.0/16", "fd00::/8"]`, `methods: ["POST"]`, `paths: ["/admin"]`},
		},
		{
			"another port", "{host: db.example, ports: [5432], addresses: [10.1.0.0/16], ech: refuse, expires: 2026-12-01T06:30:00Z}",
			"", "db.example:5433", "", "", "port-not-allowed",
			[]string{"host: db.example", "ports: [5433]", `addresses: ["10.1.0.0/16"]`, "ech: refuse", "expires: 2026-12-01T06:30:00Z"},
		},
		{
			"another port where TLS is required", "{host: db.example, ports: [8443], tls: require}", "", "db.example:9443", "", "", "port-not-allowed",
			[]string{"host: db.example", "ports: [9443]", "tls: require"},
		},
		{
			"a tunnel where the rule has methods", "{host: a.example, ports: [80], addresses: [10.1.0.0/16], methods: [GET]}", "", "a.example:80", "", "", "method-not-allowed",
			[]string{"host: a.example", "ports: [80]", `addresses: ["10.1.0.0/16"]`},
		},
		{
			"an expired rule is offered until the end of today", "{host: db.example, addresses: [10.1.0.0/16], tls: off, expires: 2026-11-01}", "", "db.example:443", "", "", "rule-expired",
			[]string{"host: db.example", `addresses: ["10.1.0.0/16"]`, "tls: off", "expires: 2026-11-21"},
		},
		{
			"a plain request to port 443", "{host: b.example}", "GET", "a.example:443", "/x?y", "", "not-on-allowlist",
			[]string{"host: a.example", `methods: ["GET"]`, `paths: ["/x"]`, "tls: auto"},
		},
		{"a method that no rule can name", "{host: a.example, ports: [80], methods: [GET]}", "get", "a.example:80", "/", "", "method-not-allowed", nil},
		{"a path that no rule can name", "{host: b.example}", "GET", "a.example:80", "/a;b", "", "not-on-allowlist", nil},
		{"a path that a rule would read as a pattern", "{host: b.example}", "GET", "a.example:80", "/a/*", "", "not-on-allowlist", nil},
		{"OPTIONS for the server itself", "{host: b.example}", "OPTIONS", "a.example:80", "", "", "not-on-allowlist", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			text := lineHead + "      - " + row.rule + "\n"
			policy := load(t, text)
			req := allowlist.Request{
				ID: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"), Proof: allowlist.ProofX509SVID,
				Dest: destination(t, row.dest), Method: row.method, Time: now(),
				Upgrade: map[string]allowlist.Upgrade{"may": allowlist.MayUpgrade, "must": allowlist.MustUpgrade}[row.upgrade],
			}
			if req.Path, _, _ = strings.Cut(row.path, "?"); row.method == "OPTIONS" {
				req.Path = allowlist.Asterisk
			}
			dec := policy.Decide(req)
			if dec.Reason.String() != row.reason {
				t.Fatalf("denied as %s, want %s", dec.Reason, row.reason)
			}
			want := ""
			if row.want != nil {
				want = lineHead + "      - " + strings.Join(row.want, "\n        ") + "\n"
			}
			got := RuleYAML(dec.ID.String(), dec.Mode, dec.Remedy(dec.Reason).Rule)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			_, body := parse(t, Refusal{Reason: dec.Reason, Decision: dec}.Append(nil, Full))
			if offers := strings.Contains(string(body), "add this to the policy"); offers != (want != "") || !strings.HasSuffix(string(body), want) {
				t.Errorf("the body is\n%s", body)
			}
			if want == "" {
				return
			}
			if d := load(t, text, got).Decide(req); d.Verdict != allowlist.Allow {
				t.Errorf("with it, %s", d.Reason)
			}
		})
	}
}

// TestOfferedRuleKeepsACallerObserved checks that the offered line allows the request and
// that the caller is still observed with it. An entry without a mode would be enforced.
func TestOfferedRuleKeepsACallerObserved(t *testing.T) {
	for name, pattern := range map[string]string{"by a wider pattern": "/ns/ci/**", "by its own entry": "/ns/ci/sa/builder"} {
		t.Run(name, func(t *testing.T) {
			text := "  - id: spiffe://prod.example" + pattern + "\n    mode: observe\n    observe_until: 2099-01-01\n"
			req := allowlist.Request{
				ID: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"), Proof: allowlist.ProofX509SVID,
				Dest: destination(t, "a.example:443"), Time: now(),
			}
			dec := load(t, text).Decide(req)
			got := RuleYAML(dec.ID.String(), dec.Mode, dec.Remedy(dec.WouldReason).Rule)
			if want := "  - id: spiffe://prod.example/ns/ci/sa/builder\n    mode: inherit\n    allow:\n      - host: a.example\n"; got != want {
				t.Fatalf("got\n%s", got)
			}
			policy := load(t, text, got)
			if d := policy.Decide(req); d.Verdict != allowlist.Allow {
				t.Errorf("with it, %s %s", d.Verdict, d.Reason)
			}
			req.Dest = destination(t, "b.example:443")
			if d := policy.Decide(req); d.Verdict != allowlist.Observe {
				t.Errorf("with it, anything else is %s %s", d.Verdict, d.Reason)
			}
		})
	}
}
