package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; no wait should come near it.
const patience = 30 * time.Second

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // all arguments are constants of the tests
	}
	return v
}

func id(name string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://test.example/" + name) }

// site has what the agents and gateways of a test share.
type site struct {
	ca     *authority.Authority
	origin *origin
}

func newSite(t *testing.T) *site {
	t.Helper()
	ca, err := authority.New(authority.Config{TrustDomain: id("x").TrustDomain()})
	if err != nil {
		t.Fatal(err)
	}
	return &site{ca: ca, origin: newOrigin(t)}
}

// snapshot returns the identity of a workload.
func (s *site) snapshot(t *testing.T, name string, generation uint64) *identity.Snapshot {
	t.Helper()
	return snapshotOf(t, s.ca, name, generation)
}

func snapshotOf(t *testing.T, ca *authority.Authority, name string, generation uint64) *identity.Snapshot {
	t.Helper()
	svid, err := ca.Mint(authority.Options{ID: id(name)})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: svid.TLS(), Bundles: []*x509bundle.Bundle{ca.X509Bundle()}, Generation: generation,
	})
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// records keeps the records of a gateway.
type records struct{ all chan audit.Record }

func (s *records) Write(_ context.Context, records []*audit.Record) error {
	for _, r := range records {
		s.all <- *r
	}
	return nil
}

// testGateway is a gateway that allows *.example for every identity, and whose names all have
// an address of loopback.
type testGateway struct {
	*gateway.Gateway
	policies *gatewaytest.Policy
	records  *records
	addr     string
	end      func() // ends it, and waits
}

// allow returns a policy that allows hosts at every port.
func allow(hosts ...string) *allowlist.Policy {
	rules := make([]allowlist.Rule, 0, len(hosts))
	for _, host := range hosts {
		rules = append(rules, allowlist.Rule{
			Host: must(allowlist.ParseHostPattern(host)), Ports: []allowlist.PortRange{{First: 1, Last: 65535}}, TLS: allowlist.TLSOff,
			Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		})
	}
	return must(allowlist.Compile(allowlist.Spec{Version: "one", Entries: []allowlist.Entry{{
		Pattern: must(allowlist.ParseIdentityPattern("spiffe://test.example/**")), Allow: rules,
	}}}))
}

// serveGateway starts a gateway at an address.
func (s *site) serveGateway(t *testing.T, address string, change func(*gateway.Config)) *testGateway {
	t.Helper()
	hosts := map[allowlist.Host][]netip.Addr{}
	for _, name := range []string{"a.example", "b.example"} {
		hosts[must(allowlist.ParseHost(name))] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	resolver, err := resolve.New(resolve.Config{Servers: []resolve.Server{{Addr: netip.MustParseAddrPort("127.0.0.1:1")}}, Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	g := &testGateway{policies: gatewaytest.NewPolicy(allow("*.example")), records: &records{make(chan audit.Record, 10000)}}
	recorder, err := audit.New(context.Background(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "test", Sink: g.records}}, Tracer: noop.NewTracerProvider().Tracer(""),
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := gateway.Config{
		Policy: g.policies, Recorder: recorder, Log: slog.New(slog.DiscardHandler),
		Identity:      gatewaytest.NewIdentity(s.snapshot(t, "gateway", 1)),
		Resolver:      gateway.Resolver{Resolve: resolver.Resolve, DNS: dns.Resolver{Cached: resolver.Cached, Lookup: resolver.Lookup, Bind: resolver.Bind}},
		Listeners:     []gateway.Listener{{Name: "door", Address: address, Protocol: gateway.ConnectAndDoH}},
		HostAddresses: func() ([]netip.Addr, error) { return nil, nil },
	}
	if change != nil {
		change(&cfg)
	}
	if g.Gateway, err = gateway.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	g.addr = g.Listening()[0].Addr.String()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.Serve(ctx)
	}()
	g.end = sync.OnceFunc(func() {
		stop()
		<-done
		g.Close()
		closing, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := recorder.Close(closing); err != nil {
			t.Error(err)
		}
		resolver.Close()
	})
	t.Cleanup(g.end)
	return g
}

// testAgent is an agent that is served.
type testAgent struct {
	*Agent
	identity *gatewaytest.Identity
	http     string // addresses of its doors
	socks    string
	dns      string
	unix     string
	end      func() // ends it, and waits
}

// serveAgent starts an agent with a door of each kind.
func (s *site) serveAgent(t *testing.T, change func(*Config), gateways ...string) *testAgent {
	t.Helper()
	a := &testAgent{identity: gatewaytest.NewIdentity(s.snapshot(t, "workload", 1)), unix: filepath.Join(t.TempDir(), "s")}
	cfg := Config{
		Uplink: UplinkConfig{Gateways: gateways, Provider: a.identity, TrustDomain: id("x").TrustDomain(), Accept: func(peer spiffeid.ID) error {
			if peer != id("gateway") {
				return errors.New("it is " + peer.String())
			}
			return nil
		}},
		Doors: []Door{{HTTP, "127.0.0.1:0", 0}, {SOCKS5, "127.0.0.1:0", 0}, {DNS, "127.0.0.1:0", 0}, {HTTP, "unix:" + a.unix, 0}},
		Log:   slog.New(slog.DiscardHandler),
		Users: []uint32{uint32(os.Getuid())},
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if a.Agent, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	at := a.Listening()
	a.http, a.socks, a.dns = at[0].Addr.String(), at[1].Addr.String(), at[2].Addr.String()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Serve(ctx, nil)
	}()
	a.end = sync.OnceFunc(func() {
		stop()
		<-done
	})
	t.Cleanup(a.end)
	return a
}

// caller is a client of a door.
type caller struct {
	net.Conn
	reader *bufio.Reader
}

func dial(t *testing.T, network, address string) *caller {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &caller{conn, bufio.NewReader(conn)}
}

func (c *caller) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// ask sends a request and reads its answer with the body.
func (c *caller) ask(t *testing.T, method, text string) (*http.Response, string) {
	t.Helper()
	c.send(t, text)
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodConnect && resp.StatusCode == http.StatusOK {
		return resp, ""
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// connect opens a tunnel.
func (c *caller) connect(t *testing.T, target string) (*http.Response, string) {
	t.Helper()
	return c.ask(t, http.MethodConnect, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n\r\n")
}

// echo sends a line through a tunnel and waits until it comes back.
func (c *caller) echo(t *testing.T) {
	t.Helper()
	c.send(t, "echo\n")
	if line, err := c.reader.ReadString('\n'); err != nil || line != "echo\n" {
		t.Fatalf("%q came back, %v", line, err)
	}
}

// origin is a server on loopback. It answers requests of HTTP, and echoes lines "echo".
type origin struct {
	port string
	mu   sync.Mutex
	last http.Header // of the last request
}

// at returns the destination of a name at the origin.
func (o *origin) at(name string) string { return name + ":" + o.port }

func newOrigin(t *testing.T) *origin {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{port: l.Addr().String()[len("127.0.0.1:"):]}
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				defer func() { _ = conn.Close() }()
				o.serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		stop()
		serving.Wait()
	})
	return o
}

// serve answers one connection. What ends with EOF is answered by "the end" and an end.
func (o *origin) serve(conn net.Conn) {
	for lines := bufio.NewReader(conn); ; {
		first, err := lines.Peek(1)
		if err != nil {
			_, _ = io.WriteString(conn, "the end")
			return
		}
		if first[0] == 'e' {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, line)
			continue
		}
		req, err := http.ReadRequest(lines)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		o.mu.Lock()
		o.last = req.Header
		o.mu.Unlock()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nX-Path: "+req.URL.RequestURI()+"\r\n\r\n")
		if req.URL.Path == "/cut" {
			_, _ = io.WriteString(conn, "5\r\nhello\r\n")
			return
		}
		if req.Method == http.MethodHead {
			continue
		}
		if len(body) > 0 {
			_, _ = io.WriteString(conn, "4\r\ngot \r\n")
		}
		_, _ = io.WriteString(conn, "5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n")
	}
}

// direct asks a gateway by HTTP/1.1 with the identity of the agents.
func (s *site) direct(t *testing.T, g *testGateway, request string) (*http.Response, string) {
	t.Helper()
	svid, err := s.ca.Mint(authority.Options{ID: id("workload")})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", g.addr, &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{svid.TLS()},
		VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &caller{conn, bufio.NewReader(conn)}
	method, _, _ := strings.Cut(request, " ")
	return c.ask(t, method, request)
}
