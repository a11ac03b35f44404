package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// parseRecords parses the records in a text.
func parseRecords(t *testing.T, text string) []record {
	t.Helper()
	all, err := site.ParseRecords(text)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// recorded waits for the nth record, counted from 0, for which good reports true.
func (p *process) recorded(t *testing.T, what string, n int, good func(record) bool) record {
	t.Helper()
	var found record
	p.stdout.until(t, what, func(text string) bool {
		left := n
		for _, r := range parseRecords(t, text) {
			if !good(r) {
				continue
			}
			if left == 0 {
				found = r
				return true
			}
			left--
		}
		return false
	})
	return found
}

// generation waits until a generation is in force, and returns its record.
func (p *process) generation(t *testing.T, n uint64) record {
	t.Helper()
	return p.recorded(t, fmt.Sprintf("generation %d", n), 0, func(r record) bool {
		return r.Event == "policy.reload" && r.Generation == n && strings.HasPrefix(r.Detail, "closed ")
	})
}

// refused waits for the nth refusal of a policy, counted from 0, and checks that its
// record says why.
func (p *process) refused(t *testing.T, n int, why string) {
	t.Helper()
	r := p.recorded(t, "a refused policy", n, func(r record) bool {
		return r.Event == "policy.reload" && strings.HasPrefix(r.Detail, "refused: ")
	})
	if !strings.Contains(r.Detail, why) {
		t.Errorf("refused with %q, want it to say %q", r.Detail, why)
	}
	p.stderr.until(t, "the log line", func(text string) bool { return strings.Count(text, "the last good one stays") > n })
}

// closed waits for the nth end of a tunnel, counted from 0, and returns its record.
func (p *process) closed(t *testing.T, n int) record {
	t.Helper()
	return p.recorded(t, "the end of a tunnel", n, func(r record) bool { return r.Event == "tunnel.close" })
}

// stop ends the process, and checks that the generations 1 to last were put in force,
// each once and in order.
func (p *process) stop(t *testing.T, last uint64) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	next := uint64(1)
	for _, r := range parseRecords(t, p.stdout.String()) {
		if r.Event != "policy.reload" || !strings.HasPrefix(r.Detail, "closed ") {
			continue
		}
		if r.Generation != next {
			t.Errorf("generation %d, want %d", r.Generation, next)
		}
		next++
	}
	if next != last+1 {
		t.Errorf("the last generation is %d, want %d", next-1, last)
	}
}

// reloadSite is a site with an origin that sends back what it gets. Its tests put the
// policy in directories of their own, which the gateway does not poll.
type reloadSite struct {
	prodSite
	port int
}

func newReloadSite(t *testing.T) reloadSite {
	t.Helper()
	port := newEcho(t)
	return reloadSite{prodSite: newSite(t, port), port: port}
}

// newEcho starts an origin that sends back what it gets, and returns its port.
func newEcho(t *testing.T) int {
	t.Helper()
	e, err := site.NewEcho(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close) // after the gateway has ended
	return int(e.Address.Port())
}

// serve starts the gateway with the policy at that path. more is appended to the keys
// of the policy section.
func (s reloadSite) serve(t *testing.T, policy string, more ...string) *process {
	t.Helper()
	return s.serveConfig(t, strings.Replace(siteConfig, "policy: policy.yaml", "policy: {files: \""+policy+"\", poll: 0s"+strings.Join(more, "")+"}", 1))
}

func (s reloadSite) serveConfig(t *testing.T, config string) *process {
	t.Helper()
	write(t, s.dir, map[string]string{"exeat.yaml": config})
	p := start(t, s.dir, "serve")
	p.generation(t, 1) // the gateway handles SIGHUP by then
	return p
}

// rule returns the end of a policy's entry, which allows these hosts and no others.
func (s reloadSite) rule(hosts ...string) string {
	var list strings.Builder
	for _, host := range hosts {
		fmt.Fprintf(&list, "{host: %s, ports: [%d], addresses: [127.0.0.1/32]}, ", host, s.port)
	}
	return "owner: team-ci, allow: [" + strings.TrimSuffix(list.String(), ", ") + "]"
}

// allowing returns a policy that allows gateway, builder and sidecar these hosts.
func (s reloadSite) allowing(hosts ...string) string {
	policy := "version: 1\nidentities:\n"
	for _, id := range []string{gateway, builder, sidecar} {
		policy += fmt.Sprintf("  - {id: %q, %s}\n", id, s.rule(hosts...))
	}
	return policy
}

// reloadTunnel is the client's end of a tunnel.
type reloadTunnel struct {
	net.Conn
	reader *bufio.Reader
}

// ask sends a CONNECT and returns the status of the answer, or 0 if there is none.
func (s reloadSite) ask(t *testing.T, conn net.Conn, host string) (status int, tunnel reloadTunnel) {
	t.Helper()
	tunnel = reloadTunnel{conn, bufio.NewReader(conn)}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
		return 0, tunnel
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s:%d HTTP/1.0\r\n\r\n", host, s.port); err != nil {
		t.Error(err)
		return 0, tunnel
	}
	resp, err := http.ReadResponse(tunnel.reader, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Error(err)
		return 0, tunnel
	}
	_ = resp.Body.Close()
	return resp.StatusCode, tunnel
}

// status sends a CONNECT on a new connection to the listener own, whose callers have the
// gateway's identity.
func (s reloadSite) status(t *testing.T, p *process, host string) int {
	t.Helper()
	conn, err := net.Dial("tcp", p.listening(t, "own").String())
	if err != nil {
		t.Error(err)
		return 0
	}
	defer func() { _ = conn.Close() }()
	status, _ := s.ask(t, conn, host)
	return status
}

// open opens a tunnel through the listener own if by is "own", else with the certificate
// of that name.
func (s reloadSite) open(t *testing.T, p *process, by, host string) reloadTunnel {
	t.Helper()
	var conn net.Conn
	var err error
	if by == "own" {
		conn, err = net.Dial("tcp", p.listening(t, "own").String())
	} else {
		conn, err = tls.Dial("tcp", p.listening(t, "mtls").String(), s.client(t, by))
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.openOn(t, conn, host)
}

// openOn opens a tunnel on a connection, which is closed when the test ends.
func (s reloadSite) openOn(t *testing.T, conn net.Conn, host string) reloadTunnel {
	t.Helper()
	t.Cleanup(func() { _ = conn.Close() })
	status, tunnel := s.ask(t, conn, host)
	if status != http.StatusOK {
		t.Fatalf("%s: %d", host, status)
	}
	return tunnel
}

// client returns the TLS configuration of a client with the certificate of that name.
func (s reloadSite) client(t *testing.T, name string) *tls.Config {
	t.Helper()
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.roots(t), ServerName: "localhost", Certificates: s.pair(t, name)}
}

// statusBy sends a CONNECT on a new TLS connection. It also reports whether the TLS
// session was resumed.
func (s reloadSite) statusBy(t *testing.T, p *process, client *tls.Config, host string) (status int, resumed bool) {
	t.Helper()
	conn, err := tls.Dial("tcp", p.listening(t, "mtls").String(), client)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	status, _ = s.ask(t, conn, host)
	return status, conn.ConnectionState().DidResume
}

// works checks that the tunnel carries bytes both ways.
func (c reloadTunnel) works(t *testing.T) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatalf("the tunnel is closed: %v", err)
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(c.reader, answer); err != nil || string(answer) != "ping" {
		t.Fatalf("the tunnel gives %q, %v", answer, err)
	}
}

// ends waits until the tunnel ends, and checks that no bytes come before.
func (c reloadTunnel) ends(t *testing.T) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c.reader); n > 0 || isTimeout(err) {
		t.Errorf("the tunnel stays open: %d bytes, %v", n, err)
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error) //nolint:errorlint // as net/http does
	return ok && timeout.Timeout()
}

// hammer sends CONNECTs for a host, one after the other, until stop is called. stop
// returns how often each status came.
func (s reloadSite) hammer(t *testing.T, p *process, host string) (stop func() map[int]int) {
	t.Helper()
	var asking sync.WaitGroup
	var done atomic.Bool
	seen := map[int]int{}
	begun := make(chan struct{})
	asking.Go(func() {
		for i := 0; !done.Load(); i++ {
			status := s.status(t, p, host)
			seen[status]++
			if status == 0 {
				done.Store(true)
			}
			if i == 0 {
				close(begun)
			}
		}
	})
	<-begun
	stop = func() map[int]int {
		done.Store(true)
		asking.Wait()
		return seen
	}
	t.Cleanup(func() { stop() })
	return stop
}

// putFile writes a file, and creates its directory if it does not exist.
func putFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replaceFile replaces a file by a rename.
func replaceFile(t *testing.T, path, text string) {
	t.Helper()
	temp := filepath.Join(filepath.Dir(path), ".tmp")
	putFile(t, temp, text)
	renameFile(t, temp, path)
}

func renameFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func linkFile(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
