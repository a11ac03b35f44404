package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// Headers of the PROXY protocol: one for a connection of the load balancer itself, and
// one for a client's connection.
const (
	localHeader = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	proxyHeader = "PROXY TCP4 198.51.100.7 192.0.2.1 4711 443\r\n"
)

// ends returns the ways in which a client may end a connection.
func ends() map[string]func(net.Conn) {
	return map[string]func(net.Conn){
		"a close": func(c net.Conn) { _ = c.Close() },
		"a FIN": func(c net.Conn) {
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		},
		"a reset": func(c net.Conn) {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		},
	}
}

// checked is a gateway under health checks, with a listener for each protocol.
type checked struct {
	*rig
	ca, other *authority.Authority
	unused    chan struct{}
	asked     chan allowlist.Reason
}

func newChecked(t *testing.T, proxied bool) *checked {
	t.Helper()
	c := &checked{ca: newAuthority(t), other: newAuthority(t), unused: make(chan struct{}, 1000), asked: make(chan allowlist.Reason, 1000)}
	c.rig = newRig(t, allowing("one"), func(cfg *Config) {
		cfg.Identity = gatewaytest.NewIdentity(snapshot(t, 1, c.ca))
		cfg.Resolver.DNS = dns.Resolver{
			Cached: func(resolve.Question, time.Time) (resolve.Answer, bool) { return resolve.Answer{}, false },
			Lookup: func(context.Context, resolve.Asker, resolve.Question) (resolve.Answer, error) {
				return resolve.Answer{}, &allowlist.ReasonError{Reason: allowlist.ResolveFailed}
			},
			Bind: func(allowlist.Holder, resolve.Answer, time.Time, resolve.Filter) {},
		}
		cfg.Metrics.Unused = func() { c.unused <- struct{}{} }
		cfg.Metrics.Handshaken = func(why allowlist.Reason) { c.asked <- why }
		cfg.Admin = Admin{Address: "127.0.0.1:0", Metrics: http.NotFoundHandler()}
		cfg.Listeners = nil
		var proxies []netip.Prefix
		if proxied {
			proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		}
		for _, l := range []Listener{
			{Name: "mtls"},
			{Name: "dot", Protocol: DoT},
			{Name: "doh", Protocol: DoH},
			{Name: "clear", Identity: Fixed, ID: id("sidecar")},
			{Name: "queries", Identity: Fixed, ID: id("sidecar"), Protocol: DNS},
		} {
			if l.Protocol == DNS && proxied { // datagrams have no PROXY header
				continue
			}
			l.Address, l.Proxies = "127.0.0.1:0", proxies
			cfg.Listeners = append(cfg.Listeners, l)
		}
	})
	c.serve(t)
	c.next(t, audit.EventPolicyReload)
	return c
}

func (c *checked) dial(t *testing.T, at net.Addr) net.Conn {
	t.Helper()
	conn, err := net.Dial(at.Network(), at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// certificate returns a certificate that an authority issued.
func certificate(t *testing.T, ca *authority.Authority, lifetime time.Duration) *tls.Certificate {
	t.Helper()
	svid, err := ca.Mint(authority.Options{ID: id("builder"), Lifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	cert := svid.TLS()
	return &cert
}

// client returns a configuration with a certificate, or without one.
func (c *checked) client(cert *tls.Certificate) *tls.Config {
	config := &tls.Config{
		InsecureSkipVerify: true, // as health checks do
		VerifyConnection:   func(tls.ConnectionState) error { return nil },
	}
	if cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return config
}

// hello returns a ClientHello in its TLS record.
func (c *checked) hello(t *testing.T) []byte {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(client, c.client(nil)).HandshakeContext(t.Context())
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(server, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	_ = client.Close()
	<-done
	return append(head, body...)
}

// TestHealthChecksAreQuiet checks that nothing is recorded, or counted as a failed
// handshake, that a load balancer does to find out whether a port is open or speaks TLS.
func TestHealthChecksAreQuiet(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		for name, end := range ends() {
			if t.Failed() {
				return
			}
			t.Run(fmt.Sprintf("%s, proxied %t", name, proxied), func(t *testing.T) {
				c := newChecked(t, proxied)
				headers := []string{""}
				if proxied {
					headers = []string{"", localHeader, "PROXY UNKNOWN\r\n", proxyHeader, localHeader[:13] + "\x11\x00\x0c\xc6\x33\x64\x07\xc0\x00\x02\x01\x12\x67\x01\xbb"}
				}
				unused := 0
				hello := c.hello(t)
				shown := map[string]*tls.Certificate{"none": nil, "a good one": certificate(t, c.ca, 0)}
				for _, l := range c.Listening() {
					for _, header := range headers {
						if header != "" && l.Name == AdminName {
							continue
						}
						begin := func() net.Conn {
							conn := c.dial(t, l.Addr)
							if _, err := io.WriteString(conn, header); err != nil {
								t.Fatal(err)
							}
							return conn
						}
						end(begin())
						if l.Name == AdminName || l.Name == "clear" || l.Name == "queries" || proxied && header == "" {
							continue
						}
						for _, reads := range []int{0, 1, 100} { // bytes of the server's answer that the client reads
							conn := begin()
							if _, err := conn.Write(hello); err != nil {
								t.Fatal(err)
							}
							if _, err := io.ReadFull(conn, make([]byte, reads)); err != nil {
								t.Fatal(err)
							}
							end(conn)
							unused++
						}
						for _, cert := range shown {
							for _, notify := range []bool{false, true} {
								raw := begin()
								conn := tls.Client(raw, c.client(cert))
								if err := conn.HandshakeContext(t.Context()); err != nil {
									t.Fatal(err)
								}
								if notify {
									_ = conn.CloseWrite()
								}
								end(raw)
								unused++
							}
						}
					}
				}
				for i := range unused {
					select {
					case <-c.unused:
					case <-time.After(patience):
						t.Fatalf("%d of %d handshakes are counted as unused", i, unused)
					}
				}
				if left := c.rest(t); len(left) > 0 {
					for _, r := range left {
						t.Errorf("record on %s of %s: %s, %s", r.Listener, r.Client, r.Reason, r.Detail)
					}
				}
				if len(c.unused)+len(c.asked) > 0 {
					t.Errorf("%d handshakes too many are counted as unused, %d as used", len(c.unused), len(c.asked))
				}
			})
		}
	}
}

// TestNobodyHidesAsAHealthCheck checks that every other failed handshake and header has
// a record with its source address.
func TestNobodyHidesAsAHealthCheck(t *testing.T) {
	c := newChecked(t, false)
	behind := newChecked(t, true)
	hello := c.hello(t)
	var split []byte // the ClientHello with each byte in a TLS record of its own
	for _, b := range hello[5:50] {
		split = append(split, 0x16, 3, 1, 0, 1, b)
	}
	says := func(text string) func(*testing.T, *checked, net.Conn) {
		return func(t *testing.T, _ *checked, conn net.Conn) {
			t.Helper()
			if _, err := io.WriteString(conn, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	// after does a handshake with a certificate, and then what its argument does.
	after := func(cert func(*checked) *tls.Certificate, text string) func(*testing.T, *checked, net.Conn) {
		return func(t *testing.T, c *checked, raw net.Conn) {
			t.Helper()
			conn := tls.Client(raw, c.client(cert(c)))
			if err := conn.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, text); text != "" && err != nil {
				t.Fatal(err)
			}
		}
	}
	untrusted := func(c *checked) *tls.Certificate { return certificate(t, c.other, 0) }
	expired := func(c *checked) *tls.Certificate { return certificate(t, c.ca, time.Nanosecond) }
	invalid := func(*checked) *tls.Certificate { return nobodys(t) }
	for _, row := range []struct {
		name    string
		proxied bool
		does    func(*testing.T, *checked, net.Conn)
		reason  allowlist.Reason
		unused  bool
	}{
		{"half a hello", false, says(string(hello[:40])), allowlist.TLSHandshakeFailed, false},
		{"the first byte", false, says("\x16"), allowlist.TLSHandshakeFailed, false},
		{"a hello in small pieces, cut between two", false, says(string(split)), allowlist.TLSHandshakeFailed, false},
		{"garbage", false, says(strings.Repeat("x", 100)), allowlist.TLSHandshakeFailed, false},
		{"half a header", true, says(proxyHeader[:20]), allowlist.MalformedHeader, false},
		{"the first byte of a header", true, says("P"), allowlist.MalformedHeader, false},
		{"half a header of a health check", true, says(localHeader[:14]), allowlist.MalformedHeader, false},
		{"half a hello behind a header", true, says(localHeader + string(hello[:40])), allowlist.TLSHandshakeFailed, false},
		{"a certificate of another authority", false, after(untrusted, ""), allowlist.IdentityUntrusted, true},
		{"an expired certificate", false, after(expired, ""), allowlist.IdentityExpired, true},
		{"a certificate without an identity", false, after(invalid, ""), allowlist.IdentityInvalid, true},
		{"a certificate of another authority, and an empty line", false, after(untrusted, "\r\n"), allowlist.IdentityUntrusted, true},
	} {
		for how, end := range ends() {
			if t.Failed() { // every further row would wait for a record
				return
			}
			t.Run(row.name+", then "+how, func(t *testing.T) {
				c := c
				if row.proxied {
					c = behind
				}
				for _, l := range c.Listening() {
					if l.Name != "mtls" && l.Name != "dot" && l.Name != "doh" {
						continue
					}
					conn := c.dial(t, l.Addr)
					row.does(t, c, conn)
					end(conn)
					r := c.next(t, audit.EventHandshake)
					if r.Listener != l.Name || r.Reason != row.reason || r.Detail == "" || r.Client.String() != conn.LocalAddr().String() {
						t.Errorf("%s: record %+v", l.Name, r)
					}
					if counted := len(c.unused) > 0; counted != row.unused {
						t.Errorf("%s: counted as unused: %t", l.Name, counted)
					}
					for len(c.unused) > 0 {
						<-c.unused
					}
				}
			})
		}
	}
	for _, c := range []*checked{c, behind} {
		if left := c.rest(t); len(left) > 0 {
			t.Errorf("%d records too many, the first is %+v", len(left), left[0])
		}
	}
}

// TestHTTPHealthCheckIsNoDecisionOfAPolicy checks that the reasons for which a health
// check over HTTP is refused are those that the indicators of denials leave out.
func TestHTTPHealthCheckIsNoDecisionOfAPolicy(t *testing.T) {
	c := newChecked(t, false)
	for _, row := range []struct {
		request, status string
		want            allowlist.Reason
	}{
		{"OPTIONS / HTTP/1.0\r\n\r\n", "400", allowlist.MalformedTarget}, // HAProxy's option httpchk
		{"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n", "400", allowlist.MalformedTarget},
		{"GET http://gateway/ HTTP/1.1\r\nHost: gateway\r\n\r\n", "407", allowlist.IdentityMissing},
	} {
		conn := tls.Client(c.dial(t, c.Listening()[0].Addr), c.client(nil))
		if _, err := io.WriteString(conn, row.request); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, len("HTTP/1.1 400"))
		if _, err := io.ReadFull(conn, answer); err != nil || !strings.HasSuffix(string(answer), row.status) {
			t.Errorf("%q is answered %q (%v), want status %s", row.request, answer, err, row.status)
		}
		if r := c.next(t, audit.EventDecision); r.Reason != row.want {
			t.Errorf("%q is recorded as %s, want %s", row.request, r.Reason, row.want)
		}
		if why := <-c.asked; why != allowlist.IdentityMissing {
			t.Errorf("%q: the handshake is counted as %s", row.request, why)
		}
		_ = conn.Close()
	}
}

// TestAHandshakeIsCountedByWhatFollows checks that a handshake counts as used if any
// request follows it, by any caller.
func TestAHandshakeIsCountedByWhatFollows(t *testing.T) {
	c := newChecked(t, false)
	for _, row := range []struct {
		cert *tls.Certificate
		want allowlist.Reason
	}{
		{nil, allowlist.IdentityMissing},
		{certificate(t, c.other, 0), allowlist.IdentityUntrusted},
		{certificate(t, c.ca, 0), allowlist.NoReason},
	} {
		conn := tls.Client(c.dial(t, c.Listening()[0].Addr), c.client(row.cert))
		for range 2 { // both requests follow one handshake
			if _, err := io.WriteString(conn, "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			_ = c.next(t, audit.EventDecision)
			if row.want == allowlist.NoReason { // the connection ends after the request
				break
			}
		}
		_ = conn.Close()
		if got := <-c.asked; got != row.want {
			t.Errorf("counted as %q, want %q", got, row.want)
		}
	}
	if left := c.rest(t); len(left)+len(c.unused)+len(c.asked) > 0 {
		t.Errorf("left: %d records, %d unused, %d asked", len(left), len(c.unused), len(c.asked))
	}
}

// nobodys returns a certificate without a SPIFFE ID.
func nobodys(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
