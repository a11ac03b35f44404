package agent

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// silent returns the address of a server that accepts connections and never answers.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// closing returns the address of a server that ends each connection at once.
func closing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

// free returns an address at which nobody listens.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestNoGateway checks that a request is refused with the cause, and soon, if no gateway can be
// used.
func TestNoGateway(t *testing.T) {
	s := newSite(t)
	other, err := authority.New(authority.Config{TrustDomain: id("x").TrustDomain()})
	if err != nil {
		t.Fatal(err)
	}
	stranger := s.serveGateway(t, "127.0.0.1:0", func(c *gateway.Config) {
		c.Identity = gatewaytest.NewIdentity(snapshotOf(t, other, "gateway", 1))
	})
	wrong := s.serveGateway(t, "127.0.0.1:0", func(c *gateway.Config) {
		c.Identity = gatewaytest.NewIdentity(s.snapshot(t, "another", 1))
	})
	for _, row := range []struct{ name, addr, want string }{
		{"nobody listens", free(t), "connection refused"},
		{"ends at once", closing(t), "TLS: "},
		{"silent", silent(t), "no answer within 100ms"},
		{"of another authority", stranger.addr, "certificate was not issued by"},
		{"of another identity", wrong.addr, "it is spiffe://test.example/another"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := s.serveAgent(t, func(c *Config) {
				if row.name == "silent" {
					c.Uplink.DialTimeout = 100 * time.Millisecond
				}
			}, row.addr)
			for range 2 {
				resp, body := dial(t, "tcp", a.http).connect(t, "a.example:443")
				if resp.StatusCode != http.StatusBadGateway || !strings.Contains(resp.Status, "a.example:443: no gateway can be reached ("+row.addr+": ") ||
					!strings.Contains(resp.Status, row.want) || !strings.Contains(body, "gateway-unavailable") {
					t.Errorf("%s\n%s", resp.Status, body)
				}
			}
			resp, _ := dial(t, "tcp", a.http).ask(t, "GET", "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
			if resp.StatusCode != http.StatusBadGateway || !strings.Contains(resp.Status, "no gateway can be reached") {
				t.Errorf("plain: %s", resp.Status)
			}
			if code := dial(t, "tcp", a.socks).socks(t, "a.example", "443"); code != 4 {
				t.Errorf("SOCKS5: reply %d", code)
			}
			answer := lookUp(t, a, "udp", "a.example.", mdns.TypeA)
			if answer.Rcode != mdns.RcodeServerFailure || !strings.Contains(answer.String(), "no gateway can be reached") {
				t.Errorf("DNS: %v", answer)
			}
		})
	}
}

// lookUp asks the door for DNS.
func lookUp(t *testing.T, a *testAgent, network, name string, typ uint16) *mdns.Msg {
	t.Helper()
	client := mdns.Client{Net: network, Timeout: patience}
	answer, _, err := client.Exchange(new(mdns.Msg).SetQuestion(name, typ).SetEdns0(1232, false), a.dns)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// TestDNS checks that answers and refusals come as the gateway gives them.
func TestDNS(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, g.addr)
	for _, network := range []string{"udp", "tcp"} {
		if answer := lookUp(t, a, network, "a.example.", mdns.TypeA); len(answer.Answer) != 1 || !strings.HasSuffix(answer.Answer[0].String(), "127.0.0.1") {
			t.Errorf("%s: %v", network, answer)
		}
		denied := lookUp(t, a, network, "other.test.", mdns.TypeA)
		if denied.Rcode != mdns.RcodeNameError || !strings.Contains(denied.String(), "r=not-on-allowlist") {
			t.Errorf("%s: %v", network, denied)
		}
	}
}

// TestFailover checks that requests go to another gateway when one is gone, and that an open
// tunnel stays where it is.
func TestFailover(t *testing.T) {
	s := newSite(t)
	one, two := s.serveGateway(t, "127.0.0.1:0", nil), s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, one.addr, two.addr)
	if err := a.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, second := one, two
	if a.uplink.endpoints[0].address == two.addr {
		first, second = two, one
	}
	if resp, _ := dial(t, "tcp", a.http).connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	first.end()
	c := dial(t, "tcp", a.http)
	if resp, _ := c.connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	second.policies.Put(allow("b.example"))
	if _, err := c.reader.ReadByte(); err == nil {
		t.Error("the tunnel outlives its policy")
	}
	resp, _ := dial(t, "tcp", a.http).connect(t, s.origin.at("a.example"))
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("%s, want the decision of the gateway that is left", resp.Status)
	}
}

// TestADrainingGatewayIsLeft checks that 503 sends a request to another gateway, once.
func TestADrainingGatewayIsLeft(t *testing.T) {
	s := newSite(t)
	full := func(c *gateway.Config) { c.MaxConnections = 2 }
	one, two := s.serveGateway(t, "127.0.0.1:0", full), s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, one.addr, two.addr)
	var open []*caller
	for range 6 {
		c := dial(t, "tcp", a.http)
		if resp, _ := c.connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		open = append(open, c)
	}
	for _, c := range open {
		c.echo(t)
	}
	alone := s.serveAgent(t, nil, s.serveGateway(t, "127.0.0.1:0", func(c *gateway.Config) { c.MaxConnections = 1; c.Limits = limit.Config{} }).addr)
	var refused *http.Response
	for range 4 {
		resp, _ := dial(t, "tcp", alone.http).connect(t, s.origin.at("a.example"))
		if resp.StatusCode != http.StatusOK {
			refused = resp
		}
	}
	if refused == nil || refused.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(refused.Status, "503 egress unavailable: the gateway cannot take more connections") {
		t.Errorf("a gateway alone that is busy: %v", refused)
	}
}

// TestRotation checks that another SVID gets another connection, and that open tunnels go on.
func TestRotation(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, g.addr)
	before := dial(t, "tcp", a.http)
	if resp, _ := before.connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	old := a.sessions()
	a.identity.Set(s.snapshot(t, "rotated", 2))
	a.identity.Tell()
	after := dial(t, "tcp", a.http)
	if resp, body := after.connect(t, "other.test:443"); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "spiffe://test.example/rotated") {
		t.Errorf("%s\n%s", resp.Status, body)
	}
	before.finish(t)
	now := a.sessions()
	for until := time.Now().Add(patience); len(now) != 1; now = a.sessions() { // the old connection ends after its last stream
		if time.Now().After(until) {
			t.Fatal("the old connection does not end")
		}
		runtime.Gosched()
	}
	if slices.Contains(now, old[0]) {
		t.Error("the old connection is left")
	}
}

// sessions returns the connections that are open.
func (a *testAgent) sessions() []*session {
	a.uplink.mu.Lock()
	defer a.uplink.mu.Unlock()
	var all []*session
	for _, e := range a.uplink.endpoints {
		all = append(all, e.sessions...)
	}
	return all
}

// TestAGatewayThatIsNotTrustedAnyMore checks that its connection ends with the trust.
func TestAGatewayThatIsNotTrustedAnyMore(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, g.addr)
	c := dial(t, "tcp", a.http)
	if resp, _ := c.connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	other, err := authority.New(authority.Config{TrustDomain: id("x").TrustDomain()})
	if err != nil {
		t.Fatal(err)
	}
	a.identity.Set(snapshotOf(t, other, "workload", 2))
	a.identity.Tell()
	if _, err := c.reader.ReadByte(); err == nil {
		t.Error("the tunnel goes on")
	}
	if resp, _ := dial(t, "tcp", a.http).connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusBadGateway {
		t.Error(resp.Status)
	}
}

// TestManyStreams checks that a connection carries 200 streams at most.
func TestManyStreams(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, g.addr)
	var open []*caller
	for range maxStreams + 10 {
		c := dial(t, "tcp", a.http)
		if resp, _ := c.connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		open = append(open, c)
	}
	if n := len(a.sessions()); n != 2 {
		t.Errorf("%d connections", n)
	}
	open[0].echo(t)
	open[len(open)-1].echo(t)
}

// TestAfterASilence checks that a connection whose gateway has gone without a word is replaced
// before it gets a stream.
func TestAfterASilence(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	wire := newWire(t, g.addr)
	a := s.serveAgent(t, func(c *Config) { c.Uplink.ProveAfter, c.Uplink.ProveTimeout = time.Nanosecond, 50*time.Millisecond }, wire.addr)
	for round := range 3 {
		if resp, _ := dial(t, "tcp", a.http).connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusOK {
			t.Fatalf("round %d: %s", round, resp.Status)
		}
		wire.hold() // nothing comes through the connections that are open now
	}
}

// wire is a relay to a gateway that can stop to relay.
type wire struct {
	addr string

	mu   sync.Mutex
	held chan struct{} // closed by hold
}

func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.held)
	w.held = make(chan struct{})
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{addr: l.Addr().String(), held: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	var relaying sync.WaitGroup
	relaying.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			w.mu.Lock()
			held := w.held
			w.mu.Unlock()
			context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
			pass := func(dst, src net.Conn) {
				buf := make([]byte, 32<<10)
				for {
					n, err := src.Read(buf)
					if err != nil {
						return
					}
					select {
					case <-held:
						continue
					default:
					}
					if _, err := dst.Write(buf[:n]); err != nil {
						return
					}
				}
			}
			relaying.Go(func() { pass(far, near) })
			relaying.Go(func() { pass(near, far) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		stop()
		relaying.Wait()
	})
	return w
}

// TestUsers checks that another user may not use the unix socket.
func TestUsers(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, func(c *Config) { c.Users = []uint32{4711} }, g.addr)
	resp, body := dial(t, "unix", a.unix).connect(t, s.origin.at("a.example"))
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "user-not-allowed") {
		t.Errorf("%s\n%s", resp.Status, body)
	}
}

// TestNoIdentityYet checks the refusal of an agent that waits for its identity.
func TestNoIdentityYet(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, func(c *Config) {
		c.Uplink.Provider = gatewaytest.NewIdentity(nil)
		c.Uplink.NoIdentity = func() string { return "the Workload API is not there" }
	}, g.addr)
	resp, _ := dial(t, "tcp", a.http).connect(t, s.origin.at("a.example"))
	if resp.StatusCode != http.StatusBadGateway || !strings.Contains(resp.Status, "the agent has no identity yet: the Workload API is not there") {
		t.Error(resp.Status)
	}
}

// TestTheEnd checks that the end of the agent ends its tunnels, and that new requests are
// refused before.
func TestTheEnd(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, g.addr)
	c := dial(t, "tcp", a.http)
	if resp, _ := c.connect(t, s.origin.at("a.example")); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	c.echo(t)
	a.end()
	if _, err := c.reader.ReadByte(); err == nil {
		t.Error("the tunnel outlives the agent")
	}
}
