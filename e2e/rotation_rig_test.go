package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	ca "github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/identity/authority/workloadapi"
)

var (
	rotations        = flag.Int("rotations", 2, "how often the gateway's SVID rotates in TestRotation")
	rotationLifetime = flag.Duration("lifetime", 2*time.Second, "lifetime of the SVIDs in TestRotation")
)

// rotation is a gateway that gets its identity from a Workload API in this process.
type rotation struct {
	reloadSite
	ca      *ca.Authority
	api     *workloadapi.Server
	socket  string
	kill    func() // ends the Workload API
	process *process
}

// newRotation starts the Workload API and the gateway. identity is appended to the keys
// of the identity section.
func newRotation(t *testing.T, lifetime time.Duration, identity string) *rotation {
	t.Helper()
	dir, err := os.MkdirTemp("", "exeat") //nolint:usetesting // the name of a unix socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rotation{socket: filepath.Join(dir, "agent.sock")}
	r.dir, r.port = dir, newEcho(t)
	if r.ca, err = ca.New(ca.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("prod.example")}); err != nil {
		t.Fatal(err)
	}
	if r.api, err = workloadapi.New(workloadapi.Config{Authority: r.ca, SVIDs: []ca.Options{
		{ID: spiffeid.RequireFromString(gateway), DNS: []string{"localhost"}, Lifetime: lifetime},
	}}); err != nil {
		t.Fatal(err)
	}
	r.startAgent(t)
	if identity != "" {
		identity = ", " + identity
	}
	write(t, dir, map[string]string{"policy.yaml": r.allowing("allowed.example")})
	r.process = r.serveConfig(t, `version: 1
identity: {workload_api: "unix://`+r.socket+`"`+identity+`}
policy: policy.yaml
listeners:
  - {name: mtls, address: "127.0.0.1:0", identity: mtls}
admin: {address: "127.0.0.1:0"}
resolver: {hosts: {allowed.example: [127.0.0.1]}}
timeouts: {drain_delay: 0s}
`)
	return r
}

// startAgent serves the Workload API until kill is called or the test ends.
func (r *rotation) startAgent(t *testing.T) {
	t.Helper()
	listener, err := workloadapi.Listen(t.Context(), r.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.api.Serve(ctx, listener) }()
	r.kill = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.kill)
}

// step runs a step of the roll of the authority.
func (r *rotation) step(t *testing.T, step func() error) {
	t.Helper()
	if err := step(); err != nil {
		t.Fatal(err)
	}
}

// mint returns an SVID for builder. Its lifetime is rounded up, because X.509 has whole
// seconds.
func (r *rotation) mint(lifetime time.Duration) (tls.Certificate, error) {
	now := time.Now()
	lifetime = now.Add(lifetime).Truncate(time.Second).Add(time.Second).Sub(now)
	svid, err := r.ca.Mint(ca.Options{ID: spiffeid.RequireFromString(builder), Lifetime: lifetime})
	if err != nil {
		return tls.Certificate{}, err
	}
	return svid.TLS(), nil
}

// client returns the TLS configuration of a client that has a new SVID and trusts the
// current authorities.
func (r *rotation) client(t *testing.T, lifetime time.Duration) *tls.Config {
	t.Helper()
	cert, err := r.mint(lifetime)
	if err != nil {
		t.Fatal(err)
	}
	return r.trusting(&tls.Config{MinVersion: tls.VersionTLS13, ServerName: "localhost", Certificates: []tls.Certificate{cert}})
}

func (r *rotation) dialTLS(t *testing.T, client *tls.Config) net.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", r.process.listening(t, "mtls").String(), client)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// admin sends a GET for a path to the admin listener.
func (r *rotation) admin(t *testing.T, path string) (code int, text string) {
	t.Helper()
	return r.process.admin(t, path)
}

// secondsLeft returns the rest of the lifetime of the gateway's SVID, from its metrics.
func (r *rotation) secondsLeft(t *testing.T) float64 {
	t.Helper()
	_, text := r.admin(t, "metrics")
	match := regexp.MustCompile(`(?m)^egress_svid_expiry_seconds(?:\{.*\})? (\S+)$`).FindStringSubmatch(text)
	if match == nil {
		t.Fatalf("no egress_svid_expiry_seconds in\n%s", text)
	}
	left, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// eventually calls yes until it returns true.
func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !yes() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// load is a number of clients. Each opens a tunnel on a new connection, uses it and
// closes it, and then opens the next.
type load struct {
	r    *rotation
	addr string
	done chan struct{}
	ends func()

	holding sync.RWMutex // read-locked during a request, so that a renewal waits for requests with the old SVID
	cert    tls.Certificate

	mu      sync.Mutex
	changed chan struct{} // closed when a new serial number is seen
	seen    map[string]*x509.Certificate
	sum     loadSum
}

type loadSum struct {
	requests, serials, failures int
	failed                      error // the first error
	took                        time.Duration
}

// load starts clients that open perSecond tunnels a second.
func (r *rotation) load(t *testing.T, perSecond int) *load {
	t.Helper()
	l := &load{
		r: r, addr: r.process.listening(t, "mtls").String(), done: make(chan struct{}),
		changed: make(chan struct{}), seen: map[string]*x509.Certificate{},
	}
	l.renew(t)
	var running sync.WaitGroup
	jobs := make(chan struct{}, 64)
	for range 16 {
		running.Go(func() {
			for range jobs {
				l.request()
			}
		})
	}
	began := time.Now()
	running.Go(func() {
		defer close(jobs)
		l.pace(time.Second/time.Duration(perSecond), jobs)
	})
	l.ends = sync.OnceFunc(func() {
		close(l.done)
		running.Wait()
		l.sum.took, l.sum.serials = time.Since(began), len(l.seen)
	})
	t.Cleanup(l.ends)
	return l
}

// pace sends the jobs, and renews the clients' SVID whenever a quarter of its lifetime
// has passed.
func (l *load) pace(every time.Duration, jobs chan<- struct{}) {
	next, renew := time.NewTicker(every), time.NewTicker(*rotationLifetime/4)
	defer next.Stop()
	defer renew.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-next.C:
			jobs <- struct{}{}
		case <-renew.C:
			if err := l.mint(); err != nil {
				l.fail(err)
				return
			}
		}
	}
}

func (l *load) mint() error {
	l.holding.Lock()
	defer l.holding.Unlock()
	var err error
	l.cert, err = l.r.mint(*rotationLifetime)
	return err
}

// renew gives the clients a new SVID, after all requests with the old one have ended.
func (l *load) renew(t *testing.T) {
	t.Helper()
	if err := l.mint(); err != nil {
		t.Fatal(err)
	}
}

func (l *load) request() {
	l.holding.RLock()
	defer l.holding.RUnlock()
	client := l.r.trusting(&tls.Config{MinVersion: tls.VersionTLS13, ServerName: "localhost", Certificates: []tls.Certificate{l.cert}})
	leaf, err := l.tunnel(client)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.requests++
	if err != nil {
		l.sum.failures++
		if l.sum.failed == nil {
			l.sum.failed = err
		}
		return
	}
	if serial := leaf.SerialNumber.String(); l.seen[serial] == nil {
		l.seen[serial] = leaf
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// tunnel opens a tunnel and uses it. It returns the gateway's certificate.
func (l *load) tunnel(client *tls.Config) (*x509.Certificate, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", l.addr, client)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT allowed.example:%d HTTP/1.0\r\n\r\nping", l.r.port); err != nil {
		return nil, err
	}
	const want = "HTTP/1.1 200 OK\r\n\r\nping"
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil {
		return nil, fmt.Errorf("answered %q: %w", got[:n], err)
	}
	if string(got) != want {
		return nil, fmt.Errorf("answered %q", got)
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.failures, l.sum.failed = l.sum.failures+1, err
}

// until waits until good reports true for the certificates that were seen.
func (l *load) until(t *testing.T, what string, good func(seen map[string]*x509.Certificate) bool) {
	t.Helper()
	deadline := time.After(patience + time.Duration(*rotations)**rotationLifetime)
	for {
		l.mu.Lock()
		yes, changed, failed := good(l.seen), l.changed, l.sum.failed
		l.mu.Unlock()
		if failed != nil {
			t.Fatalf("a request failed: %v", failed)
		}
		if yes {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// serials waits until the gateway has shown n different certificates.
func (l *load) serials(t *testing.T, n int) {
	t.Helper()
	l.until(t, fmt.Sprintf("%d serials", n), func(seen map[string]*x509.Certificate) bool { return len(seen) >= n })
}

// signedBy waits until the gateway has shown a certificate that the authority signed.
func (l *load) signedBy(t *testing.T, authority *x509.Certificate) {
	t.Helper()
	l.until(t, "a certificate of the new authority", func(seen map[string]*x509.Certificate) bool {
		for _, leaf := range seen {
			if leaf.CheckSignatureFrom(authority) == nil {
				return true
			}
		}
		return false
	})
}

// stop ends the load and returns its results.
func (l *load) stop() loadSum {
	l.ends()
	return l.sum
}
