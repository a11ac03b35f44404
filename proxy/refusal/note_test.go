package refusal

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// observedBy returns the decision of a policy that observes the caller of refusalOf.
func observedBy(t *testing.T, dest string, allow ...allowlist.Rule) allowlist.Decision {
	t.Helper()
	r := refusalOf(t, allowlist.NotOnAllowlist)
	pattern, err := allowlist.ParseIdentityPattern(r.Decision.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	policy, err := allowlist.Compile(allowlist.Spec{Version: "v", Entries: []allowlist.Entry{{
		Pattern: pattern, Owner: "team-ci", Mode: allowlist.ModeObserve, ObserveUntil: time.Now().Add(time.Hour), Allow: allow,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return policy.Decide(allowlist.Request{
		ID: r.Decision.ID, Proof: allowlist.ProofX509SVID, Dest: destination(t, dest), Time: time.Now(),
	})
}

// TestNote checks what the answer to an observed request says: the sentence of the refusal
// that enforcement would have given.
func TestNote(t *testing.T) {
	rule := allowlist.Rule{Host: hostPattern(t, "api.example"), Ports: []allowlist.PortRange{{First: 5432, Last: 5432}}}
	const begin = "egress let through in observe mode, would be denied: "
	for _, row := range []struct{ dest, reason, sentence string }{
		{"b.example:443", "not-on-allowlist", "b.example:443 is not allowed for ns/ci/sa/builder"},
		{"api.example:8443", "port-not-allowed", "api.example:8443 is not an allowed port for ns/ci/sa/builder (allowed: 5432)"},
		{"8.8.8.8:443", "ip-not-on-allowlist", "8.8.8.8:443 is an address that is not allowed for ns/ci/sa/builder"},
	} {
		dec := observedBy(t, row.dest, rule)
		before := dec
		want := `exeat; reason=` + row.reason + `; details="` + begin + row.sentence + "; id " + decisionID
		if len(begin+row.sentence+"; id "+decisionID+"; ask team-ci") <= maxPhrase {
			want += "; ask team-ci"
		}
		if got := Note(dec, decisionID, Full); got != want+`"` {
			t.Errorf("%s: got\n %s, want\n %s", row.dest, got, want)
		}
		if dec.Reason != before.Reason {
			t.Errorf("%s: the decision has been changed", row.dest)
		}
		for _, d := range []Disclosure{ID, None} {
			if got := Note(dec, decisionID, d); got != "" {
				t.Errorf("%s with disclosure %d: got %s", row.dest, d, got)
			}
		}
	}
	if got := Note(observedBy(t, "api.example:5432", rule), decisionID, Full); got != "" {
		t.Errorf("an allowed request: got %s", got)
	}
	denied := refusalOf(t, allowlist.NotOnAllowlist).Decision
	if got := Note(denied, decisionID, Full); got != "" {
		t.Errorf("a denial: got %s", got)
	}
}

// TestNoteIsBoundedAndPrintable puts long and hostile text into a decision. The field stays
// one structured field of printable ASCII, in which the id is whole.
func TestNoteIsBoundedAndPrintable(t *testing.T) {
	field := regexp.MustCompile(`^exeat; reason=[a-z-]+; details="(([ !#-\[\]-~]|\\["\\])*)"$`) // RFC 8941: token, parameters, string
	long := strings.Repeat("a.", 122) + "example:443"
	for _, owner := range []string{"", "team", "b\u00f6se\r\nSet-Cookie: a=b\x1b[31m\"\\", strings.Repeat("o", 5000)} {
		for _, path := range []string{"", "/sa/x", "/" + strings.Repeat("p", 1900)} {
			for _, dest := range []string{"b.example:443", long, "[2001:db8::1]:9"} {
				id, err := spiffeid.FromPath(spiffeid.RequireTrustDomainFromString("td.example"), path)
				if err != nil {
					t.Fatal(err)
				}
				got := Note(allowlist.Decision{
					Request: allowlist.Request{ID: id, Dest: destination(t, dest)},
					Outcome: allowlist.Outcome{Verdict: allowlist.Observe, WouldReason: allowlist.NotOnAllowlist, Owner: owner},
				}, decisionID, Full)
				parts := field.FindStringSubmatch(got)
				if parts == nil {
					t.Errorf("no structured field: %q", got)
					continue
				}
				sentence := strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(parts[1])
				if len(sentence) > maxPhrase || !strings.HasPrefix(sentence, observed) || !strings.Contains(sentence, "; id "+decisionID) {
					t.Errorf("%d bytes: %q", len(sentence), sentence)
				}
			}
		}
	}
}
