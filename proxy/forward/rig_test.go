package forward

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/head"
)

// fakeStream is the gateway's end of a stream. The body of the request comes over a pipe,
// whose other end the test writes to and closes. What is written to the stream goes to
// events.
type fakeStream struct {
	net.Conn // the pipe; Write is that of the stream

	events chan string
}

// SetDeadline implements Stream. A pipe has no deadlines after its other end was closed.
func (s *fakeStream) SetDeadline(at time.Time) error {
	_ = s.Conn.SetDeadline(at)
	return nil
}

// SetReadDeadline implements Stream.
func (s *fakeStream) SetReadDeadline(at time.Time) error { return s.SetDeadline(at) }

// SetWriteDeadline implements Stream. Writes do not wait.
func (s *fakeStream) SetWriteDeadline(time.Time) error { return nil }

// WriteHead implements Stream.
func (s *fakeStream) WriteHead(status int, fields http.Header, end bool) error {
	text := fmt.Sprintf("HEAD %d", status)
	if end {
		text += " END"
	}
	s.events <- text + lines(fields)
	return nil
}

// Write implements Stream.
func (s *fakeStream) Write(p []byte) (int, error) {
	s.events <- "DATA " + string(p)
	return len(p), nil
}

// WriteTrailer implements Stream.
func (s *fakeStream) WriteTrailer(fields http.Header) error {
	s.events <- "TRAILER" + lines(fields)
	return nil
}

// lines returns fields in the order of their names, each behind a vertical bar. It leaves
// out Date, which the gateway adds.
func lines(fields http.Header) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		for _, value := range fields[name] {
			if name != "Date" {
				fmt.Fprintf(&b, " | %s: %s", name, value)
			}
		}
	}
	return b.String()
}

// rig is a forwarder with an origin on loopback, whose connections come to conns.
type rig struct {
	*Forwarder
	conns    chan net.Conn
	decision allowlist.Decision // allows a.example at the address of the origin
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{conns: make(chan net.Conn, 100)}
	at := netip.MustParseAddrPort("127.0.0.1:80") // the port of the destination, as if it were that of the listener
	r.decision = decisionAt(t, at.Addr())
	cfg.Dial = func(ctx context.Context, _ *allowlist.Decision) (dial.Result, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		return dial.Result{Conn: conn, Addr: at}, err
	}
	if r.Forwarder, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.conns <- conn
		}
	})
	t.Cleanup(func() {
		r.CloseIdle()
		_ = l.Close()
		accepting.Wait()
		for len(r.conns) > 0 {
			_ = (<-r.conns).Close()
		}
	})
	return r
}

// decisionAt returns a decision that allows a.example:80 at one address.
func decisionAt(t *testing.T, addr netip.Addr) allowlist.Decision {
	t.Helper()
	host, err := allowlist.ParseHostPattern("a.example")
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://td.example/a")
	pattern, err := allowlist.ParseIdentityPattern(id.String())
	if err != nil {
		t.Fatal(err)
	}
	policy, err := allowlist.Compile(allowlist.Spec{Entries: []allowlist.Entry{{Pattern: pattern, Allow: []allowlist.Rule{{
		Host: host, Ports: []allowlist.PortRange{{First: 80, Last: 80}}, Addresses: []netip.Prefix{netip.PrefixFrom(addr, 32)},
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	dest, err := allowlist.ParseDestination("a.example:80")
	if err != nil {
		t.Fatal(err)
	}
	d := policy.Decide(allowlist.Request{ID: id, Proof: allowlist.ProofX509SVID, Dest: dest, Method: "GET", Path: "/", Time: time.Now()})
	if d.Reason != allowlist.NoReason {
		t.Fatalf("the decision of the test: %v", d.Reason)
	}
	return d
}

// patience bounds every wait of these tests. No wait should last nearly as long.
const patience = 30 * time.Second

// accept returns the next connection to the origin and a reader of it.
func (r *rig) accept(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	select {
	case conn := <-r.conns:
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return conn, bufio.NewReader(conn)
	case <-time.After(patience):
		t.Fatal("no connection came to the origin")
		return nil, nil
	}
}

// exchange returns the exchange of a request, with a client that is set by the caller.
func (r *rig) exchange(t *testing.T, h *head.Head, body int64) *Exchange {
	t.Helper()
	url, err := allowlist.ParseURL(h.Target)
	if err != nil {
		t.Fatal(err)
	}
	return &Exchange{
		Decision: r.decision, Head: h, URL: url, Body: body,
		Connected: func(Upstream) error { return nil },
		Answer:    func(_ int, _ string, write func() error) error { return write() },
	}
}

// call is a request over a stream that is being forwarded.
type call struct {
	*Exchange

	stream *fakeStream
	client net.Conn      // the client's end of the body; its end is the end of the body
	done   chan struct{} // closed when the exchange has ended
	res    Result        // valid after done
}

// request prepares a request over a stream. Its fields are alternating names and values.
func (r *rig) request(t *testing.T, method, target string, body int64, fields ...string) *call {
	t.Helper()
	var list []head.Field
	for i := 0; i < len(fields); i += 2 {
		list = append(list, head.Field{Name: fields[i], Value: fields[i+1]})
	}
	h, err := head.Build(method, target, list)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	if err := far.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c := &call{Exchange: r.exchange(t, h, body), stream: &fakeStream{Conn: near, events: make(chan string, 100)}, client: far, done: make(chan struct{})}
	c.Client = c.stream
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return c
}

// start forwards the request.
func (r *rig) start(ctx context.Context, c *call) {
	go func() {
		defer close(c.done)
		c.res = r.Forward(ctx, c.Exchange)
	}()
}

// result waits for the end of the exchange.
func (c *call) result(t *testing.T) Result {
	t.Helper()
	select {
	case <-c.done:
		return c.res
	case <-time.After(patience):
		t.Fatal("the exchange has not ended")
		return Result{}
	}
}

// next returns the next event of the stream.
func (c *call) next(t *testing.T) string {
	t.Helper()
	select {
	case event := <-c.stream.events:
		return event
	case <-time.After(patience):
		t.Fatal("nothing comes to the client")
		return ""
	}
}

// answer returns what was written to the stream of an exchange that has ended, one event in
// a line. The bytes of a body stand in one line.
func (c *call) answer() string {
	var all []string
	for len(c.stream.events) > 0 {
		event := <-c.stream.events
		more, data := strings.CutPrefix(event, "DATA ")
		if last := len(all) - 1; data && last >= 0 && strings.HasPrefix(all[last], "DATA ") {
			all[last] += more
			continue
		}
		all = append(all, event)
	}
	return strings.Join(all, "\n")
}

// get forwards a GET without a body over a stream to an origin that answers with text and
// then closes its connection.
func (r *rig) get(t *testing.T, method, text string) (answer string, res Result) {
	t.Helper()
	c := r.request(t, method, "http://a.example/", 0)
	_ = c.client.Close()
	r.start(t.Context(), c)
	conn, reader := r.accept(t)
	if _, err := http.ReadRequest(reader); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	res = c.result(t)
	return c.answer(), res
}

// newPipeRig returns a forwarder whose origin is the other end of a pipe.
func newPipeRig(t *testing.T, cfg Config) (*rig, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	cfg.Dial = func(context.Context, *allowlist.Decision) (dial.Result, error) { return dial.Result{Conn: near}, nil }
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.CloseIdle()
		_, _ = near.Close(), far.Close()
	})
	return &rig{Forwarder: f, decision: *decisionFor("a")}, far
}
