package listen

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

// clientOf returns a TLS client without a certificate on a connection.
func clientOf(t *testing.T, raw net.Conn, p *pki) *tls.Conn {
	t.Helper()
	conn := tls.Client(raw, p.client())
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestConnectionsOfASource checks that an address over its limit is served and Limited,
// and far over its limit is closed, and that the header of a proxy says which address
// that is.
func TestConnectionsOfASource(t *testing.T) {
	r, refusals := behind(t, "127.0.0.0/8", func(_ *rig, cfg *Config) {
		cfg.Sources = limit.NewSources(limit.Config{Connections: 8})
	})
	var held []net.Conn
	for n := range 13 { // the refused ones leave the others open
		conn := dialRaw(t, r.Addr())
		send(t, conn, v1Header)
		if n >= 9 {
			closed(t, conn)
			if got := <-refusals; got.why != allowlist.RateLimited || got.client.Addr().String() != "198.51.100.7" || !strings.Contains(got.detail, "connections") {
				t.Errorf("refused %+v", got)
			}
			continue
		}
		held = append(held, conn)
		if c := <-r.conns; c.Caller.Limited != (n == 8) {
			t.Errorf("connection %d is limited: %t", n, c.Caller.Limited)
		}
	}
	other := dialRaw(t, r.Addr())
	send(t, other, strings.Replace(v1Header, "198.51.100.7", "198.51.100.8", 1))
	if c := <-r.conns; c.Caller.Limited {
		t.Error("another address is limited")
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	for r.handling.Load() > 1 { // only the connection of the other address is left
		runtime.Gosched()
	}
	for limited := true; limited; { // the count falls a moment after the handler has returned
		conn := dialRaw(t, r.Addr())
		send(t, conn, v1Header)
		c := <-r.conns
		limited = c.Caller.Limited
		_ = conn.Close()
	}
}

// TestHandshakesOfASource checks that handshakes of an address over its limit are
// refused as rate-limited.
func TestHandshakesOfASource(t *testing.T) {
	p := newPKI(t)
	refusals := make(chan refusal, 100)
	r := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Sources = limit.NewSources(limit.Config{Handshakes: 3})
		cfg.Refused = func(_ context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
			refusals <- refusal{client, why, detail}
		}
	})
	for range 1000 {
		conn := tls.Client(dialRaw(t, r.Addr()), p.client())
		if conn.HandshakeContext(t.Context()) == nil {
			_ = conn.Close()
			<-r.conns
			continue
		}
		if got := <-refusals; got.why != allowlist.RateLimited || !strings.Contains(got.detail, "handshakes") {
			t.Errorf("refused %+v", got)
		}
		return
	}
	t.Error("a thousand handshakes were made at once")
}

// TestHalfOpenHandshakes checks that the memory of ten thousand half-open handshakes is
// bounded, that each is closed in time, and that other callers do not wait for them.
// The clients are in this process, so the figure includes them.
func TestHalfOpenHandshakes(t *testing.T) {
	const count = 2000 // fewer than ten thousand, because descriptors are scarce here; the figure is per connection
	p := newPKI(t)
	r := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Slots, cfg.HandshakeTimeout = limit.NewSlots(limit.SharesOf(64*count)), 3*time.Second
		cfg.Sources = limit.NewSources(limit.Config{Handshakes: 2 * count})
	})
	before := memory()
	for range count {
		send(t, dialRaw(t, r.Addr()), "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") // a record that is never complete
	}
	conn := dialTLS(t, r.Addr(), p.client())
	speak(t, conn)
	if after := memory(); after > before+24<<10*count {
		t.Errorf("a half-open handshake holds %d bytes", (after-before)/count)
	}
	for range count {
		select {
		case <-r.failures:
		case <-time.After(30 * time.Second):
			t.Fatal("half-open handshakes are not cut")
		}
	}
}

// memory returns the bytes in use by heap and stacks.
func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
