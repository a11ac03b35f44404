package listen

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/limit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixed is an identity provider whose snapshot does not change.
type fixed struct{ snapshot *identity.Snapshot }

func (f fixed) Snapshot() *identity.Snapshot { return f.snapshot }

// pki holds a CA, the TLS configuration of the listener and the roots of its clients.
type pki struct {
	ca       *authority.Authority
	server   *tls.Config
	verifier *identity.Verifier
	roots    *x509.CertPool
}

func newAuthority(t *testing.T, domain string) *authority.Authority {
	t.Helper()
	ca, err := authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(domain)})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{ca: newAuthority(t, "prod.example"), roots: x509.NewCertPool()}
	p.roots.AppendCertsFromPEM(p.ca.Bundle())
	svid := mint(t, p.ca, "spiffe://prod.example/gateway", 0)
	snapshot, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: svid.TLS(), Bundles: []*x509bundle.Bundle{p.ca.X509Bundle()}, Generation: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	if p.verifier, err = identity.NewVerifier(fixed{snapshot}); err != nil {
		t.Fatal(err)
	}
	if p.server, err = (identity.ServerConfig{Provider: fixed{snapshot}, Verifier: p.verifier}).TLS(); err != nil {
		t.Fatal(err)
	}
	return p
}

func mint(t *testing.T, ca *authority.Authority, id string, lifetime time.Duration) *authority.SVID {
	t.Helper()
	svid, err := ca.Mint(authority.Options{
		ID: spiffeid.RequireFromString(id), DNS: []string{"gateway.example"}, Lifetime: lifetime,
	})
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// selfSigned returns a certificate that no CA has signed.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"laptop.example"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// client returns the TLS configuration of a client that presents the given
// certificates, whatever the server asks for.
func (p *pki) client(certs ...tls.Certificate) *tls.Config {
	config := &tls.Config{RootCAs: p.roots, ServerName: "gateway.example", MinVersion: tls.VersionTLS13}
	if len(certs) > 0 {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return config
}

// rig is a listener that is served.
type rig struct {
	*Listener
	conns    chan *Conn // connections passed to the handler
	failures chan error // errors passed to HandshakeFailed
	panics   chan any
	served   chan error // the result of Serve
	cut      context.CancelFunc
	handling atomic.Int32
}

// echo sends the connection to conns, and then sends back what it reads.
func (r *rig) echo(_ context.Context, conn *Conn) {
	r.handling.Add(1)
	defer r.handling.Add(-1)
	r.conns <- conn
	_, _ = io.Copy(conn, conn)
}

// serve opens a listener and serves it until the test ends. The listener has no TLS
// unless change sets it.
func serve(t *testing.T, change func(*rig, *Config)) *rig {
	t.Helper()
	r := &rig{
		conns: make(chan *Conn, 100), failures: make(chan error, 100), panics: make(chan any, 100), served: make(chan error, 1),
	}
	cfg := Config{
		Name: "test", Address: "127.0.0.1:0", Slots: limit.NewSlots(limit.SharesOf(400)), Log: slog.New(slog.DiscardHandler),
		Fixed:           func() spiffeid.ID { return spiffeid.RequireFromString("spiffe://prod.example/fixed") },
		HandshakeFailed: func(_ context.Context, _ netip.AddrPort, err error) { r.failures <- err },
		Panicked:        func(_ context.Context, cause any, _ []byte) { r.panics <- cause },
	}
	change(r, &cfg)
	var err error
	if r.Listener, err = Listen(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, r.cut = context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.served <- r.Serve(ctx, r.echo)
	}()
	t.Cleanup(func() {
		r.cut()
		_ = r.Close()
		<-done
	})
	return r
}

// withTLS sets TLS in the configuration of a listener.
func (p *pki) withTLS(_ *rig, cfg *Config) {
	cfg.TLS, cfg.Verifier, cfg.Fixed, cfg.Realm = p.server, p.verifier, nil, "prod.example"
}

func dialRaw(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func dialTLS(t *testing.T, addr net.Addr, config *tls.Config) *tls.Conn {
	t.Helper()
	conn := tls.Client(dialRaw(t, addr), config)
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return conn
}

// speak sends a text and waits for its echo.
func speak(t *testing.T, conn net.Conn) {
	t.Helper()
	const text = "hello"
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("heard %q, %v", got, err)
	}
}

// closed waits until the peer has closed the connection.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	_, _ = io.Copy(io.Discard, conn) // ends with EOF or a reset
}
