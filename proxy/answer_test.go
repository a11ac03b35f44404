package proxy_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// hooked is a connection that calls answering when the gateway is about to write an answer.
type hooked struct {
	*net.TCPConn
	answering func()
}

func (h *hooked) SetWriteDeadline(t time.Time) error {
	err := h.TCPConn.SetWriteDeadline(t)
	h.answering()
	return err
}

// hook makes a connection of builder, and returns both of its ends and the connection that
// the door serves.
func hook(t *testing.T) (client net.Conn, server *hooked, conn *listen.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server = &hooked{TCPConn: accepted.(*net.TCPConn), answering: func() {}}
	t.Cleanup(func() { _ = server.Close() })
	return client, server, &listen.Conn{
		Conn: tunnel.Wrap(server), Listener: "test",
		Caller: listen.Caller{ID: id("builder"), Proof: allowlist.ProofListener},
	}
}

// TestTunnelForbiddenBeforeItsAnswerGetsNone ends the tunnel between its registration and
// the first byte of the 200. The caller must get no answer and no incomplete TLS record.
func TestTunnelForbiddenBeforeItsAnswerGetsNone(t *testing.T) {
	for _, name := range []string{"in clear", "over TLS"} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{})
			enforcer := g.enforcer()
			client, server, conn := hook(t)
			secure := name == "over TLS"
			c := client
			if secure {
				c = handshake(t, g, conn, client)
			}
			server.answering = func() { enforcer.put(t.Context(), nil) }
			served := make(chan struct{})
			go func() {
				defer close(served)
				g.proxy.Serve(t.Context(), conn)
				_ = conn.Close()
			}()
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := io.WriteString(c, connectTo(g.at("allowed.example"))); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(bufio.NewReader(c))
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) || len(got) > 0 {
				t.Errorf("the caller read %q, %v", got, err)
			}
			<-served
			_ = c.Close()
			r := g.next(t, audit.EventDecision)
			if r.Verdict != "deny" || r.Reason != "identity-unknown" || r.Status != 0 {
				t.Errorf("record %+v, want what ended it", r)
			}
			if left := g.rest(t); len(left) > 0 {
				t.Errorf("records too many: %+v", left)
			}
		})
	}
}

// handshake puts TLS on both ends of a connection.
func handshake(t *testing.T, g *gateway, conn *listen.Conn, client net.Conn) net.Conn {
	t.Helper()
	certificate := g.ca.issue(t, id("gateway").String())
	server := tls.Server(conn.Conn, &tls.Config{Certificates: []tls.Certificate{certificate}, SessionTicketsDisabled: true})
	conn.Conn = server
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	c := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return c
}
