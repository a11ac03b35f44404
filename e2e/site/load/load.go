// Package load has clients of a CONNECT proxy, for tests and measurements. They speak
// HTTP/1.1 (Client) or HTTP/2 (Session, and Framed with the frames of common clients).
//
// Every connection over TLS does a full handshake with the key exchanges of the Client's
// configuration; no session is resumed. A tunnel that does not do what a correct
// proxy does is an error, and not just a slow or a fast tunnel.
package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// timeout bounds every operation except a bulk transfer.
const timeout = 30 * time.Second

// A Client opens tunnels through one proxy.
type Client struct {
	// Proxy is the address of the proxy. If it is "", every target is the address of a
	// forwarder to one origin, and no CONNECT is sent.
	Proxy string
	// TLS is the configuration of the connection to the proxy; nil means no TLS.
	TLS *tls.Config
	// Dialer connects to the proxy. The zero value lets the system choose the local
	// address.
	Dialer net.Dialer
}

// Conn is a tunnel whose sending direction may be closed alone.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Dial connects to the proxy, and completes the handshake if TLS is set.
func (c *Client) Dial(ctx context.Context) (Conn, error) { return c.connect(ctx, c.Proxy) }

func (c *Client) connect(ctx context.Context, address string) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := c.Dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := raw.(*net.TCPConn); ok && c.TLS == nil {
		return tcp, nil
	}
	conn := tls.Client(raw, c.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake with %s: %w", address, err)
	}
	return conn, nil
}

// Greet completes a handshake, and closes the connection without a request.
func (c *Client) Greet(ctx context.Context) error {
	conn, err := c.Dial(ctx)
	if err != nil {
		return err
	}
	return finish(conn)
}

// Ask sends a head, or any text, on a new connection, and returns the head of the answer.
// Bytes that came with it are lost. The caller closes the connection, which has a
// deadline of 30 s; it is nil if Dial failed.
func (c *Client) Ask(ctx context.Context, head string) (answer string, conn Conn, err error) {
	if conn, err = c.Dial(ctx); err != nil {
		return "", nil, err
	}
	answer, _, err = ask(conn, head)
	return answer, conn, err
}

// Connect returns the head of a valid CONNECT.
func Connect(target string) string {
	return "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n\r\n"
}

// Open opens a tunnel to the target, HOST:PORT as the proxy resolves it.
func (c *Client) Open(ctx context.Context, target string) (Conn, error) {
	if c.Proxy == "" {
		return c.connect(ctx, target)
	}
	conn, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	head, rest, err := ask(conn, Connect(target))
	switch {
	case err != nil:
	case !strings.HasPrefix(head, "HTTP/1.1 200 "):
		err = fmt.Errorf("answer of %s to CONNECT %s: %q", c.Proxy, target, head)
	case len(rest) > 0:
		err = fmt.Errorf("%d bytes of %s after its answer", len(rest), c.Proxy)
	default:
		return conn, conn.SetDeadline(time.Time{})
	}
	_ = conn.Close()
	return nil, err
}

// Opener opens tunnels to a target, HOST:PORT as the proxy resolves it: a Client, each on a
// connection of its own, or a Session, all on one.
type Opener interface {
	Open(ctx context.Context, target string) (Conn, error)
}

// Exchange opens a tunnel to an echo, sends size bytes, waits until they come back, and
// closes the tunnel.
func Exchange(ctx context.Context, o Opener, target string, size int) error {
	conn, err := o.Open(ctx, target)
	if err != nil {
		return err
	}
	if err := Echo(conn, make([]byte, size)); err != nil {
		_ = conn.Close()
		return err
	}
	return finish(conn)
}

// Denied sends a CONNECT and reads the whole answer, which must be a 403.
func (c *Client) Denied(ctx context.Context, target string) error {
	head, conn, err := c.Ask(ctx, Connect(target))
	if conn == nil {
		return err
	}
	if err == nil && !strings.HasPrefix(head, "HTTP/1.1 403 ") {
		err = fmt.Errorf("answer of %s to CONNECT %s: %q, want a 403", c.Proxy, target, head)
	}
	if err != nil {
		_ = conn.Close()
		return err
	}
	return finish(conn)
}

// ask sends a head. It returns the head of the answer and the bytes that came with it.
func ask(conn net.Conn, sent string) (head string, rest []byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", nil, err
	}
	if _, err := io.WriteString(conn, sent); err != nil {
		return "", nil, err
	}
	buf := make([]byte, 4<<10)
	for n := 0; n < len(buf); {
		m, err := conn.Read(buf[n:])
		n += m
		if end := bytes.Index(buf[:n], []byte("\r\n\r\n")); end >= 0 {
			return string(buf[:end]), buf[end+4 : n], nil
		}
		if err != nil {
			return "", nil, fmt.Errorf("reading the answer: %w", err)
		}
	}
	return "", nil, errors.New("the head of the answer is too long")
}

// finish closes the sending direction, reads until the other one ends, and closes the
// connection. When it returns, the proxy has done its work for the connection.
func finish(conn Conn) error {
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, conn)
	return err
}

// Echo writes p, and reads as many bytes into it.
func Echo(conn net.Conn, p []byte) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write(p); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, p)
	return err
}

// chunk is the size of a write and a read of a bulk transfer, in bytes.
const chunk = 64 << 10

// Down reads size bytes from a source through a tunnel.
func Down(ctx context.Context, o Opener, target string, size int64) error {
	conn, err := o.Open(ctx, target)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(size))); err != nil {
		return err
	}
	var got int64
	for buf := make([]byte, chunk); ; {
		n, err := conn.Read(buf)
		got += int64(n)
		if errors.Is(err, io.EOF) && got == size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got, size, err)
		}
	}
}

// Up writes size bytes to a sink through a tunnel, and checks that all have arrived.
func Up(ctx context.Context, o Opener, target string, size int64) error {
	conn, err := o.Open(ctx, target)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	count := binary.BigEndian.AppendUint64(nil, uint64(size))
	if _, err := conn.Write(count); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for left := size; left > 0; {
		n, err := conn.Write(buf[:min(left, chunk)])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	answer := make([]byte, len(count))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("reading the sink's answer: %w", err)
	}
	if !bytes.Equal(answer, count) {
		return fmt.Errorf("the sink answered % x, want % x", answer, count)
	}
	return nil
}
