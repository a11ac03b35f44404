package e2e

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newOrigin serves HTTP on loopback, with TLS and HTTP/2 if secure.
func newOrigin(t *testing.T, secure bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello over "+r.Proto)
	}))
	s.EnableHTTP2 = true
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func portOf(t *testing.T, s *httptest.Server) int {
	t.Helper()
	return s.Listener.Addr().(*net.TCPAddr).Port
}

func TestServeWithCurlAndOpenSSL(t *testing.T) {
	t.Parallel()
	need(t, "curl", "openssl")
	origin := newOrigin(t, false)
	port := portOf(t, origin)
	s := newSite(t, port)
	other := newAuthority(t, "other.example")
	s.mint(t, "stranger", time.Hour, "URI:spiffe://prod.example/ns/ci/sa/stranger")
	s.mint(t, "expired", -time.Hour, "URI:"+builder)
	s.mint(t, "two", time.Hour, "URI:"+builder+", URI:"+sidecar)
	s.mint(t, "web", time.Hour, "DNS:builder.prod.example")
	other.mint(t, "builder", time.Hour, "URI:spiffe://other.example/ns/ci/sa/builder")

	p := start(t, s.dir, "serve")
	proxy := "https://" + p.listening(t, "mtls").String()
	for n, row := range []struct {
		name string
		cert string // path without .pem
		host string
		want record
		says string
	}{
		{"allowed", "builder", "allowed.example", record{Identity: builder, Verdict: "allow", Status: 200}, "OK"},
		{"denied", "builder", "secret.example", record{Identity: builder, Verdict: "deny", Status: 403, Reason: "not-on-allowlist"}, "egress denied: secret.example:PORT is not allowed for ns/ci/sa/builder; id ID; ask team-ci"},
		{"without an entry", "stranger", "allowed.example", record{Identity: "spiffe://prod.example/ns/ci/sa/stranger", Verdict: "deny", Status: 403, Reason: "identity-unknown"}, "egress denied: allowed.example:PORT is refused: the policy has no entry for ns/ci/sa/stranger; id ID"},
		{"no certificate", "", "allowed.example", record{Verdict: "deny", Status: 407, Reason: "identity-missing"}, "egress denied: no certificate, or none issued by prod.example; id ID"},
		{"of another trust domain", filepath.Join(other.dir, "builder"), "allowed.example", record{Verdict: "deny", Status: 407, Reason: "identity-untrusted"}, `egress denied: trust domain "other.example" is not trusted here; trusted: prod.example; id ID`},
		{"expired", "expired", "allowed.example", record{Verdict: "deny", Status: 407, Reason: "identity-expired"}, "egress denied: certificate expired "},
		{"with two IDs", "two", "allowed.example", record{Verdict: "deny", Status: 407, Reason: "identity-invalid"}, "egress denied: certificate has 2 URI SANs"},
		{"with a DNS name only", "web", "allowed.example", record{Verdict: "deny", Status: 407, Reason: "identity-invalid"}, "egress denied: certificate has no URI SAN"},
	} {
		t.Run(row.name, func(t *testing.T) {
			args := []string{"-sS", "-i", "--max-time", "10", "--noproxy", "", "--proxytunnel", "--proxy", proxy, "--proxy-cacert", "ca.pem"}
			if row.cert != "" {
				args = append(args, "--proxy-cert", row.cert+".pem", "--proxy-key", row.cert+"_key.pem")
			}
			target := row.host + ":" + strconv.Itoa(port)
			stdout, stderr, code := run(t, s.dir, "curl", append(args, "http://"+target+"/")...)
			status, _, _ := strings.Cut(stdout, "\r\n")
			got := p.record(t, "decision", n)
			says := strings.NewReplacer("PORT", strconv.Itoa(port), "ID", got.ID).Replace(row.says)
			if want := "HTTP/1.1 " + strconv.Itoa(row.want.Status) + " " + says; !strings.HasPrefix(status, want) {
				t.Errorf("curl shows %q, want %q; it says %s", status, want, stderr)
			}
			if allowed := row.want.Status == 200; (code == 0) != allowed || strings.Contains(stdout, "hello over HTTP/1.1") != allowed {
				t.Errorf("exit code %d of curl, which got %s", code, stdout)
			}
			if row.want.Status != 200 && !strings.Contains(stdout, "X-Exeat-Decision: "+got.ID) {
				t.Errorf("the caller does not see the decision %s", got.ID)
			}
			row.want.Event, row.want.Listener, row.want.Host, row.want.ID = "decision", "mtls", row.host, got.ID
			got = record{
				Event: got.Event, Listener: got.Listener, Host: got.Host, ID: got.ID, Identity: got.Identity, Class: got.Class,
				Verdict: got.Verdict, Reason: got.Reason, Status: got.Status, Up: got.Up, Down: got.Down, CloseReason: got.CloseReason,
			}
			if got != row.want {
				t.Errorf("record %+v, want %+v", got, row.want)
			}
		})
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestGoClient is a standard Go program behind HTTPS_PROXY. It offers h2 to the proxy,
// and then writes HTTP/1.1.
func TestGoClient(t *testing.T) {
	origin := newOrigin(t, true)
	s := newSite(t, portOf(t, origin))
	p := start(t, s.dir, "serve")
	proxy := &url.URL{Scheme: "https", Host: p.listening(t, "mtls").String()}
	roots := s.roots(t)
	roots.AddCert(origin.Certificate()) // its certificate is for example.com
	transport := &http.Transport{
		Proxy:             http.ProxyURL(proxy),
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: s.pair(t, "builder")},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}

	resp, err := client.Get("https://example.com:" + strconv.Itoa(portOf(t, origin)) + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "hello over HTTP/2.0" {
		t.Errorf("got %q, %v", body, err)
	}
	_ = resp.Body.Close()
	if r := p.record(t, "decision", 0); r.Identity != builder || r.Host != "example.com" || r.Verdict != "allow" {
		t.Errorf("record %+v", r)
	}

	_, err = client.Get("https://secret.example/")
	r := p.record(t, "decision", 1)
	if want := "egress denied: secret.example:443 is not allowed for ns/ci/sa/builder; id " + r.ID; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the program sees %v, want %q", err, want)
	}
}

// TestListeners sends a CONNECT to each kind of listener as simple clients such as
// Python's http.client do: in HTTP/1.0, without Host.
func TestListeners(t *testing.T) {
	origin := newOrigin(t, false)
	s := newSite(t, portOf(t, origin))
	p := start(t, s.dir, "serve")
	mtls, own := p.listening(t, "mtls"), p.listening(t, "own")
	for n, row := range []struct {
		listener, identity string
		dial               func() (net.Conn, error)
	}{
		{"mtls", builder, func() (net.Conn, error) {
			return tls.Dial("tcp", mtls.String(), &tls.Config{
				MinVersion: tls.VersionTLS13, RootCAs: s.roots(t), ServerName: "localhost", Certificates: s.pair(t, "builder"),
			})
		}},
		{"own", gateway, func() (net.Conn, error) { return net.Dial("tcp", own.String()) }},
		{"socket", sidecar, func() (net.Conn, error) { return net.Dial("unix", filepath.Join(s.dir, "exeat.sock")) }},
	} {
		t.Run(row.listener, func(t *testing.T) {
			conn, err := row.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			reader := connect(t, conn, "CONNECT allowed.example:"+strconv.Itoa(portOf(t, origin))+" HTTP/1.0\r\n\r\n")
			if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if r := p.record(t, "decision", n); r.Listener != row.listener || r.Identity != row.identity || r.Status != 200 {
				t.Errorf("record %+v, want %s by %s", r, row.identity, row.listener)
			}
		})
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "*.sock")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// connect sends a CONNECT, which must be answered with 200, and returns a reader for the
// tunnel.
func connect(t *testing.T, conn net.Conn, head string) *bufio.Reader {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %s", resp.Status)
	}
	return reader
}

// TestAFailedHandshakeIsRecorded sends no TLS to a TLS listener. It also connects and
// closes at once, as a health check does, which is not recorded.
func TestAFailedHandshakeIsRecorded(t *testing.T) {
	s := newSite(t, 443)
	p := start(t, s.dir, "serve")
	addr := p.listening(t, "mtls").String()
	for _, text := range []string{"", "GET / HTTP/1.1\r\n\r\n"} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	if r := p.record(t, "handshake", 0); r.Reason != "tls-handshake-failed" {
		t.Errorf("record %+v", r)
	}
	p.signal(t, syscall.SIGTERM)
	p.exit(t)
	if n := strings.Count(p.stdout.String(), `"event":"handshake"`); n != 1 {
		t.Errorf("%d handshake records, want none for the health check", n)
	}
}

// TestDrain stops the process while a tunnel is open.
func TestDrain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	s := newSite(t, port)
	p := start(t, s.dir, "serve")
	addr := p.listening(t, "own").String()
	client, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	reader := connect(t, client, "CONNECT allowed.example:"+strconv.Itoa(port)+" HTTP/1.0\r\n\r\n")
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()

	p.signal(t, syscall.SIGTERM)
	p.stderr.line(t, regexp.MustCompile(`msg=draining tunnels=1`))
	waitRefused(t, addr)
	if _, err := io.WriteString(client, "still"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(server, "here"); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	if rest, err := io.ReadAll(reader); err != nil || string(rest) != "here" {
		t.Errorf("the client got %q, %v", rest, err)
	}
	_ = client.Close()
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if r := p.record(t, "tunnel.close", 0); r.Up != 5 || r.Down != 4 || r.CloseReason != "upstream" {
		t.Errorf("record %+v", r)
	}
	if !regexp.MustCompile(`msg=stopped records=3 records_lost=0 panics=0`).MatchString(p.stderr.String()) { // the third is policy.reload
		t.Error("the process does not say that it wrote its three records")
	}
}

// waitRefused waits until connections to an address are refused.
func waitRefused(t *testing.T, addr string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		_ = conn.Close()
	}
	t.Fatal("the process still listens")
}
