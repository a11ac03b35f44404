// Package caller is a caller of a gateway: it opens a tunnel by HTTP/1.1 or HTTP/2, or
// looks a name up over TLS. The command demo checks its gateway with it.
//
//	c := caller.Caller{Gateway: addr, Roots: roots, Certificate: &svid}
//	answer, err := c.Fetch(ctx, "origin.example:443", want)
package caller

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Caller makes a new connection to a gateway for each question.
type Caller struct {
	// Gateway is the address of the listener.
	Gateway netip.AddrPort
	// Roots are the authorities of the gateway and of origins.
	Roots *x509.CertPool
	// Certificate is the SVID of the caller; nil means that it presents none.
	Certificate *tls.Certificate
}

// dial makes a TLS connection to the gateway, which ctx closes. protocols are offered in
// ALPN.
func (c *Caller) dial(ctx context.Context, protocols ...string) (conn net.Conn, done func(), err error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.Roots, ServerName: "localhost", NextProtos: protocols}
	if c.Certificate != nil {
		cfg.Certificates = []tls.Certificate{*c.Certificate}
	}
	conn, err = (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", c.Gateway.String())
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, func() {
		stop()
		_ = conn.Close()
	}, nil
}

// Fetch opens a tunnel to an origin that speaks TLS, HOST:PORT, by HTTP/1.1. It returns the
// status and the reason phrase of the gateway's answer. If the tunnel is open, it fetches
// the page / from the origin, which must be want.
func (c *Caller) Fetch(ctx context.Context, target, want string) (answer string, err error) {
	conn, done, err := c.dial(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusOK {
		err = c.fetch(ctx, conn, target, want)
	}
	return resp.Status, err
}

// FetchH2 does by HTTP/2 what Fetch does. The answer is the status alone.
func (c *Caller) FetchH2(ctx context.Context, target, want string) (answer string, err error) {
	conn, done, err := c.dial(ctx, "h2")
	if err != nil {
		return "", err
	}
	defer done()
	link, err := tunnel.NewLink(conn)
	if err != nil {
		return "", err
	}
	session := h2.New(h2.Config{Client: true}, link)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = session.Run(ctx, nil) // its error is also that of the stream
	}()
	defer func() {
		session.Close()
		<-ended
	}()
	stream, err := session.Open(ctx, []h2.Field{{Name: ":method", Value: http.MethodConnect}, {Name: ":authority", Value: target}}, false)
	if err != nil {
		return "", err
	}
	defer func() { _ = stream.Close() }()
	head, err := stream.Answer(ctx)
	if err != nil {
		return "", err
	}
	if answer = head.Get(":status"); answer == "200" {
		err = c.fetch(ctx, stream, target, want)
	}
	return answer, err
}

// fetch fetches the page / from an origin through a tunnel.
func (c *Caller) fetch(ctx context.Context, tunnel net.Conn, target, want string) error {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	inner := tls.Client(tunnel, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.Roots, ServerName: host})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/", nil)
	if err != nil {
		return err
	}
	if err := req.Write(inner); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(inner), req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return err
	}
	if string(body) != want {
		return fmt.Errorf("the origin answered %q, want %q", body, want)
	}
	return nil
}

// LookUp queries the A records of a name over TLS (RFC 7858, RFC 1035), and returns the code
// of the answer as dig prints it.
func (c *Caller) LookUp(ctx context.Context, host string) (answer string, err error) {
	conn, done, err := c.dial(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	query := []byte{0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0} // length, id 1, RD, one question
	for label := range strings.SplitSeq(host, ".") {
		query = append(query, byte(len(label))) //nolint:gosec // G115: a label has at most 63 bytes
		query = append(query, label...)
	}
	query = append(query, 0, 0, 1, 0, 1) // the root, A, IN
	query[1] = byte(len(query) - 2)      //nolint:gosec // G115: the name is short
	if _, err := conn.Write(query); err != nil {
		return "", err
	}
	var head [2 + 12]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return "", err
	}
	switch code := head[5] & 0xf; code {
	case 0:
		return "status: NOERROR", nil
	case 3:
		return "status: NXDOMAIN", nil
	default:
		return fmt.Sprintf("status: %d", code), nil
	}
}
