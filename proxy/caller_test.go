package proxy_test

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// id returns the SPIFFE ID of a workload of the test's trust domain.
func id(name string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://test.example/" + name)
}

// The following functions return the rules of a policy, so that they read as sentences.

func only(name string) allowlist.IdentityPattern {
	p, err := allowlist.ParseIdentityPattern(id(name).String())
	if err != nil {
		panic(err) // a constant of a test
	}
	return p
}

// to returns a rule that allows a host at the origin's address, on the given ports or, if
// there are none, on all.
func to(host string, ports ...uint16) allowlist.Rule {
	p, err := allowlist.ParseHostPattern(host)
	if err != nil {
		panic(err) // a constant of a test
	}
	rule := allowlist.Rule{Host: p, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	for _, port := range ports {
		rule.Ports = append(rule.Ports, allowlist.PortRange{First: port, Last: port})
	}
	if len(ports) == 0 {
		rule.Ports = []allowlist.PortRange{{First: 1, Last: 65535}}
	}
	return rule
}

func with(rule allowlist.Rule, change func(*allowlist.Rule)) allowlist.Rule {
	change(&rule)
	return rule
}

// policy returns the policy that every gateway starts with.
func (g *gateway) policy() allowlist.Spec {
	past := time.Now().Add(-time.Hour)
	path, err := allowlist.ParsePathPattern("/public/**")
	if err != nil {
		panic(err) // a constant of a test
	}
	return allowlist.Spec{
		Version: "one",
		Entries: []allowlist.Entry{
			{Pattern: only("builder"), Owner: "team-ci", Allow: []allowlist.Rule{
				to("allowed.example", g.origin.port, 80), to("**.wild.example"),
				to("refused.example"), to("unknown.example"), to("empty.example"), to("slow.example"), to("late.example"),
				to("inner.example"), to("mixed.example"), with(to("panic.example"), func(r *allowlist.Rule) { r.Upgrade = true }), to("held.example"), to("once.example"),
				with(to("unreachable.example"), func(r *allowlist.Rule) {
					r.Addresses = []netip.Prefix{netip.MustParsePrefix("255.255.255.255/32")}
				}),
				with(to("expired.example"), func(r *allowlist.Rule) { r.Expires = past }),
				with(to("read-only.example"), func(r *allowlist.Rule) { r.Methods = []string{http.MethodGet} }),
				with(to("ws.example"), func(r *allowlist.Rule) { r.Upgrade = true }),
				with(to("public-path.example"), func(r *allowlist.Rule) { r.Paths = []allowlist.PathPattern{path} }),
				{CIDR: netip.MustParsePrefix("8.8.8.8/32")},
				{CIDR: netip.MustParsePrefix("0.0.0.0/0")},
			}, Deny: []allowlist.Rule{with(to("denied.wild.example"), func(r *allowlist.Rule) { r.Addresses = nil })}},
			{Pattern: only("reporter"), Allow: []allowlist.Rule{to("allowed.example", g.origin.port)}},
			{Pattern: only("sidecar"), Accept: allowlist.ProofsOf(allowlist.ProofX509SVID), Allow: []allowlist.Rule{to("allowed.example")}},
			{Pattern: only("legacy"), Allow: []allowlist.Rule{to("allowed.example")}},
		},
		Quarantine: []allowlist.Quarantined{{Pattern: only("legacy"), Reason: "INC-77"}},
	}
}

// testCA is the authority of test.example, which signs any certificate that a test needs.
type testCA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newCA(tb testing.TB) *testCA {
	tb.Helper()
	ca := &testCA{key: newKey(tb)}
	ca.cert = ca.sign(tb, &x509.Certificate{
		Subject:   pkix.Name{CommonName: "authority of test.example"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}, ca.key.Public())
	return ca
}

func newKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func (ca *testCA) sign(tb testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	tb.Helper()
	parent := ca.cert
	if parent == nil {
		parent = template
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// issue signs a certificate for the URIs, usually one SPIFFE ID.
func (ca *testCA) issue(tb testing.TB, uris ...string) tls.Certificate {
	tb.Helper()
	return ca.issueUntil(tb, time.Now().Add(time.Hour), uris...)
}

func (ca *testCA) issueUntil(tb testing.TB, notAfter time.Time, uris ...string) tls.Certificate {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		DNSNames:  []string{"gateway"},
		NotBefore: time.Now().Add(-12 * time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, uri := range uris {
		u, err := url.Parse(uri)
		if err != nil {
			tb.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	leaf := ca.sign(tb, template, key.Public())
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func (ca *testCA) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("test.example"), []*x509.Certificate{ca.cert})
}

// caller is a client's connection to the gateway.
type caller struct {
	net.Conn
	reader *bufio.Reader
	method string // method of the last request
}

// call connects with a certificate of the gateway's authority for an identity, or without
// a certificate if it is "".
func (g *gateway) call(t *testing.T, name string) *caller {
	t.Helper()
	var certificate tls.Certificate
	if name != "" {
		certificate = g.ca.issue(t, id(name).String())
	}
	return g.callWith(t, certificate)
}

// callWith connects with a certificate, whatever authorities the gateway asks for.
func (g *gateway) callWith(t *testing.T, certificate tls.Certificate) *caller {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(g.ca.cert)
	conn := tls.Client(g.connect(t, g.secure), &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "gateway",
		NextProtos: []string{"h2", "http/1.1"}, // Go programs offer both and then write HTTP/1.1
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &certificate, nil
		},
	})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	return &caller{Conn: conn, reader: bufio.NewReader(conn)}
}

// callPlain connects to the listener without TLS, as sidecar.
func (g *gateway) callPlain(tb testing.TB) *caller {
	tb.Helper()
	conn := g.connect(tb, g.plain)
	return &caller{Conn: conn, reader: bufio.NewReader(conn)}
}

func (g *gateway) connect(tb testing.TB, addr netip.AddrPort) net.Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	return conn
}

// at returns a host with the origin's port.
func (g *gateway) at(host string) string { return host + ":" + strconv.Itoa(int(g.origin.port)) }

// connectTo returns the head of a CONNECT from a well-behaved client; fields are lines
// without line ends.
func connectTo(target string, fields ...string) string {
	var b strings.Builder
	b.WriteString("CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n")
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	return b.String() + "\r\n"
}

// get returns a plain request from a well-behaved client.
func get(url string, fields ...string) string { return plainTo("GET", url, fields...) }

func plainTo(method, url string, fields ...string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	var b strings.Builder
	b.WriteString(method + " " + url + " HTTP/1.1\r\nHost: " + host + "\r\n")
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	return b.String() + "\r\n"
}

func (c *caller) send(t *testing.T, text string) {
	t.Helper()
	c.method, _, _ = strings.Cut(text, " ")
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// answer is an answer of the gateway.
type answer struct {
	status int
	phrase string
	header http.Header
	body   string
	length int64 // announced length of the body; -1 if none was announced
	close  bool  // the answer announces the end of the connection

	trailer http.Header
}

// reason returns the parameter reason of Proxy-Status, or "" for a 200.
func (a answer) reason() string {
	_, rest, _ := strings.Cut(a.header.Get("Proxy-Status"), "; reason=")
	token, _, _ := strings.Cut(rest, ";")
	return token
}

// id returns the id of the decision in the answer.
func (a answer) id() string { return a.header.Get("X-Exeat-Decision") }

// answer reads an answer.
func (c *caller) answer(t *testing.T) answer {
	t.Helper()
	return c.answerTo(t, c.method)
}

// answerTo reads the answer to a request with the given method.
func (c *caller) answerTo(t *testing.T, method string) answer {
	t.Helper()
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	a := answer{status: resp.StatusCode, phrase: resp.Status, header: resp.Header, close: resp.Close, length: resp.ContentLength}
	tunnel := method == http.MethodConnect && resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols
	if !tunnel {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("reading the body: %v", err)
		}
		a.body, a.trailer = string(body), resp.Trailer
	}
	return a
}

// ask sends a head and reads the answer.
func (c *caller) ask(t *testing.T, head string) answer {
	t.Helper()
	c.send(t, head)
	return c.answer(t)
}

// ended checks that no more bytes come and that the connection is closed in order. Over
// TLS, crypto/tls reports a missing close_notify.
func (c *caller) ended(t *testing.T) {
	t.Helper()
	rest, err := io.ReadAll(c.reader)
	if err != nil {
		t.Errorf("the connection ended with %v, want a clean end", err)
	}
	if len(rest) > 0 {
		t.Errorf("behind the answer came %q", rest)
	}
	_ = c.Close()
}

// gone reads to the end of the connection, whether or not it was closed in order.
func (c *caller) gone(t *testing.T) {
	t.Helper()
	_, err := io.Copy(io.Discard, c.reader)
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		t.Errorf("the connection does not end: %v", err)
	}
	_ = c.Close()
}
