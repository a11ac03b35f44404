package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
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

	mdns "github.com/miekg/dns"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// shared is a served gateway with two listeners for CONNECT and DoH: one presents the
// gateway's SVID, and one a web certificate. Every name below example has an address of
// loopback.
type shared struct {
	*rig
	caller tls.Certificate
}

func newShared(t *testing.T, change func(*Config)) *shared {
	t.Helper()
	ca := newAuthority(t)
	mint := func(name string, names ...string) *authority.SVID {
		svid, err := ca.Mint(authority.Options{ID: id(name), DNS: names})
		if err != nil {
			t.Fatal(err)
		}
		return svid
	}
	own, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: mint("gateway", "svid.example").TLS(), Bundles: []*x509bundle.Bundle{ca.X509Bundle()}, Generation: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	resolver, err := resolve.New(resolve.Config{
		Servers: []resolve.Server{{Addr: netip.MustParseAddrPort("127.0.0.1:1")}},
		Hosts: map[allowlist.Host][]netip.Addr{
			must(allowlist.ParseHost("a.example")): {loopback}, must(allowlist.ParseHost("b.example")): {loopback},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(resolver.Close)
	s := &shared{caller: mint("sidecar").TLS()}
	s.rig = newRig(t, allowing("one", to("*.example")), func(cfg *Config) {
		cfg.Identity = gatewaytest.NewIdentity(own)
		cfg.Resolver = Resolver{Resolve: resolver.Resolve, DNS: dns.Resolver{Cached: resolver.Cached, Lookup: resolver.Lookup, Bind: resolver.Bind}}
		cfg.Listeners = []Listener{
			{Name: "svid", Address: "127.0.0.1:0", Protocol: ConnectAndDoH},
			{Name: "web", Address: "127.0.0.1:0", Protocol: ConnectAndDoH, Web: web(t, mint("web", "Web.example", "*.web.example", "127.0.0.1", "::1"))},
			{Name: "connect", Address: "127.0.0.1:0"},
		}
		if change != nil {
			change(cfg)
		}
	})
	return s
}

// web returns a web certificate, read from files.
func web(t *testing.T, svid *authority.SVID) *identity.WebCertificate {
	t.Helper()
	certificate, key := filepath.Join(t.TempDir(), "web.pem"), filepath.Join(t.TempDir(), "key.pem")
	for name, data := range map[string][]byte{certificate: svid.Certificate, key: svid.Key} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	loaded, err := identity.LoadWebCertificate(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

// connect connects to the listener with a number, and returns its port, too.
func (s *shared) connect(t *testing.T, number int) (c *caller, port string) {
	t.Helper()
	at := s.Listening()[number].Addr.String()
	raw, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, &tls.Config{Certificates: []tls.Certificate{s.caller}, RootCAs: x509.NewCertPool(), InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	_, port, err = net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	return &caller{conn, bufio.NewReader(conn)}, port
}

// query sends a query for a.example to an authority. It returns the status of the answer,
// the reason of a refusal, and whether the answer is the last one of the connection.
func (c *caller) query(t *testing.T, host string) (status int, reason string, last bool) {
	t.Helper()
	var q mdns.Msg
	msg, err := q.SetQuestion("a.example.", mdns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	text := "GET /dns-query?dns=" + base64.RawURLEncoding.EncodeToString(msg) + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK {
		var a mdns.Msg
		if err := a.Unpack(body); err != nil || len(a.Answer) != 1 || !strings.HasSuffix(a.Answer[0].String(), "\t127.0.0.1") {
			t.Errorf("answered %v, %v", &a, err)
		}
	}
	_, rest, _ := strings.Cut(resp.Header.Get("Proxy-Status"), "; reason=")
	reason, _, _ = strings.Cut(rest, ";")
	return resp.StatusCode, reason, resp.Close
}

// TestQueryNamesItsListener checks by which authorities a listener takes queries: the names
// and addresses of its certificate, and the trust domain if it presents an SVID.
func TestQueryNamesItsListener(t *testing.T) {
	s := newShared(t, nil)
	s.serve(t)
	const svid, web, connect = 0, 1, 2
	for _, row := range []struct {
		listener int
		host     string // PORT stands for the port of the listener
		taken    bool
	}{
		{svid, "test.example", true}, // the trust domain
		{svid, "test.example:PORT", true},
		{svid, "svid.example", true},
		{svid, "SVID.Example.:PORT", true},
		{svid, "Test.EXAMPLE.", true},
		{svid, "test.example..", false},
		{svid, "test.example:443", false},
		{svid, "test.example:", false},
		{svid, "test.example:0PORT", false},
		{svid, "test.example:PORT:PORT", false},
		{svid, "web.example", false},
		{svid, "127.0.0.1", false},
		{svid, "127.0.0.1:PORT", false},
		{svid, "gateway", false},
		{svid, "a.test.example", false},
		{svid, "", false},
		{svid, ":PORT", false},
		{svid, "user@test.example", false},
		{svid, "test.example/", false},
		{svid, "t\u00e9st.example", false},
		{web, "web.example", true},
		{web, "WEB.example.:PORT", true},
		{web, "a.web.example", true},
		{web, "a.b.web.example", false},
		{web, "*.web.example", false},
		{web, "127.0.0.1", true},
		{web, "127.0.0.1:PORT", true},
		{web, "127.0.0.1:1", false},
		{web, "127.1", false},
		{web, "[::1]", true},
		{web, "[::1]:PORT", true},
		{web, "[0:0::1]:PORT", true},
		{web, "::1", false},
		{web, "[::1", false},
		{web, "[::1]:1", false},
		{web, "[::2]", false},
		{web, "[127.0.0.1]", false},
		{web, "test.example", false}, // the trust domain is not in the web certificate
		{web, "svid.example", false},
		{connect, "test.example", false},
	} {
		c, port := s.connect(t, row.listener)
		host := strings.ReplaceAll(row.host, "PORT", port)
		status, reason, last := c.query(t, host)
		if row.taken && (status != http.StatusOK || last) || !row.taken && (status != http.StatusBadRequest || reason != "malformed-target" || !last) {
			t.Errorf("%q: answered %d %s, closing: %v; want it taken: %v", host, status, reason, last, row.taken)
		}
		_ = c.Close()
	}
}

// TestQueriesShareAConnectionWithATunnel checks that queries, plain requests and at last a
// CONNECT share one connection, and that the bytes of the tunnel spend no budget of
// queries.
func TestQueriesShareAConnectionWithATunnel(t *testing.T) {
	port := newOrigin(t)
	s := newShared(t, func(c *Config) { c.Limits.Identity.DNSPerSecond = 2 })
	s.serve(t)
	s.next(t, audit.EventPolicyReload)
	decided := func(protocol audit.Protocol, wire audit.Wire) {
		t.Helper()
		if rec := s.next(t, audit.EventDecision); rec.Protocol != protocol || rec.Wire != wire || rec.Verdict != allowlist.Allow || rec.Listener != "svid" {
			t.Errorf("record %+v", rec)
		}
	}
	c, _ := s.connect(t, 0)
	if status, _, last := c.query(t, "test.example"); status != http.StatusOK || last {
		t.Fatalf("the first query: %d, closing: %v", status, last)
	}
	decided(audit.ProtocolDNS, audit.WireDoH)
	if status := c.ask(t, http.MethodGet, "a.example:"+port); status != http.StatusOK {
		t.Fatalf("a plain request: %d", status)
	}
	decided(audit.ProtocolHTTP, audit.WireH1)
	s.next(t, audit.EventTunnelClose)
	if status, _, last := c.query(t, "test.example"); status != http.StatusOK || last {
		t.Fatalf("a query behind a plain request: %d, closing: %v", status, last)
	}
	decided(audit.ProtocolDNS, audit.WireDoH)
	if status := c.ask(t, http.MethodConnect, "b.example:"+port); status != http.StatusOK {
		t.Fatalf("a CONNECT behind a query: %d", status)
	}
	decided(audit.ProtocolConnect, audit.WireH1)
	for range 1000 { // many times what the bytes of a connection over DoH may be
		if _, err := io.WriteString(c, strings.Repeat("x", 1000)+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.echo(); err != nil {
		t.Error(err)
	}
	// In a tunnel, a query is data.
	if _, err := io.WriteString(c, "GET /dns-query HTTP/1.1\r\nHost: test.example\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.echo(); err != nil {
		t.Error(err)
	}
	if n := s.Registry().Len(); n != 1 {
		t.Errorf("%d entries, want that of the tunnel", n)
	}
	if got := s.Stats().DNS; got != (dns.Stats{}) {
		t.Errorf("counted %+v", got)
	}
}

// TestDrainEndsSharedConnections checks that while load balancers notice a drain, a query is
// answered on earlier and later connections, and that its answer is the last one. After
// that, a query is refused like any other request.
func TestDrainEndsSharedConnections(t *testing.T) {
	log := pausing{make(chan struct{}, 1), make(chan struct{})}
	proceed := sync.OnceFunc(func() { close(log.proceed) })
	port := newOrigin(t)
	s := newShared(t, func(c *Config) { c.Log, c.DrainTimeout = slog.New(log), patience })
	stop, _ := s.serve(t)
	t.Cleanup(proceed)
	tunnel, _ := s.connect(t, 0)
	if status := tunnel.ask(t, http.MethodConnect, "a.example:"+port); status != http.StatusOK {
		t.Fatalf("answered %d", status)
	}
	before, _ := s.connect(t, 0)
	if status, _, last := before.query(t, "test.example"); status != http.StatusOK || last {
		t.Fatalf("answered %d, closing: %v", status, last)
	}
	stop()
	<-log.begun
	later, _ := s.connect(t, 0)
	silent, _ := s.connect(t, 0)
	for name, c := range map[string]*caller{"before": before, "later": later} {
		if status, _, last := c.query(t, "test.example"); status != http.StatusOK || !last {
			t.Errorf("%s: answered %d, closing: %v", name, status, last)
		}
		if rest, err := io.ReadAll(c.reader); err != nil || len(rest) > 0 {
			t.Errorf("%s: behind the last answer %q, %v", name, rest, err)
		}
	}
	if err := silent.Conn.(*tls.Conn).Handshake(); err != nil {
		t.Fatal(err)
	}
	proceed()
	awaitClosed(t, s.Listening()[0].Addr)
	if status, reason, last := silent.query(t, "test.example"); status != http.StatusServiceUnavailable || reason != "draining" || !last {
		t.Errorf("while tunnels finish: answered %d %s, closing: %v", status, reason, last)
	}
	if err := tunnel.echo(); err != nil {
		t.Error(err)
	}
	_ = tunnel.Close()
}

// TestListenersForBothCountAsRequests checks that a connection for CONNECT and DoH takes a
// slot of those for requests, and that such a listener needs TLS.
func TestListenersForBothCountAsRequests(t *testing.T) {
	r := &rig{policies: gatewaytest.NewPolicy(nil)}
	cfg := r.config(t)
	cfg.Listeners[0].Protocol = ConnectAndDoH
	if _, err := New(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("without TLS: %v", err)
	}
	s := newShared(t, func(c *Config) { c.MaxConnections, c.DNSConnections = 8, 2 })
	s.serve(t)
	all := make([]*caller, 3) // more than an identity may have of two
	for i := range all {
		all[i], _ = s.connect(t, 0)
		if status, _, last := all[i].query(t, "test.example"); status != http.StatusOK || last {
			t.Errorf("connection %d: answered %d, closing: %v", i, status, last)
		}
	}
	for i, c := range all {
		if status, _, last := c.query(t, "test.example"); status != http.StatusOK || last {
			t.Errorf("connection %d, again: answered %d, closing: %v", i, status, last)
		}
	}
}
