package e2e

import (
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// curlOverHTTP2 returns the path of a curl that speaks HTTP/2 to a proxy: the one in PATH,
// or the one that curl.sh has fetched.
func curlOverHTTP2(t *testing.T) string {
	t.Helper()
	candidates := []string{"curl"}
	if cache, err := os.UserCacheDir(); err == nil {
		candidates = append(candidates, filepath.Join(cache, "exeat-ci", "curl", "curl"))
	}
	for _, path := range candidates {
		if help, err := exec.Command(path, "--help", "all").Output(); err == nil && strings.Contains(string(help), "--proxy-http2") {
			return path
		}
	}
	missing.Skip(t, "a curl that speaks HTTP/2 to a proxy is missing: run e2e/curl.sh")
	return ""
}

// http2Site is a site with a gateway and an origin, which has a certificate for
// example.com and speaks HTTP/2 and HTTP/1.1.
type http2Site struct {
	prodSite
	*process

	port string // port of the origin
}

func newHTTP2Site(t *testing.T) http2Site {
	t.Helper()
	origin := newOrigin(t, true)
	s := newSite(t, portOf(t, origin))
	write(t, s.dir, map[string]string{
		"origin.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: origin.Certificate().Raw})),
	})
	return http2Site{s, start(t, s.dir, "serve"), strconv.Itoa(portOf(t, origin))}
}

// decisions returns the records of decisions after n of them were written.
func (p *process) decisions(t *testing.T, n int) []record {
	t.Helper()
	p.record(t, "decision", n-1)
	return slices.DeleteFunc(parseRecords(t, p.stdout.String()), func(r record) bool { return r.Event != "decision" })
}

// clients returns how many connections decisions came over.
func clients(decisions []record) int {
	seen := map[string]bool{}
	for _, r := range decisions {
		seen[r.Client] = true
	}
	return len(seen)
}

// curl runs curl with the options for a request over HTTP/2 to the listener mtls.
func (s http2Site) curl(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	options := []string{
		"-sS", "--noproxy", "", "--proxy-http2", "--proxy", "https://" + s.listening(t, "mtls").String(),
		"--proxy-cacert", "ca.pem", "--proxy-cert", "builder.pem", "--proxy-key", "builder_key.pem", "--cacert", "origin.pem",
	}
	return run(t, s.dir, curlOverHTTP2(t), append(options, args...)...)
}

// TestCurlOverHTTP2 opens tunnels with curl to an origin that speaks both versions of HTTP.
// curl has a connection to the gateway for each tunnel. In a tunnel to an origin that
// speaks HTTP/2, it has many requests at once.
func TestCurlOverHTTP2(t *testing.T) {
	for name, row := range map[string]struct {
		args []string
		says string
		one  bool // one tunnel is enough for all requests
	}{
		"an origin of HTTP/2":   {[]string{"--http2"}, "hello over HTTP/2.0", true},
		"an origin of HTTP/1.1": {[]string{"--http1.1"}, "hello over HTTP/1.1", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const requests = 10
			s := newHTTP2Site(t)
			args := append(row.args, "-v", "--parallel", "--parallel-max", strconv.Itoa(requests), "https://example.com:"+s.port+"/[1-"+strconv.Itoa(requests)+"]")
			stdout, stderr, code := s.curl(t, args...)
			if code != 0 || stdout != strings.Repeat(row.says, requests) {
				t.Fatalf("exit code %d, got %q, %s", code, stdout, stderr)
			}
			tunnels := strings.Count(stderr, "CONNECT tunnel established, response 200")
			if negotiated := strings.Count(stderr, "CONNECT tunnel: HTTP/2 negotiated"); negotiated != tunnels || tunnels == 0 || row.one && tunnels != 1 {
				t.Errorf("%d tunnels of %d over HTTP/2", negotiated, tunnels)
			}
			decisions := s.decisions(t, tunnels)
			if len(decisions) != tunnels || clients(decisions) != tunnels {
				t.Errorf("%d decisions for %d tunnels over %d connections", len(decisions), tunnels, clients(decisions))
			}
			for _, r := range decisions {
				if r.Wire != "h2" || r.Identity != builder || r.Host != "example.com" || r.Verdict != "allow" {
					t.Errorf("record %+v", r)
				}
			}
		})
	}
}

// TestCurlShowsARefusalOverHTTP2 checks what the user of curl sees. HTTP/2 has no reason
// phrase, and curl shows not even the number unless it is asked for a trace.
func TestCurlShowsARefusalOverHTTP2(t *testing.T) {
	s := newHTTP2Site(t)
	url := "https://secret.example:" + s.port + "/"
	if stdout, stderr, code := s.curl(t, url); code != 56 || stdout != "" || !strings.HasPrefix(stderr, "curl: (56) ") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	_, trace, _ := s.curl(t, "-v", "--trace-config", "h2-proxy", url)
	r := s.record(t, "decision", 1)
	for _, want := range []string{
		"status: HTTP/2 403\n", "x-exeat-decision: " + r.ID + "\n",
		`proxy-status: exeat; error=http_request_denied; reason=not-on-allowlist; details="egress denied: secret.example:` + s.port + " is not allowed for ns/ci/sa/builder; id " + r.ID + "; ask team-ci\"\n",
	} {
		if !strings.Contains(trace, want) {
			t.Errorf("curl does not show %q in %s", want, trace)
		}
	}
	if r.Wire != "h2" || r.Reason != "not-on-allowlist" || r.Status != 403 {
		t.Errorf("record %+v", r)
	}
}

// TestCurlAsksForPlainURLsOverHTTP2 sends plain requests with curl, all at once on one
// connection, and a body. A refusal is an ordinary answer, which curl shows.
func TestCurlAsksForPlainURLsOverHTTP2(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprintf(w, "%s %s over %s via %s with %d bytes, %v\n", r.Method, r.URL.Path, r.Proto, r.Header.Get("Via"), n, err)
	}))
	t.Cleanup(origin.Close)
	port := portOf(t, origin)
	s := newSite(t, port)
	write(t, s.dir, map[string]string{"body": strings.Repeat("b", 3<<20), "origin.pem": ""})
	h := http2Site{s, start(t, s.dir, "serve"), strconv.Itoa(port)}
	url := "http://allowed.example:" + h.port + "/"

	stdout, stderr, code := h.curl(t, "--parallel", "--parallel-max", "20", url+"[1-20]")
	for i := range 20 {
		if want := fmt.Sprintf("GET /%d over HTTP/1.1 via 2.0 exeat with 0 bytes, <nil>\n", i+1); !strings.Contains(stdout, want) {
			t.Errorf("no %q in %q", want, stdout)
		}
	}
	decisions := h.decisions(t, 20)
	if code != 0 || len(decisions) != 20 || clients(decisions) != 1 {
		t.Errorf("exit code %d, %d decisions over %d connections: %s", code, len(decisions), clients(decisions), stderr)
	}
	if stdout, stderr, code = h.curl(t, "--data-binary", "@body", url); code != 0 || stdout != "POST / over HTTP/1.1 via 2.0 exeat with 3145728 bytes, <nil>\n" {
		t.Errorf("exit code %d, got %q, %s", code, stdout, stderr)
	}

	stdout, _, code = h.curl(t, "--fail-with-body", "-w", "%{http_code} %{http_version}", "http://secret.example/")
	r := h.record(t, "decision", 21)
	if want := "egress denied: secret.example:80 is not allowed for ns/ci/sa/builder; id " + r.ID + "; ask team-ci\n"; code != 22 || !strings.HasPrefix(stdout, want) || !strings.HasSuffix(stdout, "403 2") {
		t.Errorf("exit code %d, got %q", code, stdout)
	}
	if r.Wire != "h2" || r.Reason != "not-on-allowlist" {
		t.Errorf("record %+v", r)
	}
}
