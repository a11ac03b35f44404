package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// balancedConfig has a listener of every kind that a load balancer may stand before.
const balancedConfig = `version: 1
identity: {certificate: gateway.pem, key: gateway_key.pem, bundle: ca.pem}
policy: policy.yaml
listeners:
  - {name: mtls, address: "127.0.0.1:0", identity: mtls}
  - {name: behind, address: "127.0.0.1:0", identity: mtls, proxy_protocol: [127.0.0.0/8]}
  - {name: clear, address: "127.0.0.1:0", identity: fixed, id: spiffe://prod.example/ns/web/sa/sidecar}
  - {name: clearbehind, address: "127.0.0.1:0", identity: fixed, id: spiffe://prod.example/ns/web/sa/sidecar, proxy_protocol: [127.0.0.0/8]}
  - {name: dot, address: "127.0.0.1:0", identity: mtls, protocol: dot}
  - {name: queries, address: "127.0.0.1:0", identity: fixed, id: spiffe://prod.example/ns/web/sa/sidecar, protocol: dns}
resolver: {servers: [127.0.0.1], hosts: {allowed.example: [127.0.0.1], secret.example: [127.0.0.1]}}
admin: {address: "127.0.0.1:0"}
timeouts: {drain_delay: 0s}
`

// checks returns the health checks of HAProxy: the listener, and the options behind its
// address in the line "server".
func checks() [][2]string {
	return [][2]string{
		{"mtls", "check"},
		{"mtls", "check check-ssl verify none"},
		{"mtls", "check check-ssl verify none crt builder.both.pem"},
		{"behind", "send-proxy-v2 check"},
		{"behind", "send-proxy check"},
		{"behind", "send-proxy-v2 check check-ssl verify none"},
		{"behind", "send-proxy check check-ssl verify none"},
		{"clear", "check"},
		{"clearbehind", "send-proxy-v2 check"},
		{"clearbehind", "send-proxy check"},
		{"dot", "check"},
		{"dot", "check check-ssl verify none"},
		{"queries", "check"},
		{"admin", "check"},
		{"admin", "check inter 100ms"},
	}
}

// checkers is how many servers of HAProxy make the same check. HAProxy gives a check no
// more time for its connection and its handshake than there is between two checks, so that
// on a busy machine only slow checks, of which there are many at the same time, can be
// frequent.
const checkers = 5

// haproxy is an HAProxy in front of a gateway.
type haproxy struct {
	*site.Process

	admin string // address at which it answers commands
}

// startHAProxy runs HAProxy with servers, and a frontend for connections of clients.
func startHAProxy(t *testing.T, p *process, dir string, servers [][2]string) (h haproxy, frontend string) {
	t.Helper()
	cmd := exec.Command("haproxy", "-db", "-f", "haproxy.cfg")
	cmd.Dir = dir
	var listening [2]string // addresses of the sockets that HAProxy inherits, the first as its descriptor 3
	for i := range listening {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		socket, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		listening[i] = l.Addr().String()
		cmd.ExtraFiles = append(cmd.ExtraFiles, socket)
		_ = l.Close()
		defer func() { _ = socket.Close() }()
	}
	config := "global\n  stats socket fd@4 level admin\n" +
		"defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  timeout check 5s\n  default-server inter 500ms\n" +
		"frontend clients\n  bind fd@3\n  default_backend gateway\n" +
		"backend gateway\n  server gateway " + p.listening(t, "behind").String() + " send-proxy-v2\n" +
		"backend checked\n"
	for i, s := range servers {
		config += fmt.Sprintf("  server-template s%d. %d %s %s\n", i, checkers, p.listening(t, s[0]), s[1])
	}
	write(t, dir, map[string]string{"haproxy.cfg": config})
	h.admin = listening[1]
	var err error
	if h.Process, err = site.Start(cmd, site.Ready{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Kill()
		if t.Failed() {
			t.Logf("haproxy:\n%s%s\n%s", h.Stdout, h.Stderr, config)
		}
	})
	return h, listening[0]
}

// states returns the column check_status of each server, those of one check after another.
func (h haproxy) states(t *testing.T) []string {
	t.Helper()
	conn, err := net.Dial("tcp", h.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "show stat\n"); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	column := -1
	for i, name := range strings.Split(lines[0], ",") {
		if name == "check_status" {
			column = i
		}
	}
	var states []string
	for _, line := range lines {
		if fields := strings.Split(line, ","); fields[0] == "checked" && strings.HasPrefix(fields[1], "s") && column > 0 {
			states = append(states, fields[column])
		}
	}
	return states
}

// handshakes returns egress_tls_handshakes_total by its result, without zeros.
func (p *process) handshakes(t *testing.T) map[string]int {
	t.Helper()
	_, text := p.admin(t, "metrics")
	all := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^egress_tls_handshakes_total\{result="([^"]*)"\} ([1-9]\d*)$`).FindAllStringSubmatch(text, -1) {
		all[m[1]], _ = strconv.Atoi(m[2])
	}
	return all
}

// checksOf starts a gateway, and HAProxy in front of it, and waits until each check with
// TLS has been made several times.
func checksOf(t *testing.T, servers [][2]string) (p *process, s prodSite, frontend string) {
	t.Helper()
	need(t, "haproxy")
	s = newSite(t, 443)
	write(t, s.dir, map[string]string{"exeat.yaml": balancedConfig})
	for _, name := range []string{"builder", "other"} {
		if name == "other" {
			other := newAuthority(t, "prod.example")
			other.mint(t, name, 24*time.Hour, "URI:"+builder)
			writePair(t, other.dir, s.dir, name)
			continue
		}
		writePair(t, s.dir, s.dir, name)
	}
	p = start(t, s.dir, "serve")
	h, frontend := startHAProxy(t, p, s.dir, servers)
	secure := 0
	for _, server := range servers {
		if strings.Contains(server[1], "check-ssl") {
			secure++
		}
	}
	eventually(t, "some checks", func() bool { return p.handshakes(t)["unused"] >= 20*secure })
	states := h.states(t)
	if len(states) != checkers*len(servers) {
		t.Fatalf("HAProxy knows %d servers of %d: %v", len(states), checkers*len(servers), states)
	}
	for i, state := range states {
		server, want := servers[i/checkers], "L4OK"
		if strings.Contains(server[1], "check-ssl") {
			want = "L6OK"
		}
		if strings.TrimPrefix(state, "* ") != want {
			t.Errorf("the check of %v: %s, want %s", server, state, want)
		}
	}
	return p, s, frontend
}

// writePair writes certificate and key in one file, as HAProxy reads them.
func writePair(t *testing.T, from, to, name string) {
	t.Helper()
	var both string
	for _, file := range []string{name + ".pem", name + "_key.pem"} {
		text, err := os.ReadFile(filepath.Join(from, file))
		if err != nil {
			t.Fatal(err)
		}
		both += string(text)
	}
	write(t, to, map[string]string{name + ".both.pem": both})
}

// TestHAProxyChecksAreQuiet checks that health checks leave no record and count as unused
// handshakes only, and that a client of HAProxy is recorded with its own address and
// identity.
func TestHAProxyChecksAreQuiet(t *testing.T) {
	t.Parallel() // it mostly waits
	p, s, frontend := checksOf(t, checks())
	raw, err := net.Dial("tcp", frontend)
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, &tls.Config{RootCAs: s.roots(t), ServerName: "localhost", Certificates: s.pair(t, "builder")})
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "CONNECT secret.example:443 HTTP/1.1\r\nHost: secret.example:443\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if r := p.record(t, "decision", 0); r.Client != raw.LocalAddr().String() || r.Identity != builder || r.Status != http.StatusForbidden {
		t.Errorf("record %+v", r)
	}
	for result, n := range p.handshakes(t) {
		if result != "unused" && (result != "ok" || n != 1) {
			t.Errorf("%d handshakes are %s", n, result)
		}
	}
	for _, word := range []string{`"event":"handshake"`, `"event":"summary"`} {
		if n := strings.Count(p.stdout.String(), word); n > 0 {
			t.Errorf("%d records have %s", n, word)
		}
	}
}

// TestAHAProxyCheckWithAnotherCertificateIsRecorded checks that such a check has a record,
// but does not count as a failed handshake, because it asked for nothing.
func TestAHAProxyCheckWithAnotherCertificateIsRecorded(t *testing.T) {
	t.Parallel() // it mostly waits
	p, _, _ := checksOf(t, [][2]string{{"mtls", "check check-ssl verify none crt other.both.pem"}, {"behind", "send-proxy-v2 check check-ssl verify none crt other.both.pem"}})
	if r := p.record(t, "handshake", 0); r.Reason != "identity-untrusted" || !strings.HasPrefix(r.Client, "127.0.0.1:") {
		t.Errorf("record %+v", r)
	}
	for result, n := range p.handshakes(t) {
		if result != "unused" {
			t.Errorf("%d handshakes are %s", n, result)
		}
	}
}
