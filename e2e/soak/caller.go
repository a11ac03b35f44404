package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

// patience bounds everything that a caller does.
const patience = 20 * time.Second

// caller is somebody with an identity at an address of loopback.
type caller struct {
	gateway string
	from    net.Addr
	config  *tls.Config
	target  string
}

func (s *site) caller(g *gateway, identity, from string) *caller {
	return &caller{gateway: g.address, from: &net.TCPAddr{IP: net.ParseIP(from)}, config: s.configs[identity], target: s.target()}
}

func (c *caller) dial(ctx context.Context) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: c.from, Timeout: patience, Control: latePort}
	conn, err := d.DialContext(ctx, "tcp", c.gateway)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("a connection of type %T", conn)
	}
	return tcp, nil
}

func (c *caller) secure(ctx context.Context) (*tls.Conn, error) {
	raw, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, c.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// ask sends bytes on a connection of its own and reads the first line of what
// comes back.
func (c *caller) ask(ctx context.Context, head string) (line string, conn *tls.Conn, err error) {
	conn, err = c.secure(ctx)
	if err != nil {
		return "", nil, err
	}
	if _, err := io.WriteString(conn, head); err != nil {
		return "", conn, err
	}
	buf := make([]byte, 4<<10)
	n, err := conn.Read(buf)
	line, _, _ = strings.Cut(string(buf[:n]), "\r\n")
	return line, conn, err
}

// connect is the head of a good request.
func connect(target string) string {
	return "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n\r\n"
}

// exchange opens a tunnel and sends size bytes through it and back.
func (c *caller) exchange(ctx context.Context, size int) error {
	line, conn, err := c.ask(ctx, connect(c.target))
	if conn != nil {
		defer func() { _ = conn.Close() }()
	}
	if err == nil && !strings.HasPrefix(line, "HTTP/1.1 200 ") {
		err = fmt.Errorf("a good request is answered %q", line)
	}
	if err != nil {
		return err
	}
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

// refused asks for what must be refused with one of the statuses.
func (c *caller) refused(ctx context.Context, head string, statuses ...string) error {
	line, conn, err := c.ask(ctx, head)
	if conn != nil {
		defer func() { _ = conn.Close() }()
	}
	if err != nil {
		return err
	}
	for _, status := range statuses {
		if strings.HasPrefix(line, "HTTP/1.1 "+status+" ") {
			return nil
		}
	}
	return fmt.Errorf("a hostile request is answered %q, want %v", line, statuses)
}

// attacks are what the hostile identity does; each is over when it returns.
func (c *caller) attacks() []func(ctx context.Context) error {
	return []func(context.Context) error{
		func(ctx context.Context) error { return c.refused(ctx, connect("evil.test:443"), "403") },
		func(ctx context.Context) error { return c.refused(ctx, connect("169.254.169.254:80"), "403") },
		func(ctx context.Context) error { return c.refused(ctx, connect("0x7f.1:80"), "400") },
		func(ctx context.Context) error {
			return c.refused(ctx, "GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", "400")
		},
		func(ctx context.Context) error {
			return c.refused(ctx, connect("evil.test:443")+connect(c.target), "403")
		},
		func(ctx context.Context) error {
			return c.refused(ctx, "CONNECT a:1 HTTP/1.1\r\nX: "+strings.Repeat("a", 70<<10)+"\r\n\r\n", "431")
		},
		c.noise, c.halfHello, c.halfHead, c.reset, c.fronting,
	}
}

// noise sends random bytes where TLS is spoken.
func (c *caller) noise(ctx context.Context) error {
	conn, err := c.dial(ctx)
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

// halfHello leaves a handshake half-way.
func (c *caller) halfHello(ctx context.Context) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
	if rand.IntN(8) == 0 { // until the gateway loses its patience
		_, _ = io.Copy(io.Discard, conn)
	}
	return conn.Close()
}

// halfHead leaves a request half-way.
func (c *caller) halfHead(ctx context.Context) error {
	conn, err := c.secure(ctx)
	if err != nil {
		return err
	}
	_, _ = io.WriteString(conn, "CONNECT "+c.target+" HTTP/1.1\r\nHost: ")
	if rand.IntN(8) == 0 {
		_, _ = io.Copy(io.Discard, conn)
	}
	return conn.Close()
}

// reset resets a tunnel in the middle of its bytes.
func (c *caller) reset(ctx context.Context) error {
	line, conn, err := c.ask(ctx, connect(c.target)+strings.Repeat("x", 10<<10))
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 200 ") {
		return fmt.Errorf("a good request is answered %q, %w", line, err)
	}
	raw, ok := conn.NetConn().(*net.TCPConn)
	if !ok {
		return conn.Close()
	}
	if err := raw.SetLinger(0); err != nil {
		return err
	}
	return raw.Close()
}

// fronting says another name inside the tunnel than to the gateway.
func (c *caller) fronting(ctx context.Context) error {
	line, conn, err := c.ask(ctx, connect(c.target))
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 200 ") {
		return fmt.Errorf("a good request is answered %q, %w", line, err)
	}
	defer func() { _ = conn.Close() }()
	inner := tls.Client(conn, &tls.Config{ServerName: "fronted.example", MinVersion: tls.VersionTLS13})
	if err := inner.HandshakeContext(ctx); err == nil || !strings.Contains(err.Error(), "access denied") {
		return fmt.Errorf("a handshake for another name ends with %w", err)
	}
	return nil
}
