package refusal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	decisionID = "01JD0000000000000000000000"
	traceID    = "0af7651916cd43dd8448eb211c80319c"
)

// refusalOf returns a refusal for a reason, with a fixed caller and a fixed destination.
func refusalOf(t *testing.T, reason allowlist.Reason) Refusal {
	t.Helper()
	return Refusal{
		Reason: reason, DecisionID: decisionID, TraceID: traceID, Realm: "prod.example",
		Decision: allowlist.Decision{
			Request: allowlist.Request{
				ID:   spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"),
				Dest: destination(t, "api.example:8443"),
			},
			Outcome: allowlist.Outcome{Reason: reason, Owner: "team-ci"},
		},
	}
}

func destination(t *testing.T, s string) allowlist.Destination {
	t.Helper()
	dest, err := allowlist.ParseDestination(s)
	if err != nil {
		t.Fatal(err)
	}
	return dest
}

// TestResponses compares the whole answer of every reason with the golden file
// of each disclosure.
func TestResponses(t *testing.T) {
	for d, name := range map[Disclosure]string{Full: "full", ID: "id", None: "none"} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			for _, reason := range allowlist.Reasons() {
				fmt.Fprintf(&got, "=== %s\n%s\n", reason, refusalOf(t, reason).Append(nil, d))
			}
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("golden file %s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// TestStatusFields checks the fields that are required by a status, with every
// disclosure.
func TestStatusFields(t *testing.T) {
	for _, d := range []Disclosure{Full, ID, None} {
		for _, reason := range allowlist.Reasons() {
			answer := refusalOf(t, reason).Append(nil, d)
			info := reason.Info()
			if info.Status == 0 {
				if len(answer) != 0 {
					t.Errorf("%s has no status, but answers %q", reason, answer)
				}
				continue
			}
			resp, _ := parse(t, answer)
			if resp.StatusCode != info.Status {
				t.Errorf("%s: status %d, want %d", reason, resp.StatusCode, info.Status)
			}
			for field, statuses := range map[string][]int{
				"Proxy-Authenticate": {407}, "Allow": {405}, "Retry-After": {429, 503},
			} {
				want := false
				for _, s := range statuses {
					want = want || s == info.Status
				}
				if got := resp.Header.Get(field) != ""; got != want {
					t.Errorf("%s: %s is there: %v, want %v", reason, field, got, want)
				}
			}
		}
	}
}

// TestDisclosure checks which facts an answer contains, in its head or in its body.
func TestDisclosure(t *testing.T) {
	r := refusalOf(t, allowlist.PortNotAllowed)
	policy := compile(t, allowlist.Rule{Host: hostPattern(t, "api.example"), Ports: []allowlist.PortRange{{First: 5432, Last: 5432}}})
	r.Decision = policy.Decide(allowlist.Request{ID: r.Decision.ID, Proof: allowlist.ProofX509SVID, Dest: r.Decision.Dest})
	if r.Decision.Reason != allowlist.PortNotAllowed {
		t.Fatalf("reason %s", r.Decision.Reason)
	}
	facts := []struct {
		fact, text string
		id, none   bool // the fact is in the answer with ID, with None
	}{
		{"the destination", "api.example:8443", true, false},
		{"the identity's path", "ns/ci/sa/builder", true, false},
		{"the decision id", decisionID, true, false},
		{"the class of error", "http_request_denied", true, false},
		{"the reason's token", "port-not-allowed", false, false},
		{"the allowed ports", "5432", false, false},
		{"the owner", "team-ci", false, false},
		{"the policy version", "policy-v1", false, false},
		{"the trace id", traceID, false, false},
		{"the trust domain", "spiffe://prod.example", false, false},
		{"the line that would allow it", "host: api.example", false, false},
	}
	for _, asJSON := range []bool{false, true} {
		r.JSON = asJSON
		for _, f := range facts {
			for d, want := range map[Disclosure]bool{Full: true, ID: f.id, None: f.none} {
				if got := strings.Contains(string(r.Append(nil, d)), f.text); got != want {
					t.Errorf("disclosure %d, JSON %v: %s is in the answer: %v, want %v", d, asJSON, f.fact, got, want)
				}
			}
		}
	}
}

func TestRuleIsNamedWithFullDisclosureOnly(t *testing.T) {
	pattern, err := allowlist.ParseIdentityPattern("spiffe://prod.example/**")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := allowlist.Compile(allowlist.Spec{Entries: []allowlist.Entry{{
		Pattern: pattern, Deny: []allowlist.Rule{{Name: "the-rule", Host: hostPattern(t, "api.example")}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	r := refusalOf(t, allowlist.DeniedByRule)
	r.Decision = policy.Decide(allowlist.Request{ID: r.Decision.ID, Proof: allowlist.ProofX509SVID, Dest: r.Decision.Dest})
	for d, want := range map[Disclosure]bool{Full: true, ID: false, None: false} {
		if got := strings.Contains(string(r.Append(nil, d)), "the-rule"); got != want {
			t.Errorf("disclosure %d: the rule is in the answer: %v, want %v", d, got, want)
		}
	}
}

// TestRefusalHasNoTerminalControls puts each control character of terminals into every
// text that an answer quotes.
func TestRefusalHasNoTerminalControls(t *testing.T) {
	pattern, err := allowlist.ParseIdentityPattern("spiffe://prod.example/**")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range audittest.Obeyed() {
		policy, err := allowlist.Compile(allowlist.Spec{Version: "v1", Entries: []allowlist.Entry{{
			Pattern: pattern, Owner: text, Deny: []allowlist.Rule{{Name: text, Host: hostPattern(t, "api.example")}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, reason := range allowlist.Reasons() {
			r := refusalOf(t, reason)
			r.Decision = policy.Decide(allowlist.Request{ID: r.Decision.ID, Proof: allowlist.ProofX509SVID, Dest: r.Decision.Dest, Method: text})
			r.Decision.Reason, r.Detail, r.Realm = reason, text, text
			for _, d := range []Disclosure{Full, ID, None} {
				for _, r.JSON = range []bool{false, true} {
					head, body, _ := strings.Cut(string(r.Append(nil, d)), "\r\n\r\n")
					if head = strings.ReplaceAll(head, "\r\n", ""); audittest.IsObeyed(head, true) || audittest.IsObeyed(body, false) {
						t.Fatalf("%s: %q, %q", reason, head, body)
					}
				}
			}
		}
	}
}

// TestPhrase checks that clients can show the phrases of long and odd inputs.
func TestPhrase(t *testing.T) {
	label := strings.Repeat("a", 60)
	longHost := strings.Join([]string{label, label, label, label}, ".") + ".example" // 251 bytes
	rows := []struct {
		name   string
		change func(*Refusal)
		want   string
	}{
		{
			"a usual denial", func(*Refusal) {},
			"egress denied: api.example:8443 is not allowed for ns/ci/sa/builder; id " + decisionID + "; ask team-ci",
		},
		{
			"a long host keeps both ends and what became of it",
			func(r *Refusal) { r.Decision.Dest = destination(t, longHost+":443") },
			"egress denied: aaaaaaaaaaaaaaaaaaaa..." + strings.Repeat("a", 45) + ".example:443 is not allowed for ns/ci/sa/builder; id " + decisionID + "; ask team-ci",
		},
		{
			"an owner that does not fit is left out",
			func(r *Refusal) { r.Decision.Owner = strings.Repeat("o", 1024) },
			"egress denied: api.example:8443 is not allowed for ns/ci/sa/builder; id " + decisionID,
		},
		{
			"an owner's newline and letters outside ASCII become question marks",
			func(r *Refusal) { r.Decision.Owner = "team\r\nSet-Cookie: é\x00" },
			"egress denied: api.example:8443 is not allowed for ns/ci/sa/builder; id " + decisionID + "; ask team??Set-Cookie: ??",
		},
		{
			"a long identity is cut, the id is not",
			func(r *Refusal) {
				r.Decision.ID = spiffeid.RequireFromString("spiffe://prod.example/" + strings.Repeat("p", 1000))
			},
			"egress denied: api.example:8443 is not allowed for " + strings.Repeat("p", 115) + "...; id " + decisionID,
		},
		{
			"a caller without a path",
			func(r *Refusal) { r.Decision.ID = spiffeid.ID{} },
			"egress denied: api.example:8443 is not allowed for this caller; id " + decisionID + "; ask team-ci",
		},
		{
			"a detail replaces the text",
			func(r *Refusal) { r.Reason, r.Detail = allowlist.IdentityExpired, "certificate expired 2026-01-01" },
			"egress denied: certificate expired 2026-01-01; id " + decisionID + "; ask team-ci",
		},
		{
			"nothing known is still a sentence",
			func(r *Refusal) { *r = Refusal{Reason: allowlist.NotOnAllowlist} },
			"egress denied: :0 is not allowed for this caller",
		},
		{
			"no reason at all is our fault", func(r *Refusal) { *r = Refusal{} },
			"egress unavailable: the gateway failed",
		},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := refusalOf(t, allowlist.NotOnAllowlist)
			row.change(&r)
			resp, _ := parse(t, r.Append(nil, Full))
			if got := resp.Status[4:]; got != row.want {
				t.Errorf("phrase\n got %q\nwant %q", got, row.want)
			}
		})
	}
}

func TestProblem(t *testing.T) {
	r := refusalOf(t, allowlist.NotOnAllowlist)
	r.JSON = true
	resp, body := parse(t, r.Append(nil, Full))
	if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("content type %q", got)
	}
	var got map[string]any
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"title":  "egress denied: api.example:8443 is not allowed for ns/ci/sa/builder; id " + decisionID + "; ask team-ci",
		"status": 403.0, "reason": "not-on-allowlist",
		"identity": "spiffe://prod.example/ns/ci/sa/builder", "destination": "api.example:8443",
		"decision": decisionID, "trace": traceID, "owner": "team-ci",
		"allow_with": "  - id: spiffe://prod.example/ns/ci/sa/builder\n    allow:\n      - host: api.example\n        ports: [8443]\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problem (-want +got):\n%s", diff)
	}
}

func TestKeepAlive(t *testing.T) {
	r := refusalOf(t, allowlist.IdentityMissing)
	for _, keep := range []bool{false, true} {
		r.KeepAlive = keep
		if resp, _ := parse(t, r.Append(nil, Full)); resp.Close == keep {
			t.Errorf("keep alive %v: the response closes: %v", keep, resp.Close)
		}
	}
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	r := refusalOf(t, allowlist.Busy)
	if got, want := string(r.Append([]byte("before"), Full)), "before"+string(r.Append(nil, Full)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestOfferedRuleAllowsTheRequest adds the rule that the body of a refusal offers to the
// policy, which then must allow the denied request.
func TestOfferedRuleAllowsTheRequest(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder")
	for _, target := range []string{
		"api.example:443", "api.example:8080", "_svc._tcp.api.example:443", "xn--bcher-kva.example:443",
		"null:443", "true:443", "yes:443", "1.example:443", "0x.y:443",
		"8.8.8.8:53", "[2606:4700:4700::1111]:443", "[::1]:443", "127.0.0.1:9000",
	} {
		t.Run(target, func(t *testing.T) {
			req := allowlist.Request{ID: id, Proof: allowlist.ProofX509SVID, Dest: destination(t, target)}
			dec := compile(t).Decide(req)
			_, body := parse(t, Refusal{Reason: dec.Reason, Decision: dec}.Append(nil, Full))
			_, yaml, found := strings.Cut(string(body), "add this to the policy:\n\n")
			if !found {
				t.Fatalf("the body offers nothing:\n%s", body)
			}
			policy, err := policyfile.Parse(policyfile.Options{}, map[string][]byte{"policy.yaml": []byte("version: 1\nidentities:\n" + yaml)})
			if err != nil {
				t.Fatalf("%v in\n%s", err, yaml)
			}
			if got := policy.Decide(req); !got.Allowed() {
				t.Errorf("still %s with\n%s", got.Reason, yaml)
			}
		})
	}
}

func TestParseDisclosure(t *testing.T) {
	for word, want := range map[string]Disclosure{"full": Full, "id": ID, "none": None} {
		if got, ok := ParseDisclosure(word); !ok || got != want {
			t.Errorf("ParseDisclosure(%q) = %v, %v", word, got, ok)
		}
	}
	for _, word := range []string{"", "FULL", "all", "full "} {
		if got, ok := ParseDisclosure(word); ok || got != None {
			t.Errorf("ParseDisclosure(%q) = %v, %v, want the least", word, got, ok)
		}
	}
}

// parse reads an answer as a client does and returns it with its body.
func parse(t *testing.T, answer []byte) (*http.Response, []byte) {
	t.Helper()
	in := bufio.NewReader(bytes.NewReader(answer))
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("%v in\n%q", err, answer)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%v in\n%q", err, answer)
	}
	if int64(len(body)) != resp.ContentLength || in.Buffered() != 0 {
		t.Fatalf("body of %d bytes, Content-Length %d, %d bytes behind it", len(body), resp.ContentLength, in.Buffered())
	}
	return resp, body
}

// compile returns a policy with one identity.
func compile(t *testing.T, allow ...allowlist.Rule) *allowlist.Policy {
	t.Helper()
	pattern, err := allowlist.ParseIdentityPattern("spiffe://prod.example/ns/ci/sa/builder")
	if err != nil {
		t.Fatal(err)
	}
	if len(allow) == 0 {
		allow = []allowlist.Rule{{CIDR: netip.MustParsePrefix("192.0.2.1/32")}}
	}
	policy, err := allowlist.Compile(allowlist.Spec{
		Version: "policy-v1",
		Entries: []allowlist.Entry{{Pattern: pattern, Owner: "team-ci", Allow: allow}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

func hostPattern(t *testing.T, s string) allowlist.HostPattern {
	t.Helper()
	p, err := allowlist.ParseHostPattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
