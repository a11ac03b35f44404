package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestCallers makes real handshakes, and checks that each connection gets to the handler
// with its caller, or with the reason for which there is no identity.
func TestCallers(t *testing.T) {
	p := newPKI(t)
	r := serve(t, p.withTLS)
	short := mint(t, p.ca, "spiffe://prod.example/short", time.Millisecond)
	good := mint(t, p.ca, "spiffe://prod.example/ns/ci/sa/builder", 0)
	rows := []struct {
		name   string
		certs  []tls.Certificate
		id     string
		reason allowlist.Reason
	}{
		{"an SVID", []tls.Certificate{good.TLS()}, "spiffe://prod.example/ns/ci/sa/builder", allowlist.NoReason},
		{"no certificate", nil, "", allowlist.IdentityMissing},
		{"a self-signed certificate", []tls.Certificate{selfSigned(t)}, "", allowlist.IdentityInvalid},
		{"an SVID of another trust domain", []tls.Certificate{mint(t, newAuthority(t, "other.example"), "spiffe://other.example/a", 0).TLS()}, "", allowlist.IdentityUntrusted},
		{"an SVID of a false authority of ours", []tls.Certificate{mint(t, newAuthority(t, "prod.example"), "spiffe://prod.example/a", 0).TLS()}, "", allowlist.IdentityUntrusted},
	}
	check := func(t *testing.T, certs []tls.Certificate, id string, reason allowlist.Reason) *Conn {
		t.Helper()
		conn := dialTLS(t, r.Addr(), p.client(certs...))
		speak(t, conn)
		got := <-r.conns
		c := got.Caller
		if c.Reason != reason || c.ID.String() != id || c.Realm != "prod.example" || c.Busy {
			t.Errorf("got %+v, want %q %s", c, id, reason)
		}
		if want := netip.MustParseAddrPort(conn.LocalAddr().String()); c.Addr != want || got.Listener != "test" {
			t.Errorf("from %s on %s, want %s on test", c.Addr, got.Listener, want)
		}
		if known := reason == allowlist.NoReason; known != (c.Proof == allowlist.ProofX509SVID) || known != (c.Detail == "") || known == c.NotAfter.IsZero() {
			t.Errorf("source %q, detail %q, until %s", c.Proof, c.Detail, c.NotAfter)
		}
		secure, ok := got.Conn.(*tls.Conn)
		if !ok {
			t.Fatalf("the connection is a %T", got.Conn)
		}
		if _, ok := secure.NetConn().(*tunnel.Conn); !ok {
			t.Errorf("below TLS is a %T: an idle tunnel would hold a buffer", secure.NetConn())
		}
		return got
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) { check(t, row.certs, row.id, row.reason) })
	}
	t.Run("an expired SVID", func(t *testing.T) {
		<-time.After(time.Until(short.NotAfter.Add(10 * time.Millisecond)))
		got := check(t, []tls.Certificate{short.TLS()}, "", allowlist.IdentityExpired)
		if !strings.Contains(got.Caller.Detail, "expired") {
			t.Errorf("detail %q", got.Caller.Detail)
		}
	})
}

// TestALPN checks that the handshake succeeds and chooses nothing whatever protocols a
// client offers: Go clients offer h2 to a proxy and then write HTTP/1.1.
func TestALPN(t *testing.T) {
	p := newPKI(t)
	r := serve(t, p.withTLS)
	for _, protos := range [][]string{nil, {"h2", "http/1.1"}, {"h2"}, {"unheard-of"}} {
		config := p.client(mint(t, p.ca, "spiffe://prod.example/a", 0).TLS())
		config.NextProtos = protos
		conn := dialTLS(t, r.Addr(), config)
		speak(t, conn)
		if got := conn.ConnectionState().NegotiatedProtocol; got != "" {
			t.Errorf("offered %q, chosen %q", protos, got)
		}
	}
}

// TestHandshakesThatFail checks that a failed handshake closes its connection and is
// reported with its error.
func TestHandshakesThatFail(t *testing.T) {
	p := newPKI(t)
	patient := serve(t, p.withTLS)
	hasty := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.HandshakeTimeout = 50 * time.Millisecond
	})
	rows := []struct {
		name string
		talk func(*testing.T, net.Conn)
		want func(error) bool
	}{
		{"HTTP in clear", func(t *testing.T, c net.Conn) {
			t.Helper()
			_, _ = io.WriteString(c, "CONNECT a.example:443 HTTP/1.1\r\n\r\n")
		}, func(err error) bool {
			var record tls.RecordHeaderError
			return errors.As(err, &record)
		}},
		{"garbage in a record", func(t *testing.T, c net.Conn) { t.Helper(); _, _ = c.Write([]byte{22, 3, 1, 0, 4, 9, 9, 9, 9}) }, func(err error) bool { return err != nil }},
		{"a close without a byte", func(t *testing.T, c net.Conn) { t.Helper(); _ = c.Close() }, func(err error) bool { return errors.Is(err, io.EOF) }},
		{"silence", func(*testing.T, net.Conn) {}, func(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }},
		{"a client of TLS 1.2", func(t *testing.T, c net.Conn) {
			t.Helper()
			config := p.client()
			config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			if tls.Client(c, config).HandshakeContext(t.Context()) == nil {
				t.Error("TLS 1.2 passed")
			}
		}, func(err error) bool { return strings.Contains(err.Error(), "version") }},
		{"a client that does not trust the listener's certificate", func(t *testing.T, c net.Conn) {
			t.Helper()
			config := p.client()
			config.ServerName = "other.example"
			if tls.Client(c, config).HandshakeContext(t.Context()) == nil {
				t.Error("the wrong name passed")
			}
		}, func(err error) bool { return strings.HasPrefix(err.Error(), "remote error: tls: ") }},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := patient
			if row.name == "silence" {
				r = hasty
			}
			conn := dialRaw(t, r.Addr())
			row.talk(t, conn)
			if err := <-r.failures; !row.want(err) {
				t.Errorf("HandshakeFailed was told %v", err)
			}
			closed(t, conn)
		})
	}
	if n := len(patient.conns) + len(hasty.conns); n != 0 {
		t.Errorf("%d connections got through", n)
	}
}

// TestTheHandshakeDeadlineIsLifted checks that the deadline of the handshake does not
// end the connection afterwards.
func TestTheHandshakeDeadlineIsLifted(t *testing.T) {
	p := newPKI(t)
	r := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.HandshakeTimeout = time.Second
	})
	conn := dialTLS(t, r.Addr(), p.client())
	<-time.After(1100 * time.Millisecond)
	speak(t, conn)
}

// TestAFixedIdentity checks that every caller of a listener with a fixed identity has
// it, and that it is read anew for each connection.
func TestAFixedIdentity(t *testing.T) {
	asked := make(chan struct{}, 10)
	r := serve(t, func(_ *rig, cfg *Config) {
		cfg.Fixed = func() spiffeid.ID {
			asked <- struct{}{}
			return spiffeid.RequireFromString("spiffe://prod.example/self")
		}
	})
	for range 2 {
		speak(t, dialRaw(t, r.Addr()))
		c := <-r.conns
		if c.Caller.ID.String() != "spiffe://prod.example/self" || c.Caller.Proof != allowlist.ProofListener || c.Caller.Reason != allowlist.NoReason {
			t.Errorf("got %+v", c.Caller)
		}
		if !c.Caller.Addr.Addr().IsLoopback() || !c.Caller.NotAfter.IsZero() {
			t.Errorf("from %s until %s", c.Caller.Addr, c.Caller.NotAfter)
		}
		<-asked
	}
}

// TestAMappedIdentity checks that the caller's address decides its identity, and that an
// address which is not in the map gets to the handler without one.
func TestAMappedIdentity(t *testing.T) {
	for _, row := range []struct {
		known bool
		want  Caller
	}{
		{true, Caller{ID: spiffeid.RequireFromString("spiffe://prod.example/batch"), Proof: allowlist.ProofSourceMap, mapped: true}},
		{false, Caller{Reason: allowlist.IdentityMissing, Detail: "no identity for this address", mapped: true}},
	} {
		r := serve(t, func(_ *rig, cfg *Config) {
			cfg.Fixed = nil
			cfg.Mapped = func(addr netip.Addr) (spiffeid.ID, bool) {
				if !addr.IsLoopback() || !addr.Is4() {
					t.Errorf("asked for %s", addr)
				}
				return row.want.ID, row.known
			}
		})
		speak(t, dialRaw(t, r.Addr()))
		c := <-r.conns
		got := c.Caller
		got.Addr = netip.AddrPort{}
		if h := got.Holder(); h != allowlist.HolderOf(row.want.ID, allowlist.ProofSourceMap) {
			t.Errorf("%+v has the holder %+v", got, h)
		}
		if got != row.want {
			t.Errorf("got %+v, want %+v", got, row.want)
		}
	}
	three := Config{Slots: limit.NewSlots(limit.SharesOf(1)), Log: slog.New(slog.DiscardHandler), Fixed: func() spiffeid.ID { return spiffeid.ID{} }}
	three.Mapped = func(netip.Addr) (spiffeid.ID, bool) { return spiffeid.ID{}, false }
	if _, err := Listen(t.Context(), three); err == nil {
		t.Error("two ways to tell who calls are no error")
	}
}

// TestServeEndsWithItsHandlers checks that Close stops accepting and closes no
// connection.
func TestServeEndsWithItsHandlers(t *testing.T) {
	r := serve(t, func(*rig, *Config) {})
	conn := dialRaw(t, r.Addr())
	speak(t, conn)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	speak(t, conn)
	select {
	case err := <-r.served:
		t.Fatalf("Serve returned %v with a handler running", err)
	default:
	}
	var d net.Dialer
	if c, err := d.DialContext(t.Context(), "tcp", r.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("still accepting")
	}
	_ = conn.Close()
	if err := <-r.served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if n := r.handling.Load(); n != 0 {
		t.Errorf("%d handlers still run", n)
	}
}

// TestContextEndsAllConnections checks that the end of the context closes connections
// that are served, that make their handshake and that are accepted later.
func TestContextEndsAllConnections(t *testing.T) {
	p := newPKI(t)
	r := serve(t, p.withTLS)
	served := dialTLS(t, r.Addr(), p.client())
	speak(t, served)
	silent := dialRaw(t, r.Addr())
	r.cut()
	closed(t, served)
	closed(t, silent)
	closed(t, dialRaw(t, r.Addr()))
	_ = r.Close()
	if err := <-r.served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

// TestPanics checks that a panic, wherever it happens, ends its own connection only,
// and that the slot is freed.
func TestPanics(t *testing.T) {
	p := newPKI(t)
	planted := errors.New("planted")
	var mu sync.Mutex
	where := ""
	at := func(place string) {
		mu.Lock()
		defer mu.Unlock()
		if where == place {
			panic(planted)
		}
	}
	slots := limit.NewSlots(limit.SharesOf(100))
	overTLS := func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Slots = slots
		cfg.TLS = p.server.Clone()
		cfg.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			at("handshake")
			return p.server, nil
		}
		told := cfg.HandshakeFailed
		cfg.HandshakeFailed = func(ctx context.Context, client netip.AddrPort, err error) {
			at("failure")
			told(ctx, client, err)
		}
	}
	inClear := func(_ *rig, cfg *Config) {
		cfg.Slots = slots
		cfg.Fixed = func() spiffeid.ID {
			at("identity")
			return spiffeid.ID{}
		}
	}
	secure, clear := serve(t, overTLS), serve(t, inClear)
	bystander := dialTLS(t, secure.Addr(), p.client())
	speak(t, bystander)
	for place, r := range map[string]*rig{"handshake": secure, "failure": secure, "identity": clear} {
		mu.Lock()
		where = place
		mu.Unlock()
		conn := dialRaw(t, r.Addr())
		switch place {
		case "handshake":
			if tls.Client(conn, p.client()).HandshakeContext(t.Context()) == nil {
				t.Error("the handshake passed")
			}
		case "failure":
			_, _ = io.WriteString(conn, "garbage")
		}
		closed(t, conn)
		if cause := <-r.panics; cause != any(planted) {
			t.Errorf("%s: Panicked was told %v", place, cause)
		}
		speak(t, bystander)
	}
	mu.Lock()
	where = ""
	mu.Unlock()
	speak(t, dialTLS(t, secure.Addr(), p.client()))
}

func TestAPanicOfTheHandlerIsLogged(t *testing.T) {
	var out bytes.Buffer
	l, err := Listen(t.Context(), Config{
		Name: "test", Address: "127.0.0.1:0", Slots: limit.NewSlots(limit.SharesOf(1)), Log: slog.New(slog.NewTextHandler(&out, nil)),
		Fixed: func() spiffeid.ID { return spiffeid.ID{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		done <- l.Serve(context.WithoutCancel(t.Context()), func(context.Context, *Conn) { panic("planted") })
	}()
	closed(t, dialRaw(t, l.Addr()))
	_ = l.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if log := out.String(); !strings.Contains(log, "cause=planted") || !strings.Contains(log, "listen_test.go") {
		t.Errorf("the log says %q", log)
	}
}

// TestSilentConnectionIsNoFailedHandshake checks that closing the connection of a client that has
// sent nothing is not reported as a failed handshake.
func TestSilentConnectionIsNoFailedHandshake(t *testing.T) {
	p := newPKI(t)
	r := serve(t, p.withTLS)
	conn := dialRaw(t, r.Addr())
	for r.cfg.Slots.InUse() == 0 { // not yet accepted
		runtime.Gosched()
	}
	r.cut()
	closed(t, conn)
	if err := <-r.failures; !errors.Is(err, io.EOF) {
		t.Errorf("HandshakeFailed was told %v, want io.EOF", err)
	}
}
