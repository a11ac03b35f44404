package proxy_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// refusedHead is a request that is refused without asking the policy. PORT stands for the
// origin's port.
type refusedHead struct {
	name   string
	raw    string
	reason allowlist.Reason
}

func target(text string, reason allowlist.Reason) refusedHead {
	return refusedHead{"target " + brief(text), connectTo(text), reason}
}

func head(name, raw string, reason allowlist.Reason) refusedHead {
	return refusedHead{name, raw, reason}
}

// brief shortens a text for the name of a subtest.
func brief(text string) string { return text[:min(len(text), 40)] }

func refusedHeads() []refusedHead {
	const (
		line = "CONNECT allowed.example:PORT HTTP/1.1\r\n"
		host = "Host: allowed.example:PORT\r\n"
	)
	rows := []refusedHead{
		head("another host in Host", line+"Host: other.example:PORT\r\n\r\n", allowlist.AuthorityMismatch),
		head("another port in Host", line+"Host: allowed.example:1\r\n\r\n", allowlist.AuthorityMismatch),
		head("an empty Host", line+"Host:\r\n\r\n", allowlist.AuthorityMismatch),
		head("userinfo in Host", line+"Host: a@allowed.example:PORT\r\n\r\n", allowlist.AuthorityMismatch),
		head("another spelling of the address in Host", "CONNECT [::ffff:8.8.8.8]:443 HTTP/1.1\r\nHost: 8.8.8.8:443\r\n\r\n", allowlist.AuthorityMismatch),
		head("no Host in HTTP/1.1", line+"\r\n", allowlist.MissingHost),
		head("two Host fields", line+host+host+"\r\n", allowlist.DuplicateHost),
		head("two Host fields in HTTP/1.0", "CONNECT allowed.example:PORT HTTP/1.0\r\n"+host+host+"\r\n", allowlist.DuplicateHost),

		head("lower-case connect", strings.Replace(line, "CONNECT", "connect", 1)+host+"\r\n", allowlist.ConnectOnly),
		head("lower-case connect to a URL", "connect http://allowed.example:PORT/ HTTP/1.1\r\n"+host+"\r\n", allowlist.ConnectOnly),

		head("two spaces before the target", "CONNECT  allowed.example:PORT HTTP/1.1\r\n"+host+"\r\n", allowlist.MalformedRequestLine),
		head("two spaces behind the target", "CONNECT allowed.example:PORT  HTTP/1.1\r\n"+host+"\r\n", allowlist.MalformedRequestLine),
		head("a tab in the request line", "CONNECT\tallowed.example:PORT HTTP/1.1\r\n"+host+"\r\n", allowlist.MalformedRequestLine),
		head("HTTP/0.9", "CONNECT allowed.example:PORT\r\n\r\n", allowlist.MalformedRequestLine),
		head("a bare LF behind the request line", "CONNECT allowed.example:PORT HTTP/1.1\n"+host+"\r\n", allowlist.MalformedRequestLine),
		head("a TLS hello in clear", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", allowlist.MalformedRequestLine),
		head("HTTP/2.0", "CONNECT allowed.example:PORT HTTP/2.0\r\n"+host+"\r\n", allowlist.UnsupportedVersion),
		head("HTTP/1.2", "CONNECT allowed.example:PORT HTTP/1.2\r\n"+host+"\r\n", allowlist.UnsupportedVersion),
		head("the preface of HTTP/2 with another end", "PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", allowlist.UnsupportedVersion),
		head("the preface of HTTP/2 behind an empty line", "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", allowlist.UnsupportedVersion),
		head("the request line of the preface and a field", "PRI * HTTP/2.0\r\nHost: x\r\n\r\n", allowlist.UnsupportedVersion),

		head("Transfer-Encoding", line+host+"Transfer-Encoding: chunked\r\n\r\n", allowlist.MalformedHeader),
		head("Transfer-Encoding in HTTP/1.0", "CONNECT allowed.example:PORT HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", allowlist.MalformedHeader),
		head("an empty Transfer-Encoding", line+host+"Transfer-Encoding:\r\n\r\n", allowlist.MalformedHeader),
		head("a second Transfer-Encoding behind an empty one", line+host+"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n\r\n", allowlist.MalformedHeader),
		head("a folded line", line+host+"X: a\r\n b\r\n\r\n", allowlist.MalformedHeader),
		head("a bare LF behind a field", line+"Host: allowed.example:PORT\n\r\n", allowlist.MalformedHeader),
		head("a bare CR in a field", line+host+"X: a\rb\r\n\r\n", allowlist.MalformedHeader),
		head("NUL in a field", line+host+"X: a\x00b\r\n\r\n", allowlist.MalformedHeader),
		head("a space before the colon", line+"Host : allowed.example:PORT\r\n\r\n", allowlist.MalformedHeader),
		head("a field without a colon", line+host+"X\r\n\r\n", allowlist.MalformedHeader),

		head("a head over the limit", line+host+"X: "+strings.Repeat("a", 70<<10)+"\r\n\r\n", allowlist.HeadTooLarge),
		head("ten thousand fields", line+host+strings.Repeat("X: a\r\n", 10_000)+"\r\n", allowlist.HeadTooLarge),
		head("a host of 100 kB", connectTo(strings.Repeat("a", 100<<10)+":443"), allowlist.HeadTooLarge),
	}
	for _, text := range []string{
		"http://allowed.example:PORT/", "allowed.example:PORT/", "allowed.example:PORT/path", "allowed.example:PORT?q", "allowed.example:PORT#f",
		"user@allowed.example:PORT", "allowed.example:PORT@evil.test:PORT", `allowed.example\:PORT`, "/", "*", ":PORT", "allowed.example",
		"allowed.example..:PORT", ".allowed.example:PORT", "a..wild.example:PORT",
		"[allowed.example]:PORT", "[127.0.0.1]:PORT", "[[::1]]:PORT", "[::1]x:PORT", "x[::1]:PORT",
		"xn--allowed-.example:PORT", "xn--.example:PORT", "xn--a.example:PORT",
		"%61llowed.example:PORT", "allowed.example%00:PORT", "allowed%2eexample:PORT",
		"allowed.example;:PORT", "allowed.example,x:PORT", "<allowed.example>:PORT", "a|b.example:PORT", "{a}.example:PORT", "*.wild.example:PORT",
		strings.Repeat("a", 64) + ".wild.example:PORT", strings.Repeat("a.", 121) + "wild.example:PORT", "-a.wild.example:PORT", "a-.wild.example:PORT",
		strings.Repeat("a", 8<<10) + ":PORT",
		"2130706433:PORT", "0x7f000001:PORT", "0x7f.1:PORT", "0177.0.0.1:PORT", "127.1:PORT", "127.0.1:PORT", "127.0.0.01:PORT", "127.0.0.1.:PORT", "1.2.3.4.5:PORT", "256.1.1.1:PORT",
		"[fe80::1%25eth0]:PORT", "[fe80::1%eth0]:PORT", "::1:PORT", "2001:db8::1:PORT",
	} {
		rows = append(rows, target(text, allowlist.MalformedTarget))
	}
	for _, port := range []string{"", "0", "+443", "00443", "65536", "65979", "-1", "https", "0x1bb", "443a"} {
		rows = append(rows, target("allowed.example:"+port, allowlist.MalformedPort))
	}
	rows = append(rows, target("allowed.example:443:22", allowlist.MalformedTarget))
	for name, text := range map[string]string{
		"a full-width letter": "\uff41llowed.example", "an ideographic full stop": "allowed\u3002example", "a soft hyphen": "al\u00adlowed.example",
		"a zero-width space": "allowed\u200b.example", "a Kelvin sign": "\u212a.example", "a Cyrillic letter": "\u0430llowed.example", "a lone byte": "\xe9.example",
	} {
		rows = append(rows, head(name+" in the target", connectTo(text+":PORT"), allowlist.MalformedTarget))
	}
	for name, text := range map[string]string{"DEL": "a\x7f.example", "NUL": "a\x00.example"} { // bytes that no request line may contain
		rows = append(rows, head(name+" in the target", connectTo(text+":PORT"), allowlist.MalformedRequestLine))
	}
	return rows
}

// TestRefusedHeads sends every head on a new connection, on one that was kept open after a
// 407, and behind an allowed plain request.
func TestRefusedHeads(t *testing.T) {
	g := newGateway(t, options{})
	g.origin.serve(t, func(request) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" })
	certificate := g.ca.issue(t, id("builder").String())
	for _, row := range append(refusedHeads(), refusedPlain()...) {
		raw := strings.ReplaceAll(row.raw, "PORT", strconv.Itoa(int(g.origin.port)))
		t.Run(row.name, func(t *testing.T) {
			c := g.callWith(t, certificate)
			g.checkRefused(t, c, raw, row.reason)
		})
		t.Run(row.name+", as the second request", func(t *testing.T) {
			c := g.call(t, "")
			if a := c.ask(t, connectTo(g.at("allowed.example"))); a.status != 407 || a.close {
				t.Fatalf("first answer %d %v, want a 407 that keeps the connection", a.status, a.header)
			}
			g.next(t, audit.EventDecision)
			g.checkRefused(t, c, raw, row.reason)
		})
		t.Run(row.name+", behind an allowed request", func(t *testing.T) {
			c := g.callWith(t, certificate)
			if a := c.ask(t, get("http://"+g.at("allowed.example")+"/")); a.status != 200 || a.close || a.body != "ok" {
				t.Fatalf("first answer %d %v, want a 200 that keeps the connection", a.status, a.header)
			}
			g.next(t, audit.EventDecision)
			g.next(t, audit.EventTunnelClose)
			g.checkRefused(t, c, raw, row.reason)
		})
	}
	if n := g.names.lookups.Load(); n != 1 { // for the first allowed request
		t.Errorf("%d lookups", n)
	}
	if n := g.origin.accepted.Load(); n != 1 {
		t.Errorf("%d connections to the origin", n)
	}
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("%d records too many, first %+v", len(left), left[0])
	}
}

// checkRefused sends a head and checks the answer, the end of the connection,
// and the one record.
func (g *gateway) checkRefused(t *testing.T, c *caller, raw string, want allowlist.Reason) {
	t.Helper()
	sent := make(chan struct{})
	go func() { // the gateway may answer before a long head has left
		defer close(sent)
		_, _ = c.Write([]byte(raw))
	}()
	a := c.answer(t)
	c.gone(t)
	<-sent
	if a.status != want.Info().Status || a.reason() != want.String() {
		t.Errorf("answered %s (%s), want %d %s", a.phrase, a.reason(), want.Info().Status, want)
	}
	if !a.close {
		t.Error("the connection is to be kept")
	}
	r := g.next(t, audit.EventDecision)
	if r.Verdict != "deny" || r.Reason != want.String() || r.Status != a.status || r.ID != a.id() {
		t.Errorf("record %+v, want deny %s %d, id %s", r, want, a.status, a.id())
	}
	if r.Policy != "" || r.Address != "" {
		t.Errorf("record %+v of a request that no policy saw", r)
	}
}

// TestDestinationIsDecidedInItsCanonicalForm checks that the policy decides about the
// canonical destination.
func TestDestinationIsDecidedInItsCanonicalForm(t *testing.T) {
	g := newGateway(t, options{})
	for _, row := range []struct {
		head string
		host string // host in the record
		want allowlist.Reason
	}{
		{connectTo("allowed.example:PORT"), "allowed.example", allowlist.NoReason},
		{connectTo("ALLOWED.Example:PORT"), "allowed.example", allowlist.NoReason},
		{connectTo("allowed.example.:PORT"), "allowed.example", allowlist.NoReason},
		{connectTo("a.wild.example:PORT"), "a.wild.example", allowlist.NoReason},
		{connectTo("_svc._tcp.wild.example:PORT"), "_svc._tcp.wild.example", allowlist.NoReason},
		{connectTo(strings.Repeat("a", 63) + ".wild.example:PORT"), strings.Repeat("a", 63) + ".wild.example", allowlist.NoReason},
		{"CONNECT allowed.example:PORT HTTP/1.0\r\n\r\n", "allowed.example", allowlist.NoReason},
		{"CONNECT allowed.example:PORT HTTP/1.1\r\nHost: allowed.example\r\n\r\n", "allowed.example", allowlist.NoReason},
		{"CONNECT allowed.example:PORT HTTP/1.1\r\nHost: Allowed.Example.:PORT\r\n\r\n", "allowed.example", allowlist.NoReason},
		{connectTo("allowed.example:PORT", "Content-Length: 5"), "allowed.example", allowlist.NoReason},
		{connectTo("allowed.example:PORT", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Client-Cert: URI=spiffe://test.example/legacy"), "allowed.example", allowlist.NoReason},

		{connectTo("wild.example:PORT"), "wild.example", allowlist.NotOnAllowlist},
		{connectTo("xwild.example:PORT"), "xwild.example", allowlist.NotOnAllowlist},
		{connectTo("allowed.example.evil.test:PORT"), "allowed.example.evil.test", allowlist.NotOnAllowlist},
		{connectTo("evilallowed.example:PORT"), "evilallowed.example", allowlist.NotOnAllowlist},
		{connectTo("localhost:PORT"), "localhost", allowlist.NotOnAllowlist},
		{connectTo("allowed.example:22"), "allowed.example", allowlist.PortNotAllowed},
		{connectTo("read-only.example:PORT"), "read-only.example", allowlist.MethodNotAllowed},
		{connectTo("public-path.example:PORT"), "public-path.example", allowlist.MethodNotAllowed},
		{connectTo("denied.wild.example:PORT"), "denied.wild.example", allowlist.DeniedByRule},
		{connectTo("127.0.0.1:443"), "127.0.0.1", allowlist.ResolvedAddressDenied},
		{connectTo("10.0.0.1:443"), "10.0.0.1", allowlist.ResolvedAddressDenied},
		{connectTo("169.254.169.254:443"), "169.254.169.254", allowlist.ResolvedAddressDenied},
		{connectTo("[::ffff:127.0.0.1]:443"), "127.0.0.1", allowlist.ResolvedAddressDenied},
		{connectTo("[::ffff:7f00:1]:443"), "127.0.0.1", allowlist.ResolvedAddressDenied},
		{connectTo("[::1]:443"), "::1", allowlist.IPNotOnAllowlist},
		{connectTo("[::]:443"), "::", allowlist.IPNotOnAllowlist},
		{connectTo("8.8.8.8:80"), "8.8.8.8", allowlist.PortNotAllowed},
	} {
		raw := strings.ReplaceAll(row.head, "PORT", strconv.Itoa(int(g.origin.port)))
		t.Run(brief(raw), func(t *testing.T) {
			lookups, accepted := g.names.lookups.Load(), g.origin.accepted.Load()
			c := g.call(t, "builder")
			a := c.ask(t, raw)
			r := g.next(t, audit.EventDecision)
			if a.reason() != row.want.String() || r.Reason != row.want.String() || r.Host != row.host || r.Status != a.status {
				t.Errorf("answered %s, record %+v, want %s for %s", a.phrase, r, row.want, row.host)
			}
			if row.want == allowlist.NoReason {
				_ = c.Close()
				_ = g.origin.next(t).Close()
				g.next(t, audit.EventTunnelClose)
				return
			}
			c.ended(t)
			if g.names.lookups.Load() != lookups || g.origin.accepted.Load() != accepted {
				t.Error("a lookup or a dial for a request that is refused")
			}
		})
	}
}
