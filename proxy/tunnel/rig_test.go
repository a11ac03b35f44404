package tunnel

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// kinds are the kinds of client connections.
var kinds = []string{"tcp", "unix", "tls", "tls over tcp unwrapped"}

// rig is a tunnel between a client and an origin, on real sockets.
type rig struct {
	*Tunnel
	client net.Conn // the peer's end of the client connection
	wire   net.Conn // the connection below client; client itself without TLS
	origin net.Conn // the peer's end of the upstream connection
	result chan Result
}

func newRig(tb testing.TB, kind string, cfg Config) *rig {
	tb.Helper()
	network := "tcp"
	if kind == "unix" {
		network = "unix"
	}
	r := &rig{result: make(chan Result, 1)}
	var client, upstream net.Conn
	r.wire, client = pair(tb, network)
	r.origin, upstream = pair(tb, "tcp")
	r.client = r.wire
	switch kind {
	case "tls":
		r.client, client = secure(tb, r.wire, Wrap(client))
	case "tls over tcp unwrapped":
		r.client, client = secure(tb, r.wire, client)
	default:
		client = Wrap(client)
	}
	r.Tunnel = New(client, upstream, cfg)
	return r
}

func startRig(tb testing.TB, kind string, cfg Config, early string) *rig {
	tb.Helper()
	r := newRig(tb, kind, cfg)
	r.start(tb, early)
	return r
}

func (r *rig) start(tb testing.TB, early string) {
	tb.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.result <- r.Run([]byte(early))
	}()
	tb.Cleanup(func() {
		r.Close(Drain)
		<-done
	})
}

// wait returns the result of the tunnel.
func (r *rig) wait(tb testing.TB) Result {
	tb.Helper()
	select {
	case got := <-r.result:
		return got
	case <-time.After(patience):
		tb.Fatal("the tunnel does not end")
		return Result{}
	}
}

// pair returns the two ends of a connection.
func pair(tb testing.TB, network string) (dialled, accepted net.Conn) {
	tb.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(tb.TempDir(), "s")
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	if dialled, err = net.Dial(network, l.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		dialled.Close()
		accepted.Close()
	})
	dialled.SetDeadline(time.Now().Add(patience))
	return dialled, accepted
}

// secure makes TLS connections of both ends of a connection.
func secure(tb testing.TB, client, server net.Conn) (c, s *tls.Conn) {
	tb.Helper()
	return secureWith(tb, client, server, &tls.Config{})
}

func secureWith(tb testing.TB, client, server net.Conn, cfg *tls.Config) (c, s *tls.Conn) {
	tb.Helper()
	cfg.InsecureSkipVerify = true
	c = tls.Client(client, cfg)
	s = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{certificate(tb)}, SessionTicketsDisabled: true})
	failed := make(chan error, 1)
	go func() { failed <- c.HandshakeContext(tb.Context()) }()
	if err := errors.Join(s.HandshakeContext(tb.Context()), <-failed); err != nil {
		tb.Fatal(err)
	}
	return c, s
}

func certificate(tb testing.TB) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func send(tb testing.TB, c io.Writer, s string) {
	tb.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		tb.Fatal(err)
	}
}

func expect(tb testing.TB, c io.Reader, want string) {
	tb.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		tb.Fatalf("got %q, %v, want %q", got[:n], err, want)
	}
}

// expectEnd reads what is left, and checks that an orderly end follows it.
func expectEnd(tb testing.TB, c io.Reader, want string) {
	tb.Helper()
	if got, err := io.ReadAll(c); err != nil || string(got) != want {
		tb.Fatalf("got %q, %v, want %q and the end", got, err, want)
	}
}

func finish(tb testing.TB, c net.Conn) {
	tb.Helper()
	w, ok := c.(closeWriter)
	if !ok {
		tb.Fatalf("%T has no CloseWrite", c)
	}
	if err := w.CloseWrite(); err != nil {
		tb.Fatal(err)
	}
}
