package h2_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a connection whose server is the engine and whose client is a scripted peer.
type server struct {
	*h2test.Peer
	conn  *h2.Conn
	ended chan error // receives what Run returns
}

// serve starts a connection over TCP, which ends with the test at the latest. Then it has
// given back what it had borrowed.
func serve(tb testing.TB, cfg h2.Config, settings ...http2.Setting) *server {
	tb.Helper()
	client, conn := tcp(tb)
	s := serveOn(tb, cfg, conn)
	s.Peer = h2test.NewPeer(tb, client, settings...)
	return s
}

// serveOn starts the engine as the server of a connection.
func serveOn(tb testing.TB, cfg h2.Config, conn net.Conn) *server {
	tb.Helper()
	return serveLink(tb, cfg, newLink(tb, tunnel.Wrap(conn)), func() { readPreface(conn) })
}

// newLink returns a link on a connection, which is a *tunnel.Conn or TLS on one.
func newLink(tb testing.TB, conn net.Conn) *tunnel.Link {
	tb.Helper()
	link, err := tunnel.NewLink(conn)
	if err != nil {
		tb.Fatal(err)
	}
	return link
}

// readPreface reads what a client sends first.
func readPreface(conn net.Conn) {
	if _, err := io.ReadFull(conn, make([]byte, len(h2.Preface))); err != nil {
		conn.Close()
	}
}

// serveLink starts the engine as the server of a link, when begin has returned.
func serveLink(tb testing.TB, cfg h2.Config, link *tunnel.Link, begin func()) *server {
	tb.Helper()
	if cfg.Serve == nil {
		cfg.Serve = perform
	}
	s := &server{conn: h2.New(cfg, link), ended: make(chan error, 1)}
	go func() {
		begin()
		s.ended <- s.conn.Run(context.Background(), nil)
	}()
	tb.Cleanup(func() {
		s.conn.Close()
		if s.Peer != nil {
			s.Close()
		}
		s.wait(tb)
		if n := h2.Lent(); n != 0 {
			tb.Errorf("%d buffers were not given back", n)
		}
	})
	return s
}

// wait returns what Run returns.
func (s *server) wait(tb testing.TB) error {
	tb.Helper()
	select {
	case err := <-s.ended:
		s.ended <- err
		return err
	case <-time.After(h2test.Patience):
		tb.Fatal("Run does not return")
		return nil
	}
}

// tcp returns both ends of a connection over loopback.
func tcp(tb testing.TB) (client, server net.Conn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		tb.Fatal(err)
	}
	return client, server
}

// perform does with a stream what its :authority names.
func perform(s *h2.Stream, head h2.Head) func() {
	switch head.Get(":authority") {
	case "reset":
		s.Reset(http2.ErrCodeConnect)
		return nil
	case "refuse":
		_ = s.Respond([]h2.Field{{Name: ":status", Value: "403"}}, []byte("it is forbidden"))
		return nil
	case "send":
		return send(s, head)
	case "stall": // nothing is read, and nothing answered
		<-s.Context().Done()
		return nil
	}
	if err := s.WriteFields([]h2.Field{{Name: ":status", Value: "200"}}, false); err != nil {
		return nil
	}
	if head.Get(":authority") == "hold" { // the answer does not end
		return func() {
			_, _ = io.CopyBuffer(writer{io.Discard}, reader{s}, make([]byte, 64<<10))
			end := make(sleeper)
			if s.Park(end) {
				<-end
			}
		}
	}
	return func() { echo(s) }
}

// echo sends back what comes, and its end.
func echo(s *h2.Stream) {
	if _, err := io.Copy(writer{s}, reader{s}); err == nil {
		_ = s.CloseWrite()
	}
}

// reader and writer hide all other methods from io.Copy.
type (
	reader struct{ io.Reader }
	writer struct{ io.Writer }
)

// sleeper takes nothing, and is closed when it is woken.
type sleeper chan struct{}

func (sleeper) Take([]byte) int { return 0 }
func (sleeper) End() bool       { return false }
func (s sleeper) Wake()         { close(s) }
