package front_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests. No wait should last nearly as long.
const patience = 30 * time.Second

// handler answers requests as a test needs. A front works without policy, registry,
// resolver and dialler.
type handler func(*front.Request) front.Answer

func (h handler) Handle(_ context.Context, r *front.Request) front.Answer { return h(r) }

// queryHandler is a handler whose listener takes queries for gateway.example.
type queryHandler struct{ handler }

// refusing returns a handler that refuses every request: with the front's reason if it has
// one, and with the given one otherwise.
func refusing(reason allowlist.Reason) handler {
	return func(r *front.Request) front.Answer {
		if r.Reason != allowlist.NoReason {
			return refused(r.Reason)
		}
		return refused(reason)
	}
}

func refused(reason allowlist.Reason) front.Answer {
	return front.Answer{Refusal: refusal.Refusal{Reason: reason}}
}

// site is a front that serves real connections until the test ends.
type site struct {
	addr  string
	ended chan ending // receives the ending of every connection when it is over
}

// ending describes how a connection ended.
type ending struct {
	tunnel   bool // a tunnel was opened, and has ended
	panicked any  // what Serve panicked with; nil if it did not
	cut      int  // number of calls of Cut
	aborted  int  // number of calls of Abort
}

// server is a front.
type server interface {
	Serve(ctx context.Context, conn front.Conn, handler front.Handler) (run func())
}

// serve starts a site of HTTP. The front uses the result of wrap as the connection, if wrap is
// not nil.
func serve(t *testing.T, cfg front.Config, h front.Handler, wrap func(net.Conn) net.Conn) *site {
	t.Helper()
	return serveBy(t, front.NewH1(cfg), h, wrap)
}

// serveBy starts a site with a front.
func serveBy(t *testing.T, by server, h front.Handler, wrap func(net.Conn) net.Conn) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{addr: l.Addr().String(), ended: make(chan ending, 100)}
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				s.ended <- serveOne(ctx, by, conn, h, wrap)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		stop()
		serving.Wait()
	})
	return s
}

// serveOne serves one connection as a listener does.
func serveOne(ctx context.Context, by server, conn net.Conn, h front.Handler, wrap func(net.Conn) net.Conn) (e ending) {
	defer func() { _ = conn.Close() }()
	defer func() { e.panicked = recover() }()
	c := front.Conn{Conn: conn, Cut: func() { e.cut++; _ = conn.Close() }, Abort: func() {
		e.aborted++
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}}
	if _, ok := h.(queryHandler); ok {
		c.IsQueryAuthority = func(authority string) bool { return authority == "gateway.example" }
	}
	if wrap != nil {
		c.Conn = wrap(conn)
	}
	if run := by.Serve(ctx, c, h); run != nil {
		run()
		e.tunnel = true
	}
	return e
}

// end waits for the next connection that has ended.
func (s *site) end(t *testing.T) ending {
	t.Helper()
	select {
	case e := <-s.ended:
		return e
	case <-time.After(patience):
		t.Fatal("no connection ends")
		return ending{}
	}
}

// client is the client's end of a connection.
type client struct {
	net.Conn
	reader *bufio.Reader
}

func (s *site) dial(t *testing.T) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return newClient(conn)
}

func newClient(conn net.Conn) *client { return &client{conn, bufio.NewReader(conn)} }

func (c *client) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// answer is an answer that a client has read.
type answer struct {
	*http.Response
	body string
}

// reason returns the parameter reason of Proxy-Status.
func (a *answer) reason() string {
	_, rest, _ := strings.Cut(a.Header.Get("Proxy-Status"), "; reason=")
	token, _, _ := strings.Cut(rest, ";")
	return token
}

// ask sends a request and reads its answer.
func (c *client) ask(t *testing.T, text string) *answer {
	t.Helper()
	c.send(t, text)
	method, _, _ := strings.Cut(text, " ")
	return c.read(t, method)
}

// read reads the answer to a request with the given method.
func (c *client) read(t *testing.T, method string) *answer {
	t.Helper()
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer to %s: %v", method, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &answer{resp, string(body)}
}

// gone checks that no more bytes come and that the connection is closed in order.
func (c *client) gone(t *testing.T) {
	t.Helper()
	if rest, err := io.ReadAll(c.reader); err != nil || len(rest) > 0 {
		t.Errorf("after the last answer: %q, %v", rest, err)
	}
}

// outcome holds the errors that Done was called with.
type outcome struct {
	mu   sync.Mutex
	told []error
}

func (o *outcome) done(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = append(o.told, err)
}

// check checks that Done was called once, with nil if and only if written is true.
func (o *outcome) check(t *testing.T, what string, written bool) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.told) != 1 || (o.told[0] == nil) != written {
		t.Errorf("%s: Done was called with %v, want one call, written: %v", what, o.told, written)
	}
}

// errPanic is the value that a broken connection panics with.
var errPanic = errors.New("the connection of this test panics")

// broken is a connection whose writes panic.
type broken struct{ net.Conn }

func (broken) Write([]byte) (int, error) { panic(errPanic) }

const (
	connect = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"
	plain   = "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"
)
