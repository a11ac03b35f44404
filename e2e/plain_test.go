package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// aptHelper is the path of apt's own client, which uses apt's http method.
const aptHelper = "/usr/lib/apt/apt-helper"

// TestPlainRequestsOfRealClients sends allowed and forbidden plain requests with curl,
// wget, apt and Python's urllib.
func TestPlainRequestsOfRealClients(t *testing.T) {
	t.Parallel()
	need(t, "curl", "wget", "python3", aptHelper)
	const text = "hello from the origin\n"
	got := make(chan http.Header, 100)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
		if r.Method == http.MethodPost {
			_, _ = io.Copy(w, r.Body)
			return
		}
		_, _ = io.WriteString(w, text)
	}))
	t.Cleanup(origin.Close)
	port := strconv.Itoa(portOf(t, origin))
	s := newSite(t, portOf(t, origin))
	p := start(t, s.dir, "serve")
	secure := "https://" + p.listening(t, "mtls").String()
	own := "http://" + p.listening(t, "own").String()
	const urllib = `import sys, urllib.request, urllib.error
opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": sys.argv[1]}))
try:
    sys.stdout.write(opener.open(sys.argv[2], timeout=10).read().decode())
except urllib.error.HTTPError as e:
    sys.exit(f"{e.code} {e.reason}")
`
	write(t, s.dir, map[string]string{"fetch.py": urllib})
	out := filepath.Join(s.dir, "out")
	clients := []struct {
		name string
		args []string // URL stands for the URL to fetch
		file bool     // says that the client writes the answer to the file out
		says string   // what the client prints when it is denied
	}{
		{"curl with a certificate", []string{"curl", "-sS", "--fail-with-body", "--noproxy", "", "--proxy", secure, "--proxy-cacert", "ca.pem", "--proxy-cert", "builder.pem", "--proxy-key", "builder_key.pem", "URL"}, false, "egress denied: secret.example"},
		{"curl", []string{"curl", "-sS", "--fail-with-body", "--noproxy", "", "--proxy", own, "URL"}, false, "egress denied: secret.example"},
		{"wget", []string{"wget", "-q", "--server-response", "-t", "1", "-O", "-", "-e", "use_proxy=on", "-e", "http_proxy=" + own, "URL"}, false, "403 egress denied: secret.example"},
		{"apt", []string{aptHelper, "-o", "Acquire::http::Proxy=" + own, "-o", "Acquire::Retries=0", "download-file", "URL", out}, true, "egress denied: secret.example"},
		{"urllib", []string{"python3", "fetch.py", own, "URL"}, false, "403 egress denied: secret.example"},
	}
	decisions := 0
	for _, c := range clients {
		ask := func(host string) (stdout, stderr string, code int) {
			args := append([]string(nil), c.args...)
			for i := range args {
				if args[i] == "URL" {
					args[i] = "http://" + host + ":" + port + "/file"
				}
			}
			return run(t, s.dir, args[0], args[1:]...)
		}
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, code := ask("allowed.example")
			if c.file {
				data, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err, stderr)
				}
				stdout = string(data)
			}
			if code != 0 || !strings.Contains(stdout, text) {
				t.Errorf("exit code %d, got %q, %s", code, stdout, stderr)
			}
			if h := <-got; h.Get("Via") != "1.1 exeat" || h.Get("Proxy-Connection") != "" {
				t.Errorf("the origin got %v", h)
			}
			if r := p.record(t, "decision", decisions); r.Verdict != "allow" || r.Status != 200 || r.Host != "allowed.example" {
				t.Errorf("record %+v", r)
			}
			decisions++
			stdout, stderr, code = ask("secret.example")
			if code == 0 || !strings.Contains(stdout+stderr, c.says) {
				t.Errorf("exit code %d, says %q", code, stdout+stderr)
			}
			if r := p.record(t, "decision", decisions); r.Verdict != "deny" || r.Reason != "not-on-allowlist" {
				t.Errorf("record %+v", r)
			}
			decisions++
		})
	}
	t.Run("curl posts chunks", func(t *testing.T) {
		big := strings.Repeat("0123456789", 200_000)
		write(t, s.dir, map[string]string{"big": big})
		stdout, stderr, code := run(t, s.dir, "curl", "-sS", "--noproxy", "", "--proxy", own, "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue", "--data-binary", "@big", fmt.Sprintf("http://allowed.example:%s/", port))
		if code != 0 || stdout != big {
			t.Errorf("exit code %d, %d bytes came back, %s", code, len(stdout), stderr)
		}
		<-got
	})
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
