package hostile

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/proxy/audit"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// open opens a tunnel for builder and returns both of its ends.
func (g *gateway) open(tb testing.TB) (*caller, *net.TCPConn) {
	tb.Helper()
	c := g.call(tb, "builder")
	if got := c.ask(tb, g.fill(connectTo("allowed.example:PORT"))); got.status != 200 {
		tb.Fatalf("answered %s", got.phrase)
	}
	g.next(tb, audit.EventDecision)
	return c, g.origin.next(tb)
}

func tunnelRows() []row {
	connect := connectTo("allowed.example:PORT")
	return []row{
		{"E1", "bytes in the segment of the CONNECT", "they arrive first, and in order", []scenario{
			carries("one byte", connect, "e"),
			carries("a line", connect, "early, "),
			carries("40 kB", connect, strings.Repeat("early", 8<<10)),
		}},
		{"E2", "the request and the first bytes of the tunnel, each byte in a segment of its own", "as in one segment", []scenario{{name: "every byte a segment", run: byteByByte}}},
		{"E3", "one side closes its sending direction", "the other direction drains", []scenario{
			{name: "the caller, and the origin's answer still arrives", run: halfClosedByCaller},
			{name: "the origin, and the caller's bytes still arrive", run: halfClosedByOrigin},
		}},
		{"E4", "a reset by either side, again and again", "the tunnel ends, and its slot is released exactly once", []scenario{{name: "more tunnels than slots", only: h1, run: resets}}},
		{"E5", "a tunnel without any bytes", "closed after the idle time", []scenario{{name: "idle", run: idles}}},
		{"E6", "an origin that does not read, a caller that does not read", "the gateway reads no more than the sockets hold", []scenario{
			{name: "an origin that does not read", run: func(t *testing.T, g *gateway) {
				c, o := g.open(t)
				g.stalls(t, c, c.Conn, o)
			}},
			{name: "a caller that does not read", run: func(t *testing.T, g *gateway) {
				c, o := g.open(t)
				g.stalls(t, c, o, o)
			}},
		}},
	}
}

func byteByByte(t *testing.T, g *gateway) {
	c := g.call(t, "builder")
	text := g.fill(connectTo("allowed.example:PORT")) + "early"
	for i := range len(text) {
		c.send(t, text[i:i+1])
	}
	if got := c.answer(t); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	closeWrite(t, c.Conn)
	o := g.origin.next(t)
	if got := readAll(t, o); got != "early" {
		t.Errorf("the origin got %q", got)
	}
	_ = o.Close()
	c.ended(t)
	g.next(t, audit.EventTunnelClose)
}

func halfClosedByCaller(t *testing.T, g *gateway) {
	c, o := g.open(t)
	c.send(t, "question")
	closeWrite(t, c.Conn)
	if got := readAll(t, o); got != "question" {
		t.Errorf("the origin got %q", got)
	}
	_, _ = io.WriteString(o, "answer")
	_ = o.Close()
	if got := readAll(t, c.reader); got != "answer" {
		t.Errorf("the caller got %q", got)
	}
	_ = c.Close()
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "client" || r.Up != 8 || r.Down != 6 {
		t.Errorf("record %+v", r)
	}
}

func halfClosedByOrigin(t *testing.T, g *gateway) {
	c, o := g.open(t)
	_, _ = io.WriteString(o, "bye")
	closeWrite(t, o)
	if got := readAll(t, c.reader); got != "bye" {
		t.Errorf("the caller got %q", got)
	}
	c.send(t, "last words")
	_ = c.Close()
	if got := readAll(t, o); got != "last words" {
		t.Errorf("the origin got %q", got)
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "upstream" || r.Up != 10 || r.Down != 3 {
		t.Errorf("record %+v", r)
	}
}

// resets opens more tunnels than there are slots, one after the other, and then as many
// as there are slots. It fails if a slot is not released, or is released twice.
func resets(t *testing.T, g *gateway) {
	const slots = 4 // the share of one listener whose callers have one identity
	g = g.another(t, options{config: gw.Config{MaxConnections: 4 * slots}})
	for i := range 3 * slots {
		c := g.openSoon(t)
		o := g.origin.next(t)
		if i%2 == 0 {
			c.reset()
		} else {
			newCaller(o).reset()
		}
		g.next(t, audit.EventTunnelClose)
		_ = c.Close()
		_ = o.Close()
	}
	var held []net.Conn
	for range slots {
		held = append(held, g.openSoon(t), g.origin.next(t))
	}
	if got := g.busySoon(t); got.status != 503 {
		t.Errorf("one tunnel more than there are slots is answered %s", got.phrase)
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	for range slots {
		g.next(t, audit.EventTunnelClose)
	}
}

// openSoon opens a tunnel as soon as there is a slot. A slot may be released a moment
// after the record of its tunnel's end.
func (g *gateway) openSoon(t *testing.T) *caller {
	t.Helper()
	c, _ := g.soon(t, g.callPlain, "")
	return c
}

// busySoon sends requests until one is answered with busy, and returns that answer.
func (g *gateway) busySoon(t *testing.T) answer {
	t.Helper()
	_, got := g.soon(t, g.callPlain, "busy")
	return got
}

// soon sends requests until one has the answer with the reason, and reads their records.
// A request may get no answer, because the answer busy needs a slot, too.
func (g *gateway) soon(t *testing.T, call func(testing.TB) *caller, reason string) (*caller, answer) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		c := call(t)
		_, _ = io.WriteString(c, g.fill(connectTo("allowed.example:PORT")))
		got, err := c.tryAnswer()
		if err != nil || got.reason() != reason {
			if err == nil && got.reason() != "busy" {
				t.Fatalf("answered %s", got.phrase)
			}
			continue
		}
		for g.next(t, audit.EventDecision).Reason != reason { // skips the records of requests that were busy before
		}
		return c, got
	}
	t.Fatalf("no request is ever answered %q", reason)
	return nil, answer{}
}

func idles(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{Tunnel: tunnel.Config{Idle: 100 * time.Millisecond}}})
	c, o := g.open(t)
	if got := readAll(t, o); got != "" {
		t.Errorf("the origin got %q", got)
	}
	c.gone(t)
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "idle" {
		t.Errorf("record %+v", r)
	}
}

// stalls writes into one end of a tunnel whose other end is not read, until the write
// does not go on.
func (g *gateway) stalls(t *testing.T, c *caller, into net.Conn, o *net.TCPConn) {
	t.Helper()
	const most = 64 << 20 // more than the sockets of both connections hold
	chunk, sent := make([]byte, 256<<10), 0
	for sent < most {
		_ = into.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := into.Write(chunk)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if sent >= most {
		t.Errorf("%d bytes went into a tunnel whose other end is not read", sent)
	}
	newCaller(o).reset()
	c.reset()
	g.next(t, audit.EventTunnelClose)
}
