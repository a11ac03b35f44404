package hostile

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// connectFields and getFields are the pseudo-header fields of valid requests.
func connectFields(more ...string) []string {
	return append([]string{":method", "CONNECT", ":authority", "allowed.example:PORT"}, more...)
}

func getFields(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "allowed.example:PORT", ":path", "/"}, more...)
}

// heads returns the cases of heads of HTTP/2 that are refused before policy, each followed by
// data that no origin may get. A head is a list of names and values, in turn.
func heads(reason allowlist.Reason, all ...[]string) []scenario {
	var cases []scenario
	for _, pairs := range all {
		name := brief(printable(strings.Join(pairs, " ")))
		cases = append(cases, scenario{name: name, only: h2, run: func(t *testing.T, g *gateway) {
			c, before := g.call(t, "builder"), g.counts()
			c.head(t, g, pairs...)
			_, _ = c.Conn.(*textConn).current.write([]byte("early"), false, time.Now().Add(patience))
			ask{reason: reason, host: anyHost}.check(t, g, c, c.answer(t), before)
		}})
	}
	return cases
}

// head sends a head of HTTP/2 on a stream of its own, which stays open.
func (c *caller) head(tb testing.TB, g *gateway, pairs ...string) {
	tb.Helper()
	filled := make([]string, 0, len(pairs))
	for _, text := range pairs {
		filled = append(filled, g.fill(text))
	}
	text := c.Conn.(*textConn)
	var err error
	if text.current, err = text.open(false, filled...); err != nil {
		tb.Fatal(err)
	}
	text.left = -1
}

// pseudoRows returns the rows about heads and bodies that only HTTP/2 can carry.
func pseudoRows() []row {
	const header = allowlist.MalformedHeader
	return []row{
		{"D37", "pseudo-header fields that are missing, unknown, repeated, or behind another field; a CONNECT with `:scheme` or `:path`; an extended CONNECT", "400 `malformed-header`", heads(header,
			[]string{":authority", "allowed.example:PORT"}, []string{":method", "", ":authority", "allowed.example:PORT"}, connectFields(":status", "200"), connectFields(":host", "allowed.example:PORT"),
			connectFields(":method", "GET"), connectFields(":authority", "allowed.example:PORT"), []string{":method", "CONNECT", "x", "a", ":authority", "allowed.example:PORT"}, getFields("x", "a", ":path", "/"), getFields(":path", "/"), getFields(":scheme", "http"),
			connectFields(":scheme", "https"), connectFields(":path", "/"), connectFields(":scheme", "", ":path", ""), connectFields(":scheme", "https", ":path", "/", ":protocol", "websocket"), connectFields(":protocol", "websocket"), getFields(":protocol", "websocket"),
			[]string{":method", "GET", ":authority", "allowed.example:PORT", ":path", "/"}, []string{":method", "GET", ":scheme", "http", ":authority", "allowed.example:PORT"}, []string{":method", "GET", ":scheme", "http", ":authority", "allowed.example:PORT", ":path", ""})},
		{"D38", "names with capital letters, fields that concern a connection, `te` with more than `trailers`, white space around a value, an empty name", "400 `malformed-header`", heads(header,
			connectFields("X-A", "b"), connectFields("Host", "allowed.example:PORT"), getFields("Content-Length", "0"), connectFields("connection", "close"), connectFields("proxy-connection", "keep-alive"), connectFields("keep-alive", "5"), connectFields("transfer-encoding", "chunked"),
			connectFields("upgrade", "websocket"), getFields("connection", "x-a", "x-a", "b"), getFields("transfer-encoding", "chunked"), getFields("connection", "upgrade", "upgrade", "h2c", "http2-settings", "AAMAAABk"), getFields("te", "trailers, gzip"), getFields("te", "gzip"),
			connectFields("x", " a"), connectFields("x", "a\t"), connectFields("", "a"), connectFields("x y", "a"), connectFields("x:", "a"))},
		{"D39", "no `:authority`; one that holds more than host and port; a path that does not begin with a slash; a Host that differs from `:authority`, or two", "400 `missing-host`, `malformed-target`, `authority-mismatch`, `duplicate-host`", slices.Concat(
			heads(allowlist.MissingHost, []string{":method", "CONNECT"}, []string{":method", "CONNECT", "host", "allowed.example:PORT"}, []string{":method", "CONNECT", ":authority", ""}, []string{":method", "GET", ":scheme", "http", ":path", "/", "host", "allowed.example:PORT"}),
			heads(allowlist.MalformedTarget, []string{":method", "GET", ":scheme", "http", ":authority", "allowed.example:PORT/a", ":path", "/"}, []string{":method", "GET", ":scheme", "http", ":authority", "allowed.example:PORT?", ":path", "/"}, []string{":method", "GET", ":scheme", "http", ":authority", "evil.test#", ":path", "/"},
				[]string{":method", "GET", ":scheme", "http", ":authority", "u@allowed.example:PORT", ":path", "/"}, []string{":method", "GET", ":scheme", "http", ":authority", "allowed.example:PORT", ":path", "x"}, []string{":method", "GET", ":scheme", "http", ":authority", "allowed.example", ":path", "@evil.test/"}, []string{":method", "GET", ":scheme", "http", ":authority", "allowed.example:PORT", ":path", "*"},
				[]string{":method", "GET", ":scheme", "http", ":authority", "allowed.example", ":path", ":PORT/"}, []string{":method", "GET", ":scheme", "http://allowed.example:PORT/?", ":authority", "evil.test", ":path", "/"}),
			heads(allowlist.AuthorityMismatch, connectFields("host", "other.example:PORT"), connectFields("host", "allowed.example:1"), connectFields("host", ""), getFields("host", "other.example"), getFields("host", "allowed.example:1"), getFields("host", "allowed.example:PORT/")),
			heads(allowlist.DuplicateHost, connectFields("host", "allowed.example:PORT", "host", "allowed.example:PORT"), getFields("host", "allowed.example:PORT", "host", "other.example")))},
		{"D40", "data behind a head that is not decided yet, or that is denied; data that looks like a request", "no byte of it reaches an origin before the decision, or is read as a request", []scenario{
			{name: "while the name is looked up, and then denied", only: h2, run: dataBeforeDenial},
			{name: "while the name is looked up, and then allowed", only: h2, run: dataBeforeTunnel},
			{name: "behind a denied CONNECT", only: h2, run: requestAsData},
		}},
		{"D41", "a body that is longer or shorter than its `content-length`", "400 `malformed-header`, or the stream is reset; the origin never takes a part for the whole", []scenario{
			{name: "longer", only: h2, run: func(t *testing.T, g *gateway) { bodyUnlike(t, g, "4", "longer") }},
			{name: "shorter", only: h2, run: func(t *testing.T, g *gateway) { bodyUnlike(t, g, "40", "shorter") }},
		}},
		{"D42", "a second head on a stream, which would be a trailer", "the stream is reset with PROTOCOL_ERROR, and the connection to the origin too; the other streams go on", []scenario{{name: "in a tunnel", only: h2, run: trailer}}},
		{"D43", "an allowed request and a denied one at the same time on one connection", "each is decided and recorded on its own", []scenario{{name: "two streams", only: h2, run: twoStreams}}},
	}
}

// dataBeforeDenial sends data while a name is looked up, whose address a new policy denies.
func dataBeforeDenial(t *testing.T, g *gateway) {
	g.names.say("held.example", answers("127.0.0.1"))
	c := g.call(t, "builder")
	c.send(t, g.fill(connectTo("held.example"+port))+"early")
	<-g.names.asked
	g.put(t, g.fill("version: 1\nidentities:\n  - id: "+id("builder")+"\n    allow: [{host: held.example, ports: [PORT]}]\n"))
	c.send(t, "more")
	g.names.answer <- struct{}{}
	if got := c.answer(t); got.reason() != "resolved-address-denied" {
		t.Errorf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	c.ended(t)
	g.origin.sawNothing(t)
	g.put(t, g.policy())
}

// dataBeforeTunnel sends data while a name is looked up. The origin gets it after that, in
// order.
func dataBeforeTunnel(t *testing.T, g *gateway) {
	g.names.say("held.example", answers("127.0.0.1"))
	c := g.call(t, "builder")
	c.send(t, g.fill(connectTo("held.example"+port))+"early, ")
	<-g.names.asked
	c.send(t, "later, ")
	if n := len(g.origin.conns); n > 0 {
		t.Errorf("%d connections before the look-up has ended", n)
	}
	g.names.answer <- struct{}{}
	if got := c.answer(t); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	c.send(t, "last")
	closeWrite(t, c.Conn)
	o := g.origin.next(t)
	if got := readAll(t, o); got != "early, later, last" {
		t.Errorf("the origin got %q", got)
	}
	_ = o.Close()
	c.ended(t)
	g.next(t, audit.EventTunnelClose)
}

// requestAsData sends a valid request as the data behind a CONNECT that is denied.
func requestAsData(t *testing.T, g *gateway) {
	c, before := g.call(t, "builder"), g.counts()
	c.head(t, g, ":method", "CONNECT", ":authority", "secret.example:443")
	_, _ = c.Conn.(*textConn).current.write([]byte(g.fill(connectTo("allowed.example:PORT"))), true, time.Now().Add(patience))
	ask{head: connectTo("x"), reason: allowlist.NotOnAllowlist, host: "secret.example"}.check(t, g, c, c.answer(t), before)
}

// bodyUnlike sends a body of another length than announced.
func bodyUnlike(t *testing.T, g *gateway, length, body string) {
	c := g.call(t, "builder")
	c.head(t, g, ":method", "POST", ":scheme", "http", ":authority", "allowed.example:PORT", ":path", "/", "content-length", length)
	_, _ = c.Conn.(*textConn).current.write([]byte(body), true, time.Now().Add(patience))
	got, err := c.tryAnswer()
	if err == nil && got.reason() != "malformed-header" {
		t.Errorf("answered %s", got.phrase)
	}
	r := g.next(t, audit.EventDecision)
	if r.Reason != "malformed-header" || r.Verdict == "allow" {
		t.Errorf("record %+v", r)
	}
	_ = c.Close()
	for _, o := range g.origin.rest(t) {
		if text, _ := io.ReadAll(o); strings.HasSuffix(string(text), body) && length == "4" {
			t.Errorf("the origin got all of %q", text)
		}
		_ = o.Close()
	}
	if wentOut(r) {
		g.next(t, audit.EventTunnelClose)
	}
}

// trailer sends a second head in a tunnel, while another one is open on the connection.
func trailer(t *testing.T, g *gateway) {
	other, kept := g.open(t)
	c, o := g.open(t)
	x := c.Conn.(*textConn).current
	_ = x.peer.TrySend(func() error {
		return x.peer.WriteHeaders(http2.HeadersFrameParam{StreamID: x.id, BlockFragment: x.peer.Encode("x", "a"), EndHeaders: true, EndStream: true})
	})
	wantReset(t, c, http2.ErrCodeProtocol)
	if _, err := io.ReadAll(o); err == nil {
		t.Error("for the origin the stream has ended in order")
	}
	_ = o.Close()
	g.next(t, audit.EventTunnelClose)
	goesOn(t, g, other, kept)
}

// wantReset checks that the gateway resets a stream.
func wantReset(t *testing.T, c *caller, code http2.ErrCode) {
	t.Helper()
	_, err := io.ReadAll(c.reader)
	if reset, ok := errors.AsType[*resetError](err); !ok || reset.code != code {
		t.Errorf("the stream ended with %v, want a reset with %s", err, code)
	}
}

// goesOn checks that a tunnel still works, and ends it.
func goesOn(t *testing.T, g *gateway, c *caller, o *net.TCPConn) {
	t.Helper()
	c.send(t, "still here")
	closeWrite(t, c.Conn)
	if got := readAll(t, o); got != "still here" {
		t.Errorf("through the other tunnel came %q", got)
	}
	_ = o.Close()
	c.ended(t)
	g.next(t, audit.EventTunnelClose)
}

// twoStreams asks for two destinations at once.
func twoStreams(t *testing.T, g *gateway) {
	allowed, denied := g.call(t, "builder"), g.call(t, "builder")
	allowed.send(t, g.fill(connectTo("allowed.example:PORT"))+"for the origin")
	_, _ = io.WriteString(denied, connectTo("secret.example:443")+"for nobody") // the answer may come before the data goes out
	if got := denied.answer(t); got.reason() != "not-on-allowlist" {
		t.Errorf("answered %s", got.phrase)
	}
	if got := allowed.answer(t); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	verdicts := map[string]string{}
	for range 2 {
		r := g.next(t, audit.EventDecision)
		verdicts[r.Host] = r.Verdict
	}
	if verdicts["allowed.example"] != "allow" || verdicts["secret.example"] != "deny" {
		t.Errorf("recorded as %v", verdicts)
	}
	closeWrite(t, allowed.Conn)
	o := g.origin.next(t)
	if got := readAll(t, o); got != "for the origin" {
		t.Errorf("the origin got %q", got)
	}
	_ = o.Close()
	allowed.ended(t)
	denied.ended(t)
	g.next(t, audit.EventTunnelClose)
}
