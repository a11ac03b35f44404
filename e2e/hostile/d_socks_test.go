package hostile

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// The messages of SOCKS5.
const (
	socksGreeting = "\x05\x01\x00"
	socksSelected = "\x05\x00"
	socksRejected = "\x05\xff"
)

// The reply codes of SOCKS5 (RFC 1928 section 6).
const (
	socksSucceeded = iota
	socksFailure
	socksNotAllowed
	_
	_
	_
	_
	socksNoCommand
	socksNoAddress
)

func socksReply(code byte) string {
	return socksSelected + string([]byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0})
}

// socksName returns a greeting and a CONNECT for a name.
func socksName(name string, port uint16) string {
	return socksAddress(3, string([]byte{byte(len(name))})+name, port)
}

// socksAddress returns a greeting and a CONNECT for an address of a type.
func socksAddress(kind byte, address string, port uint16) string {
	text := socksGreeting + string([]byte{5, 1, 0, kind}) + address
	return text + string(binary.BigEndian.AppendUint16(nil, port))
}

// socksAsk is what a client of SOCKS5 sends, and the expected outcome.
type socksAsk struct {
	name   string
	sent   string
	answer string // all that the client reads
	reason allowlist.Reason
	host   string // host in the record, or anyHost
}

func socksRows() []row {
	return []row{
		{"D44", "SOCKS5 with another version, command, type of address or reserved byte, or without the method 0; SOCKS4, TLS and HTTP on a listener for SOCKS5; bytes behind it that look like a good request", "a reply that refuses, and the connection closes; the record has the reason, and nothing is looked up", socksMessages()},
		{"D45", "a name of SOCKS5 with a port, brackets, userinfo, a zero byte, a line end or another spelling of an address, or too long", "the name is one name, and never a part of it: a reply that refuses, with 400 `malformed-target` or `malformed-port` in the record", socksNames()},
		{"D46", "a denied name or address by SOCKS5, in another case or spelling; a request byte by byte", "denied as by CONNECT; what is allowed is the same destination", socksDecided()},
	}
}

func socksMessages() []scenario {
	good := socksName("allowed.example", 443)
	request := func(head string) string { return socksGreeting + head + "\x0fallowed.example\x01\xbb" }
	all := []socksAsk{
		{"BIND", request("\x05\x02\x00\x03"), socksReply(socksNoCommand), allowlist.ConnectOnly, "allowed.example"},
		{"UDP ASSOCIATE", request("\x05\x03\x00\x03"), socksReply(socksNoCommand), allowlist.ConnectOnly, "allowed.example"},
		{"no command", request("\x05\x00\x00\x03"), socksReply(socksNoCommand), allowlist.ConnectOnly, "allowed.example"},
		{"an unknown type of address", request("\x05\x01\x00\x02"), socksReply(socksNoAddress), allowlist.MalformedTarget, ""},
		{"a reserved byte", request("\x05\x01\x01\x03"), socksReply(socksFailure), allowlist.MalformedRequestLine, ""},
		{"another version of the request", request("\x04\x01\x00\x03"), socksReply(socksFailure), allowlist.MalformedRequestLine, ""},
		{"the greeting twice", socksGreeting + good, socksReply(socksNoAddress), allowlist.MalformedTarget, ""}, // its 5 is a type of address
		{"port 0", socksName("allowed.example", 0), socksReply(socksFailure), allowlist.MalformedPort, "allowed.example"},
		{"no methods", "\x05\x00", socksRejected, allowlist.MalformedHeader, ""},
		{"only passwords", "\x05\x01\x02", socksRejected, allowlist.MalformedHeader, ""},
		{"SOCKS4", "\x04\x01\x01\xbb\x7f\x00\x00\x01\x00", socksRejected, allowlist.UnsupportedVersion, ""},
		{"SOCKS4a", "\x04\x01\x01\xbb\x00\x00\x00\x01\x00allowed.example\x00", socksRejected, allowlist.UnsupportedVersion, ""},
		{"TLS", "\x16\x03\x01\x02\x00\x01", socksRejected, allowlist.MalformedRequestLine, ""},
		{"a line end", "\r\n", socksRejected, allowlist.MalformedRequestLine, ""},
	}
	cases := make([]scenario, 0, 2*len(all)+2)
	for _, a := range all {
		cases = append(cases, a.scenario())
		a.name, a.sent = a.name+", before a good request", a.sent+good
		cases = append(cases, a.scenario())
	}
	for _, head := range []string{connectTo("allowed.example:PORT"), "GET http://allowed.example:PORT/ HTTP/1.1\r\nHost: allowed.example\r\n\r\n"} {
		cases = append(cases, scenario{name: brief(head), only: noWire, run: socksHTTP(head)})
	}
	return cases
}

func socksNames() []scenario {
	var cases []scenario
	add := func(reason allowlist.Reason, names ...string) {
		for _, name := range names {
			cases = append(cases, socksAsk{printable(brief(name)), socksName(name, 443), socksReply(socksFailure), reason, anyHost}.scenario())
		}
	}
	add(allowlist.MalformedTarget,
		"", ".", "..", "allowed.example..", ".allowed.example", "allowed.example:443", "allowed.example:443:443", "[allowed.example]", "[::1]", "[127.0.0.1]",
		"user@allowed.example", "allowed.example\x00.evil.test", "allowed.example\x00", "\x00", "allowed.example ", " allowed.example", "allowed.example\r\n", "allowed.example\r\nHost: evil.test",
		"allowed.example/", "allowed.example#evil.test", "allowed.example?", "http://allowed.example", "allowed.example%2e", "all\xf6wed.example", "\xef\xbd\x81llowed.example",
		"127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1.", "127.0.0.01", "::1%lo", "fe80::1%25eth0", "::g", ":", "::1]", "::1]:443#", "127.0.0.1]:80", "1.2.3.4.5",
		strings.Repeat("a", 64)+".example", strings.Repeat("a.", 127)+"a", strings.Repeat("\xff", 255),
	)
	add(allowlist.MalformedPort, "::1]:80", "::1]:80:80")
	return cases
}

func socksDecided() []scenario {
	denied := func(name, sent, host string, reason allowlist.Reason) scenario {
		return socksAsk{name, sent, socksReply(socksNotAllowed), reason, host}.scenario()
	}
	return []scenario{
		denied("a name", socksName("evil.test", 443), "evil.test", allowlist.NotOnAllowlist),
		denied("a name in capitals, with a dot", socksName("EVIL.Test.", 443), "evil.test", allowlist.NotOnAllowlist),
		denied("a name below an allowed one", socksName("evil.allowed.example", 443), "evil.allowed.example", allowlist.NotOnAllowlist),
		denied("another port", socksName("allowed.example", 1), "allowed.example", allowlist.PortNotAllowed),
		denied("an address", socksAddress(1, "\xa9\xfe\xa9\xfe", 80), "169.254.169.254", allowlist.IPNotOnAllowlist),
		denied("an address as a name", socksName("169.254.169.254", 80), "169.254.169.254", allowlist.IPNotOnAllowlist),
		denied("an IPv4 address in IPv6", socksAddress(4, strings.Repeat("\x00", 10)+"\xff\xff\xa9\xfe\xa9\xfe", 80), "169.254.169.254", allowlist.IPNotOnAllowlist),
		denied("an IPv6 address", socksAddress(4, strings.Repeat("\x00", 15)+"\x02", 80), "::2", allowlist.IPNotOnAllowlist),
		{name: "what is allowed", only: noWire, run: socksOpens("allowed.example", 0)},
		{name: "what is allowed, in capitals, with a dot", only: noWire, run: socksOpens("Allowed.EXAMPLE.", 0)},
		{name: "what is allowed, byte by byte", only: noWire, run: socksOpens("allowed.example", 1)},
	}
}

func (a socksAsk) scenario() scenario {
	return scenario{name: a.name, only: noWire, run: a.run}
}

// run sends the bytes, and checks all that comes back, the record, and that nothing was looked
// up or dialled.
func (a socksAsk) run(t *testing.T, g *gateway) {
	t.Helper()
	before := g.counts()
	c := g.callSOCKS5(t)
	c.send(t, a.sent)
	got, err := io.ReadAll(c.reader)
	if err != nil || string(got) != a.answer {
		t.Errorf("answered %q, %v, want %q", got, err, a.answer)
	}
	_ = c.Close()
	r := g.next(t, audit.EventDecision)
	if want := a.reason.Info(); r.Reason != want.Token || r.Status != want.Status || r.Verdict != "deny" || a.host != anyHost && r.Host != a.host {
		t.Errorf("record %+v, want %s %d for %q", r, want.Token, want.Status, a.host)
	}
	if r.Wire != string(audit.WireTCP) {
		t.Errorf("recorded as a request over %s", r.Wire)
	}
	if after := g.counts(); after != before {
		t.Errorf("something was looked up or dialled: %+v, before %+v", after, before)
	}
}

// socksHTTP sends a request of HTTP, whose answer must be readable.
func socksHTTP(head string) func(*testing.T, *gateway) {
	return func(t *testing.T, g *gateway) {
		before := g.counts()
		c := g.callSOCKS5(t)
		got := c.ask(t, g.fill(head))
		if got.status != 400 || got.reason() != "malformed-request-line" || !got.close || !strings.Contains(got.phrase, "SOCKS5") {
			t.Errorf("answered %s", got.phrase)
		}
		c.gone(t)
		if r := g.next(t, audit.EventDecision); r.Reason != "malformed-request-line" {
			t.Errorf("record %+v", r)
		}
		if after := g.counts(); after != before {
			t.Errorf("something was looked up or dialled: %+v, before %+v", after, before)
		}
	}
}

// socksOpens opens a tunnel for a spelling of allowed.example. The bytes go out in pieces of a
// size, or in one piece if it is 0.
func socksOpens(name string, size int) func(*testing.T, *gateway) {
	return func(t *testing.T, g *gateway) {
		before := g.counts()
		c := g.callSOCKS5(t)
		text := []byte(socksName(name, g.port))
		if size == 0 {
			size = len(text)
		}
		for piece := range slices.Chunk(text, size) {
			c.send(t, string(piece))
		}
		want := socksReply(socksSucceeded)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c.reader, got); err != nil || string(got) != want {
			t.Errorf("answered %q, %v", got, err)
		}
		if r := g.next(t, audit.EventDecision); r.Host != "allowed.example" || r.Verdict != "allow" || r.Wire != string(audit.WireTCP) {
			t.Errorf("record %+v", r)
		}
		g.finish(t, c, g.origin)
		if n := g.counts(); n.lookups-before.lookups != 1 || n.dials-before.dials != 1 {
			t.Errorf("%d lookups and %d dials", n.lookups-before.lookups, n.dials-before.dials)
		}
	}
}

// callSOCKS5 connects to the listener for SOCKS5, as builder.
func (a callers) callSOCKS5(tb testing.TB) *caller {
	tb.Helper()
	return newCaller(a.connect(tb, a.socks5))
}
