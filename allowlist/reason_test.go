package allowlist

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// TestEveryReasonHasARow checks that every reason has a token and a text of its own, and
// an error type if it has a status.
func TestEveryReasonHasARow(t *testing.T) {
	tokens, texts := map[string]Reason{}, map[string]Reason{}
	token := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	for _, r := range Reasons() {
		info := r.Info()
		if !token.MatchString(info.Token) || info.Token != r.String() {
			t.Errorf("reason %d: token %q", r, info.Token)
		}
		if other, taken := tokens[info.Token]; taken {
			t.Errorf("%s is the token of reason %d and %d", info.Token, other, r)
		}
		if other, taken := texts[info.Text]; taken {
			t.Errorf("%s and %s have the same text", other, r)
		}
		tokens[info.Token], texts[info.Text] = r, r
		if info.Text == "" || len(info.Text) > 100 || strings.Trim(info.Text, "\n.") != info.Text || !printable(info.Text) {
			t.Errorf("%s: text %q", r, info.Text)
		}
		if (info.Status == 0) != (info.ProxyError == "") {
			t.Errorf("%s: status %d with error %q", r, info.Status, info.ProxyError)
		}
	}
	if len(tokens) != int(reasonCount)-1 {
		t.Errorf("%d reasons, want %d", len(tokens), reasonCount-1)
	}
}

func printable(s string) bool {
	return isAll(s, func(c byte) bool { return c >= ' ' && c < 0x7f })
}

// TestStatusClassesNeverMix checks that 403 is used only for the policy, 407 for the
// identity, 502 and 504 for the destination, 503 for the gateway, and the others for
// faults of the request.
func TestStatusClassesNeverMix(t *testing.T) {
	for _, r := range Reasons() {
		info := r.Info()
		var errors []string
		switch {
		case r <= HeadTimeout:
			errors = []string{"http_request_error"}
			if info.Status != 400 && info.Status != 405 && info.Status != 408 && info.Status != 431 && info.Status != 505 {
				t.Errorf("%s: status %d", r, info.Status)
			}
		case r <= IdentityUntrusted:
			errors = []string{"http_request_denied"}
			wantStatus(t, r, 407)
		case r <= SpecialName:
			errors = []string{"http_request_denied"}
			wantStatus(t, r, 403)
		case r == ResolvedAddressDenied:
			errors = []string{"destination_ip_prohibited"}
			wantStatus(t, r, 403)
		case r == NotTLS: // answers a plain request; in a tunnel nothing can be answered
			errors = []string{"tls_protocol_error"}
			wantStatus(t, r, 403)
		case r <= ECHRefused:
			errors = []string{""}
			wantStatus(t, r, 0)
		case r <= NameBudget:
			errors = []string{"connection_limit_reached"}
			wantStatus(t, r, 429)
		case r == CutOff:
			errors = []string{"connection_terminated"}
			wantStatus(t, r, 502)
		case r <= ResponseTimeout:
			errors = []string{
				"dns_error", "dns_timeout", "destination_unavailable", "connection_refused", "connection_timeout",
				"http_response_incomplete", "http_response_timeout",
			}
			if want := 502 + 2*b2i(strings.HasSuffix(info.ProxyError, "_timeout")); info.Status != want {
				t.Errorf("%s: status %d, want %d", r, info.Status, want)
			}
		case r <= Draining:
			errors = []string{"proxy_configuration_error", "connection_limit_reached"}
			wantStatus(t, r, 503)
		case r == InternalError:
			errors = []string{"proxy_internal_error"}
			wantStatus(t, r, 500)
		default:
			errors = []string{""}
			wantStatus(t, r, 0)
		}
		if !strings.Contains("|"+strings.Join(errors, "|")+"|", "|"+info.ProxyError+"|") {
			t.Errorf("%s: Proxy-Status error %q, want one of %q", r, info.ProxyError, errors)
		}
	}
}

// TestVerdictFollowsTheStatus: a reason fails if its status blames the destination or the
// gateway, or if the connection ended before there was a request, and denies otherwise.
func TestVerdictFollowsTheStatus(t *testing.T) {
	for _, r := range Reasons() {
		want := Deny
		if status := r.Info().Status; status >= 500 && status != 505 || r == TLSHandshakeFailed || r == ClientGone {
			want = Fail
		}
		if got := r.Verdict(); got != want {
			t.Errorf("%s: verdict %s, want %s: see Reason.Verdict", r, got, want)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func wantStatus(t *testing.T, r Reason, want int) {
	t.Helper()
	if got := r.Info().Status; got != want {
		t.Errorf("%s: status %d, want %d", r, got, want)
	}
}

// TestUnknownReasonIsAnInternalError checks that NoReason and numbers without a reason
// have the row of an internal error, without a token.
func TestUnknownReasonIsAnInternalError(t *testing.T) {
	for _, r := range []Reason{NoReason, reasonCount, 255} {
		if info := r.Info(); info.Token != "" || info.Status != 500 || info.ProxyError != "proxy_internal_error" {
			t.Errorf("reason %d: %+v, want an internal error without a token", r, info)
		}
	}
}

// TestObservableReasons checks the closed set of reasons that observe mode lets through.
func TestObservableReasons(t *testing.T) {
	want := map[string]bool{
		"not-on-allowlist": true, "port-not-allowed": true, "method-not-allowed": true,
		"path-not-allowed": true, "rule-expired": true, "ip-not-on-allowlist": true, "upgrade-not-allowed": true,
	}
	for _, r := range Reasons() {
		if r.observable() != want[r.String()] {
			t.Errorf("%s observable: %t", r, r.observable())
		}
	}
}

func TestWordsOfVerdictsModesAndProofs(t *testing.T) {
	for got, want := range map[string]string{
		Deny.String(): "deny", Allow.String(): "allow", Observe.String(): "observe", Fail.String(): "fail",
		Verdict(9).String(): "invalid", ModeUnset.String(): "enforce", ModeObserve.String(): "observe", Mode(9).String(): "invalid",
		NoProof.String(): "", ProofX509SVID.String(): "x509-svid", Proof(9).String(): "invalid",
	} {
		if got != want && want != "invalid" {
			t.Errorf("word %q, want %q", got, want)
		}
	}
}

// TestReasonOf checks the reason of an error. Only a nil error has the reason of an
// allowed request.
func TestReasonOf(t *testing.T) {
	cause := errors.New("cause")
	refused := &ReasonError{Reason: DialRefused, Err: cause}
	rows := []struct {
		name   string
		err    error
		reason Reason
		text   string
	}{
		{"a reason and a cause", refused, DialRefused, "dial-refused: cause"},
		{"a reason alone", &ReasonError{Reason: NameBudget}, NameBudget, "name-budget"},
		{"a wrapped reason", fmt.Errorf("dialling: %w", refused), DialRefused, "dialling: dial-refused: cause"},
		{"two reasons, of which the first counts", &ReasonError{Reason: ResolveFailed, Err: refused}, ResolveFailed, "resolve-failed: dial-refused: cause"},
		{"an error without a reason", cause, InternalError, "cause"},
		{"the zero value", &ReasonError{}, InternalError, "internal-error"},
		{"a cause without a reason", &ReasonError{Err: cause}, InternalError, "internal-error: cause"},
		{"an empty ReasonError around one with a reason", &ReasonError{Err: refused}, InternalError, "internal-error: dial-refused: cause"},
	}
	for _, row := range rows {
		if got := ReasonOf(row.err); got != row.reason {
			t.Errorf("%s: %q, want %q", row.name, got, row.reason)
		}
		if got := row.err.Error(); got != row.text {
			t.Errorf("%s: text %q, want %q", row.name, got, row.text)
		}
	}
	if got := ReasonOf(nil); got != NoReason {
		t.Errorf("no error: %q, want no reason", got)
	}
	if !errors.Is(refused, cause) {
		t.Error("the cause is not in the chain")
	}
}
