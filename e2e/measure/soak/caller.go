package soak

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/e2e/site/load"
)

// patience bounds everything that a caller does.
const patience = 20 * time.Second

// caller is a client with an identity at an address of loopback.
type caller struct {
	load.Client

	target string
}

func (w *world) caller(g *gateway, identity, from string) *caller {
	return &caller{
		Client: load.Client{
			Proxy: g.address, TLS: w.configs[identity],
			Dialer: net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Control: latePort},
		},
		target: w.target(),
	}
}

// raw opens a TCP connection with a deadline.
func (c *caller) raw(ctx context.Context) (net.Conn, error) {
	conn, err := c.Dialer.DialContext(ctx, "tcp", c.Proxy)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(patience))
}

// tunnel opens a tunnel to the origin, with a deadline.
func (c *caller) tunnel(ctx context.Context) (load.Conn, error) {
	conn, err := c.Open(ctx, c.target)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(patience))
}

// light makes a light request: a tunnel that carries a KiB there and back.
func (c *caller) light(ctx context.Context) error { return c.roundTrip(ctx, 1<<10) }

// roundTrip opens a tunnel and sends size bytes through it, there and back.
func (c *caller) roundTrip(ctx context.Context, size int) error {
	conn, err := c.tunnel(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(make([]byte, size))
		sent <- err
	}()
	if _, err := io.CopyN(io.Discard, conn, int64(size)); err != nil {
		return err
	}
	return <-sent
}

// refused sends a request that must be refused with one of the statuses.
func (c *caller) refused(ctx context.Context, head string, statuses ...string) error {
	answer, conn, err := c.Ask(ctx, head)
	if conn != nil {
		defer func() { _ = conn.Close() }()
	}
	if err != nil {
		return err
	}
	for _, status := range statuses {
		if strings.HasPrefix(answer, "HTTP/1.1 "+status+" ") {
			return nil
		}
	}
	return fmt.Errorf("a hostile request is answered %q, want %v", answer, statuses)
}

// attacks returns the attacks of the hostile identity. Each is over when it returns.
func (c *caller) attacks() []func(ctx context.Context) error {
	return []func(context.Context) error{
		func(ctx context.Context) error { return c.refused(ctx, load.Connect("evil.test:443"), "403") },
		func(ctx context.Context) error { return c.refused(ctx, load.Connect("169.254.169.254:80"), "403") },
		func(ctx context.Context) error { return c.refused(ctx, load.Connect("0x7f.1:80"), "400") },
		func(ctx context.Context) error {
			return c.refused(ctx, "GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", "400")
		},
		func(ctx context.Context) error {
			return c.refused(ctx, load.Connect("evil.test:443")+load.Connect(c.target), "403")
		},
		func(ctx context.Context) error {
			return c.refused(ctx, "CONNECT a:1 HTTP/1.1\r\nX: "+strings.Repeat("a", 70<<10)+"\r\n\r\n", "431")
		},
		c.noise, c.halfHello, c.halfHead, c.reset, c.fronting,
	}
}

// noise sends random bytes to a TLS listener.
func (c *caller) noise(ctx context.Context) error {
	conn, err := c.raw(ctx)
	if err != nil {
		return err
	}
	b := make([]byte, 64+rand.IntN(1024))
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	_, _ = conn.Write(b)
	return conn.Close()
}

// halfHello leaves a handshake incomplete.
func (c *caller) halfHello(ctx context.Context) error {
	conn, err := c.raw(ctx)
	if err != nil {
		return err
	}
	_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
	if rand.IntN(8) == 0 { // waits until the gateway closes the connection
		_, _ = io.Copy(io.Discard, conn)
	}
	return conn.Close()
}

// halfHead leaves a request incomplete.
func (c *caller) halfHead(ctx context.Context) error {
	conn, err := c.Dial(ctx)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, _ = io.WriteString(conn, "CONNECT "+c.target+" HTTP/1.1\r\nHost: ")
	if rand.IntN(8) == 0 {
		_, _ = io.Copy(io.Discard, conn)
	}
	return conn.Close()
}

// reset resets a tunnel while it carries bytes.
func (c *caller) reset(ctx context.Context) error {
	answer, conn, err := c.Ask(ctx, load.Connect(c.target)+strings.Repeat("x", 10<<10))
	if err != nil || !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
		return fmt.Errorf("a good request is answered %q, %w", answer, err)
	}
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return conn.Close()
	}
	raw, ok := secure.NetConn().(*net.TCPConn)
	if !ok {
		return conn.Close()
	}
	if err := raw.SetLinger(0); err != nil {
		return err
	}
	return raw.Close()
}

// fronting sends another name in the tunnel's ClientHello than in the CONNECT.
func (c *caller) fronting(ctx context.Context) error {
	conn, err := c.tunnel(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	inner := tls.Client(conn, &tls.Config{ServerName: "fronted.example", MinVersion: tls.VersionTLS13})
	if err := inner.HandshakeContext(ctx); err == nil || !strings.Contains(err.Error(), "access denied") {
		return fmt.Errorf("a handshake for another name ends with %w", err)
	}
	return nil
}
