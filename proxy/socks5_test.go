package proxy_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// socksGreeting offers to connect without authentication, and socksSelected accepts it.
const (
	socksGreeting = "\x05\x01\x00"
	socksSelected = "\x05\x00"
)

// socksReply returns the reply with a code.
func socksReply(code byte) string { return string([]byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0}) }

// socksTo returns the request with a command for a name.
func socksTo(command byte, name string, port uint16) string {
	b := append([]byte{5, command, 0, 3, byte(len(name))}, name...)
	return string(binary.BigEndian.AppendUint16(b, port))
}

// callSOCKS5 connects to the listener for SOCKS5, as builder.
func (g *gateway) callSOCKS5(t *testing.T) *caller {
	t.Helper()
	conn := g.connect(t, g.socks5)
	return &caller{Conn: conn, reader: bufio.NewReader(conn)}
}

// openSOCKS5 opens a tunnel by SOCKS5, with early bytes behind the request, and returns its
// two ends and the record of the decision.
func (g *gateway) openSOCKS5(t *testing.T, early string) (*caller, *net.TCPConn, record) {
	t.Helper()
	c := g.callSOCKS5(t)
	c.send(t, socksGreeting+socksTo(1, "allowed.example", g.origin.port)+early)
	want := socksSelected + socksReply(0)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c.reader, got); err != nil || string(got) != want {
		t.Fatalf("answered %q, %v, want %q", got, err, want)
	}
	return c, g.origin.next(t), g.next(t, audit.EventDecision)
}

// TestSOCKS5Tunnel checks the records of a tunnel by SOCKS5, its early bytes, and that each
// end may close its direction first.
func TestSOCKS5Tunnel(t *testing.T) {
	for _, first := range []string{"client", "upstream"} {
		t.Run(first, func(t *testing.T) {
			g := newGateway(t, options{socks5: true})
			c, origin, r := g.openSOCKS5(t, "early, ")
			want := record{
				Event: "decision", ID: r.ID, Listener: "socks5", Protocol: "socks5", Wire: "tcp", Identity: id("builder").String(),
				Host: "allowed.example", Port: g.origin.port, Method: "CONNECT", Address: g.at("127.0.0.1"), Verdict: "allow",
				Status: 200, Policy: "one", Generation: r.Generation, TraceID: r.TraceID, SpanID: r.SpanID,
			}
			if diff := cmp.Diff(want, r); diff != "" || r.ID == "" || r.TraceID == "" {
				t.Errorf("record %+v (-want +got):\n%s", r, diff)
			}
			c.send(t, "question")
			if _, err := io.WriteString(origin, "answer"); err != nil {
				t.Fatal(err)
			}
			fromOrigin := func() {
				closeWrite(t, origin)
				if got := readAll(t, c.reader); got != "answer" {
					t.Errorf("the client got %q", got)
				}
			}
			fromClient := func() {
				closeWrite(t, c.Conn)
				if got := readAll(t, origin); got != "early, question" {
					t.Errorf("the origin got %q", got)
				}
			}
			if first == "client" {
				fromClient()
				fromOrigin()
			} else {
				fromOrigin()
				fromClient()
			}
			end := g.next(t, audit.EventTunnelClose)
			if end.ID != r.ID || end.Protocol != "socks5" || end.Wire != "tcp" || end.CloseReason != first || end.Up != 15 || end.Down != 6 {
				t.Errorf("record %+v", end)
			}
			g.emptied(t)
			if left := g.rest(t); len(left) > 0 {
				t.Errorf("records too many: %+v", left)
			}
			if name := g.spans.GetSpans()[0].Name; name != "socks5" {
				t.Errorf("the span is %q", name)
			}
		})
	}
}

// TestSOCKS5IsRefused checks the reply and the record of requests that open no tunnel.
func TestSOCKS5IsRefused(t *testing.T) {
	g := newGateway(t, options{socks5: true})
	for _, row := range []struct {
		name, sent, want string
		record           record
	}{
		{
			"denied", socksGreeting + socksTo(1, "secret.example", 443), socksSelected + socksReply(2),
			record{Method: "CONNECT", Host: "secret.example", Port: 443, Verdict: "deny", Reason: "not-on-allowlist", Status: 403},
		},
		{
			"the origin refuses", socksGreeting + socksTo(1, "refused.example", 1), socksSelected + socksReply(5),
			record{Method: "CONNECT", Host: "refused.example", Port: 1, Verdict: "fail", Reason: "dial-refused", Status: 502},
		},
		{
			"no such name", socksGreeting + socksTo(1, "empty.example", 443), socksSelected + socksReply(4),
			record{Method: "CONNECT", Host: "empty.example", Port: 443, Verdict: "fail", Reason: "resolve-failed", Status: 502},
		},
		{
			"no answer of a name server", socksGreeting + socksTo(1, "slow.example", 443), socksSelected + socksReply(6),
			record{Method: "CONNECT", Host: "slow.example", Port: 443, Verdict: "fail", Reason: "resolve-timeout", Status: 504},
		},
		{
			"an address", socksGreeting + "\x05\x01\x00\x01\x7f\x00\x00\x01\x01\xbb", socksSelected + socksReply(2),
			record{Method: "CONNECT", Host: "127.0.0.1", Port: 443, Verdict: "deny", Reason: "resolved-address-denied", Status: 403},
		},
		{
			"a malformed name", socksGreeting + socksTo(1, "a b", 443), socksSelected + socksReply(1),
			record{Method: "CONNECT", Verdict: "deny", Reason: "malformed-target", Status: 400},
		},
		{
			"port 0", socksGreeting + socksTo(1, "allowed.example", 0), socksSelected + socksReply(1),
			record{Method: "CONNECT", Host: "allowed.example", Verdict: "deny", Reason: "malformed-port", Status: 400},
		},
		{
			"BIND", socksGreeting + socksTo(2, "allowed.example", 443), socksSelected + socksReply(7),
			record{Method: "BIND", Host: "allowed.example", Port: 443, Verdict: "deny", Reason: "connect-only", Status: 405},
		},
		{
			"BIND with port 0", socksGreeting + socksTo(2, "allowed.example", 0), socksSelected + socksReply(7),
			record{Method: "BIND", Host: "allowed.example", Verdict: "deny", Reason: "connect-only", Status: 405},
		},
		{"no method", "\x05\x01\x02", "\x05\xff", record{Verdict: "deny", Reason: "malformed-header", Status: 400}},
		{"SOCKS4", "\x04\x01", "\x05\xff", record{Verdict: "deny", Reason: "unsupported-version", Status: 505}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := g.callSOCKS5(t)
			c.send(t, row.sent)
			if got := readAll(t, c.reader); got != row.want {
				t.Errorf("answered %q, want %q", got, row.want)
			}
			_ = c.Close()
			r := g.next(t, audit.EventDecision)
			want := row.record
			want.Event, want.Listener, want.Protocol, want.Wire = "decision", "socks5", "socks5", "tcp"
			got := record{
				Event: r.Event, Listener: r.Listener, Protocol: r.Protocol, Wire: r.Wire,
				Method: r.Method, Host: r.Host, Port: r.Port, Verdict: r.Verdict, Reason: r.Reason, Status: r.Status,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("record %+v (-want +got):\n%s", r, diff)
			}
		})
	}
	g.emptied(t)
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("records too many: %+v", left)
	}
}

// TestSOCKS5OnItsListenerOnly checks that a client of HTTP gets an answer that it can read, and
// that the other listeners do not speak SOCKS5.
func TestSOCKS5OnItsListenerOnly(t *testing.T) {
	g := newGateway(t, options{socks5: true})
	c := g.callSOCKS5(t)
	if a := c.ask(t, connectTo(g.at("allowed.example"))); a.status != 400 || a.reason() != "malformed-request-line" || !a.close || !strings.Contains(a.phrase, "speaks SOCKS5") {
		t.Errorf("answered %s", a.phrase)
	}
	c.ended(t)
	if r := g.next(t, audit.EventDecision); r.Protocol != "socks5" || r.Reason != "malformed-request-line" || !strings.Contains(r.Detail, "speaks SOCKS5") {
		t.Errorf("record %+v", r)
	}
	c = g.callPlain(t)
	c.send(t, socksGreeting+"\r\n\r\n")
	if a := c.answer(t); a.status != 400 {
		t.Errorf("a listener for HTTP answered %s", a.phrase)
	}
	c.ended(t)
	if r := g.next(t, audit.EventDecision); r.Protocol != "connect" || r.Wire != "h1" {
		t.Errorf("record %+v", r)
	}
}

// TestSOCKS5TunnelIsRevoked checks that a new policy ends a tunnel that it forbids.
func TestSOCKS5TunnelIsRevoked(t *testing.T) {
	g := newGateway(t, options{socks5: true})
	c, origin, r := g.openSOCKS5(t, "")
	pingPong(t, c, origin)
	spec := g.policy()
	spec.Version, spec.Entries[0].Allow = "two", []allowlist.Rule{to("other.example")}
	policy, err := allowlist.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	g.enforcer().put(t.Context(), policy)
	c.gone(t)
	end := g.next(t, audit.EventTunnelClose)
	if end.ID != r.ID || end.Protocol != "socks5" || end.CloseReason != "revoked" || end.Reason != "not-on-allowlist" {
		t.Errorf("record %+v", end)
	}
	g.emptied(t)
}

// TestSOCKS5FirstBytes checks that a ClientHello for another host is refused, also if it has
// come with the request.
func TestSOCKS5FirstBytes(t *testing.T) {
	g := newGateway(t, options{socks5: true})
	hello := clientHello("other.example", false, 1<<14)
	for _, early := range []string{"", hello[:10], hello[:100]} {
		c, _, r := g.openSOCKS5(t, early)
		c.send(t, hello[len(early):])
		c.gone(t)
		if d := g.next(t, audit.EventDecision); d.ID != r.ID || d.Stage != "tls" || d.Protocol != "socks5" || d.Reason != "sni-mismatch" || d.SNI != "other.example" {
			t.Errorf("record %+v", d)
		}
		if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "denied" {
			t.Errorf("record %+v", end)
		}
	}
}

// TestSOCKS5InADrain checks that a request in a drain is refused, and that an open tunnel goes
// on.
func TestSOCKS5InADrain(t *testing.T) {
	g := newGateway(t, options{socks5: true})
	c, origin, _ := g.openSOCKS5(t, "")
	waiting := g.callSOCKS5(t)
	waiting.send(t, socksGreeting)
	g.proxy.Drain()
	waiting.send(t, socksTo(1, "allowed.example", g.origin.port))
	if got := readAll(t, waiting.reader); got != socksSelected+socksReply(1) {
		t.Errorf("answered %q", got)
	}
	_ = waiting.Close()
	if r := g.next(t, audit.EventDecision); r.Reason != "draining" || r.Protocol != "socks5" {
		t.Errorf("record %+v", r)
	}
	pingPong(t, c, origin)
}

// TestSOCKS5Limits checks that the tunnels by SOCKS5 count among those of the identity.
func TestSOCKS5Limits(t *testing.T) {
	g := newGateway(t, options{socks5: true, limits: limit.Config{Identity: allowlist.Limits{Tunnels: 1}}})
	g.openSOCKS5(t, "")
	c := g.callSOCKS5(t)
	c.send(t, socksGreeting+socksTo(1, "allowed.example", g.origin.port))
	if got := readAll(t, c.reader); got != socksSelected+socksReply(2) {
		t.Errorf("answered %q", got)
	}
	_ = c.Close()
	if r := g.next(t, audit.EventDecision); r.Reason != "tunnel-limit" || r.Status != 429 {
		t.Errorf("record %+v", r)
	}
}

// TestSOCKS5SilentCallerOverALimit checks the record of a caller that is over a limit and leaves
// without a request.
func TestSOCKS5SilentCallerOverALimit(t *testing.T) {
	g := newGateway(t, options{socks5: true, limits: limit.Config{Connections: 1}})
	g.openSOCKS5(t, "")
	c := g.callSOCKS5(t)
	closeWrite(t, c.Conn)
	c.gone(t)
	if r := g.next(t, audit.EventDecision); r.Reason != "rate-limited" || r.Status != 0 || r.Protocol != "socks5" || r.Wire != "tcp" {
		t.Errorf("record %+v", r)
	}
}
