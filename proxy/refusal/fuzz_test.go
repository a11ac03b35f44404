package refusal

import (
	"bytes"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// FuzzAppend checks that no text in a refusal can add a line to the head, put bytes that
// are not printable ASCII there, or make Content-Length wrong.
func FuzzAppend(f *testing.F) {
	f.Add(uint8(allowlist.IdentityInvalid), uint8(Full), "x\r\nSet-Cookie: a=b", "team", "api.example:443", "realm", "/sa/x")
	f.Add(uint8(allowlist.NotOnAllowlist), uint8(Full), "", "böse\n\"\\", "[2001:db8::1]:9", "a\"b", "/")
	f.Add(uint8(allowlist.DialRefused), uint8(ID), "\x1b[31m", "\xff\xfe", strings.Repeat("a.", 126)+"a:1", "", "/"+strings.Repeat("p", 2000))
	f.Add(uint8(0), uint8(None), "", "", "", "", "")
	status := regexp.MustCompile(
		`^exeat(; error=[a-z_]+)?(; reason=[a-z][a-z-]*; details="([ !#-\[\]-~]|\\["\\])*")?$`) // RFC 8941: token, parameters, string
	f.Fuzz(func(t *testing.T, reason, disclosure uint8, detail, owner, target, realm, path string) {
		dest, _ := allowlist.ParseDestination(target)
		id, _ := spiffeid.FromPath(spiffeid.RequireTrustDomainFromString("td.example"), path)
		d := Disclosure(disclosure % 3)
		for _, asJSON := range []bool{false, true} {
			r := Refusal{
				Reason: allowlist.Reason(reason), Detail: detail, Realm: realm, JSON: asJSON,
				DecisionID: decisionID, TraceID: traceID,
				Decision: allowlist.Decision{Request: allowlist.Request{ID: id, Dest: dest}, Outcome: allowlist.Outcome{Owner: owner}},
			}
			answer := r.Append(nil, d)
			if len(answer) == 0 {
				if r.Reason.Info().Status != 0 {
					t.Fatal("no answer")
				}
				continue
			}
			head, _, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
			for line := range bytes.SplitSeq(head, []byte("\r\n")) {
				name, _, _ := bytes.Cut(line, []byte(":"))
				if !isHeadLine(string(name)) {
					t.Errorf("unknown line in the head: %q", line)
				}
				if i := bytes.IndexFunc(line, func(c rune) bool { return c < ' ' || c > '~' }); i >= 0 {
					t.Errorf("byte %#x in the head: %q", line[i], line)
				}
			}
			resp, _ := parse(t, answer)
			phrase := strings.TrimPrefix(resp.Status, fmt.Sprint(resp.StatusCode))
			if phrase = strings.TrimPrefix(phrase, " "); phrase == "" || len(phrase) > maxPhrase {
				t.Errorf("phrase of %d bytes: %q", len(phrase), phrase)
			}
			if d != None && !strings.Contains(phrase, decisionID) {
				t.Errorf("the id is cut off: %q", phrase)
			}
			if got := resp.Header.Get("Proxy-Status"); !status.MatchString(got) {
				t.Errorf("Proxy-Status is no structured field: %s", got)
			}
		}
	})
}

func isHeadLine(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Proxy-Status", "X-Exeat-Decision", "X-Exeat-Trace", "Proxy-Authenticate", "Allow",
		"Retry-After", "Connection", "Content-Type", "Content-Length":
		return true
	}
	return strings.HasPrefix(name, "HTTP/1.1 ")
}

func BenchmarkAppend(b *testing.B) {
	r := Refusal{
		Reason: allowlist.NotOnAllowlist, DecisionID: decisionID, TraceID: traceID,
		Decision: allowlist.Decision{
			Request: allowlist.Request{ID: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder")},
			Outcome: allowlist.Outcome{Owner: "team-ci"},
		},
	}
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = r.Append(buf[:0], Full)
	}
}
