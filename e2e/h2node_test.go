package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestNodeOverHTTP2 opens tunnels with Node's module http2: twenty that are allowed and one
// that is denied, all at once on one connection, with TLS inside.
func TestNodeOverHTTP2(t *testing.T) {
	need(t, "node")
	script, err := filepath.Abs(filepath.Join("testdata", "connect.cjs"))
	if err != nil {
		t.Fatal(err)
	}
	for listener, scheme := range map[string]string{"mtls": "https", "own": "http"} {
		t.Run(listener, func(t *testing.T) {
			const allowed = 20
			s := newHTTP2Site(t)
			args := []string{script, scheme + "://" + s.listening(t, listener).String(), "ca.pem", "builder.pem", "builder_key.pem", "origin.pem"}
			for range allowed {
				args = append(args, "example.com:"+s.port)
			}
			stdout, stderr, code := run(t, s.dir, "node", append(args, "secret.example:443")...)
			answers, refusal, _ := strings.Cut(stdout, "403 ")
			if want := strings.Repeat("hello over HTTP/1.1\n", allowed); code != 0 || answers != want {
				t.Errorf("exit code %d, got %q, %s", code, stdout, stderr)
			}
			decisions := s.decisions(t, allowed+1)
			if n := clients(decisions); n != 1 {
				t.Errorf("%d connections", n)
			}
			for _, r := range decisions {
				if r.Wire != "h2" || r.Listener != listener {
					t.Errorf("record %+v", r)
				}
				sentence := "egress denied: secret.example:443 is not allowed for " + strings.TrimPrefix(r.Identity, "spiffe://prod.example/") + "; id " + r.ID + "; ask team-ci"
				if want := `exeat; error=http_request_denied; reason=not-on-allowlist; details="` + sentence + `" ` + sentence + "\n"; r.Verdict == "deny" && refusal != want {
					t.Errorf("refused with %q, want %q", refusal, want)
				}
			}
		})
	}
}
