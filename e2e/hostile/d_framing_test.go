package hostile

import (
	"slices"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// Lines of a valid CONNECT.
const (
	line = "CONNECT allowed.example:PORT HTTP/1.1\r\n"
	host = "Host: allowed.example:PORT\r\n"
)

// fields returns the cases of a valid CONNECT with field lines that are refused.
func fields(reason allowlist.Reason, all ...string) []scenario {
	var cases []scenario
	for _, text := range all {
		cases = append(cases, refusedAs(brief(printable(text)), reason, line+text+"\r\n")...)
	}
	return cases
}

// printable replaces control characters by names, for the name of a case.
func printable(text string) string {
	return strings.NewReplacer("\r\n ", "<fold>", "\r\n", "<CRLF>", "\n", "<LF>", "\r", "<CR>", "\x00", "<NUL>", "\t", "<TAB>").Replace(text)
}

func framingRows() []row {
	const (
		target = allowlist.MalformedTarget
		port   = allowlist.MalformedPort
		lines  = allowlist.MalformedRequestLine
		header = allowlist.MalformedHeader
	)
	return []row{
		{"D1", "a CONNECT whose Host field names something else: another host, another port, nothing, more than an authority", "400 `authority-mismatch`", fields(allowlist.AuthorityMismatch,
			"Host: other.example:PORT\r\n", "Host: other.example\r\n", "Host: allowed.example:1\r\n", "Host:\r\n", "Host: a@allowed.example:PORT\r\n",
			"Host: allowed.example:PORT/\r\n", "Host: allowed.example:PORT, other.example\r\n", "Host: allowed.example:0PORT\r\n", "Host: allowed.example:\r\n",
			"Host: allowed.example..\r\n", "Host: [allowed.example]:PORT\r\n", "Host: \xef\xbd\x81llowed.example\r\n")},
		{"D2", "a Host field without the port, in another case or with a final dot; HTTP/1.0 without one", "allowed: it names the same destination", []scenario{
			ask{name: "no port", head: line + "Host: allowed.example\r\n\r\n", host: "allowed.example", lookups: 1, dials: 1}.scenario(),
			ask{name: "another case", head: line + "hOST:   ALLOWED.example.:PORT \r\n\r\n", host: "allowed.example", lookups: 1, dials: 1}.scenario(),
			opens("CONNECT allowed.example:PORT HTTP/1.0\r\n\r\n", "allowed.example"),
		}},
		{"D3", "HTTP/1.1 without a Host field; two of them", "400 `missing-host`, `duplicate-host`", slices.Concat(
			fields(allowlist.MissingHost, "", "X: allowed.example\r\n"),
			fields(allowlist.DuplicateHost, host+host, host+"host: other.example\r\n", "Host:\r\n"+host),
			refusedAs("two in HTTP/1.0", allowlist.DuplicateHost, "CONNECT allowed.example:PORT HTTP/1.0\r\n"+host+host+"\r\n"))},
		{"D4", "anything but HOST:PORT in a CONNECT target: a URL, a path, a query, a fragment, userinfo, a backslash", "400 `malformed-target`", targets(target,
			"http://allowed.example:PORT/", "https://allowed.example:PORT", "//allowed.example:PORT", "allowed.example:PORT/", "allowed.example:PORT/path", "allowed.example:PORT?q", "allowed.example:PORT#f",
			"user@allowed.example:PORT", "user:pass@allowed.example:PORT", "allowed.example:PORT@evil.test:PORT", `allowed.example\:PORT`, "/allowed.example:PORT", "unix:/allowed.example:PORT")},
		{"D5", "no port, or one that is not 1 to 65535 in plain decimals", "400 `malformed-port`, `malformed-target`", slices.Concat(
			targets(port, "allowed.example:", "allowed.example:0", "allowed.example:+443", "allowed.example:00443", "allowed.example:65536", "allowed.example:65979", "allowed.example:-1",
				"allowed.example:https", "allowed.example:0x1bb", "allowed.example:443a", `allowed.example:PORT\`, "allowed.example:4294967739", "allowed.example:18446744073709552059", "[::1]:0", "[::1]:"),
			targets(target, "allowed.example", "allowed.example:443:22", "[::1]", "[::1]443"))},
		{"D6", "an allowed host on a port that no rule names; a rule whose date has passed", "denied as `port-not-allowed`, `rule-expired`", slices.Concat(
			twice(allowlist.PortNotAllowed, connectTo("allowed.example:22"), "allowed.example"),
			twice(allowlist.PortNotAllowed, connectTo("a.wild.example:443"), "a.wild.example"),
			twice(allowlist.RuleExpired, connectTo("expired.example:PORT"), "expired.example"))},
		{"D7", "a CONNECT to a destination that a rule allows only with `methods` or `paths`", "denied, because a tunnel could carry any method", slices.Concat(
			twice(allowlist.MethodNotAllowed, connectTo("read-only.example:PORT"), "read-only.example"),
			twice(allowlist.MethodNotAllowed, connectTo("public-path.example:PORT"), "public-path.example"))},
		{"D8", "bytes behind a refused CONNECT that look like a request, in the same segment or after the answer", "the connection closes, and the bytes are never read as a request", []scenario{
			behind("denied", "builder", connectTo("secret.example:443"), allowlist.NotOnAllowlist),
			behind("malformed", "builder", connectTo("allowed.example:0"), port),
			behind("without an identity", nobody, connectTo("allowed.example:443"), allowlist.IdentityMissing),
			behind("without an identity, HTTP/1.0", nobody, "CONNECT allowed.example:443 HTTP/1.0\r\n\r\n", allowlist.IdentityMissing),
			behind("with a length", "builder", connectTo("secret.example:443", "Content-Length: 1"), allowlist.NotOnAllowlist),
		}},
		{"D9", "CONNECT in lower or mixed case, tabs or two spaces in the request line, HTTP/0.9", "400 or 405", slices.Concat(
			refused(allowlist.ConnectOnly, strings.ToLower("CONNECT")+line[7:]+host+"\r\n"),
			refused(allowlist.ConnectOnly, "Connect"+line[7:]+host+"\r\n"),
			refusedAs("a tab", lines, "CONNECT\tallowed.example:PORT HTTP/1.1\r\n"+host+"\r\n"),
			refusedAs("two spaces before the target", lines, "CONNECT  allowed.example:PORT HTTP/1.1\r\n"+host+"\r\n"),
			refusedAs("two spaces behind it", lines, "CONNECT allowed.example:PORT  HTTP/1.1\r\n"+host+"\r\n"),
			refusedAs("a space before the method", lines, " "+line+host+"\r\n"),
			refusedAs("a space behind the version", lines, "CONNECT allowed.example:PORT HTTP/1.1 \r\n"+host+"\r\n"),
			refusedAs("no version", lines, "CONNECT allowed.example:PORT\r\n\r\n"),
			refusedAs("no target", lines, "CONNECT HTTP/1.1\r\n"+host+"\r\n"),
			refusedAs("a version in lower case", lines, "CONNECT allowed.example:PORT http/1.1\r\n"+host+"\r\n"),
			refusedAs("bare LF", lines, "CONNECT allowed.example:PORT HTTP/1.1\n"+host+"\r\n"),
			refusedAs("a TLS hello in clear", lines, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"))},
		{"D10", "another version in an HTTP/1 request line; the preface of HTTP/2 behind another request, or one that was changed", "505", slices.Concat(
			refused(allowlist.UnsupportedVersion, "CONNECT allowed.example:PORT HTTP/2.0\r\n"+host+"\r\n"),
			refused(allowlist.UnsupportedVersion, "CONNECT allowed.example:PORT HTTP/1.2\r\n"+host+"\r\n"),
			refused(allowlist.UnsupportedVersion, "CONNECT allowed.example:PORT HTTP/0.9\r\n"+host+"\r\n"),
			refused(allowlist.UnsupportedVersion, "PRI * HTTP/2.0\r\n\r\nSM\r\n\rx"),
			refusedAs("a preface with a field", allowlist.UnsupportedVersion, "PRI * HTTP/2.0\r\n"+host+"\r\nSM\r\n\r\n"),
			refused(allowlist.UnsupportedVersion, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[1:])}, // alone it begins HTTP/2
		{"D11", "a CONNECT with a Content-Length", "the length is ignored, and the bytes after the head are tunnel data", []scenario{
			carries("Content-Length: 3", connectTo("allowed.example:PORT", "Content-Length: 3"), "abcdef"),
			carries("two lengths", connectTo("allowed.example:PORT", "Content-Length: 3", "Content-Length: 6"), "abcdef"),
		}},
		{"D12", "a CONNECT with Transfer-Encoding", "400", slices.Concat(
			fields(header, host+"Transfer-Encoding: chunked\r\n", host+"transfer-encoding: identity\r\n", host+"Transfer-Encoding:\r\n", host+"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
			refusedAs("in HTTP/1.0", header, "CONNECT allowed.example:PORT HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"))},
		{"D13", "folded lines, bare LF, bare CR, NUL, a space before the colon, no colon, bytes that no name has", "400 `malformed-header`", fields(header,
			host+"X: a\r\n b\r\n", host+"X: a\r\n\tb\r\n", "Host: allowed.example:PORT\n", host+"X: a\rb\r\n", host+"X: a\x00b\r\n", host+"X: a\x7fb\r\n",
			"Host : allowed.example:PORT\r\n", " "+host, host+"X\r\n", host+": a\r\n", host+"X@: a\r\n", host+"X\xff: a\r\n", host+"X: a\r\n\n")},
		{"D14", "a head over the limit (64 KiB), 10,000 fields", "431 `head-too-large`, before policy", fields(allowlist.HeadTooLarge,
			host+"X: "+strings.Repeat("a", 70<<10)+"\r\n", host+strings.Repeat("X: a\r\n", 10_000), host+strings.Repeat("X: a\r\n", 257))},
		{"D15", "fields that claim an identity or an address: X-Forwarded-Client-Cert, X-Forwarded-For, roles, a forged Proxy-Status, Proxy-Authorization", "they never set the caller's identity or address", forged()},
		{"D16", "requests to the gateway itself: `OPTIONS *`, a path without a host", "400", slices.Concat(
			refused(target, "OPTIONS * HTTP/1.1\r\n"+host+"\r\n"),
			refused(target, "GET /livez HTTP/1.1\r\n"+host+"\r\n"),
			refused(target, "TRACE / HTTP/1.1\r\n"+host+"\r\n"))},
	}
}

// behind returns a case that sends a valid request behind one that is refused.
func behind(name, who, head string, want allowlist.Reason) scenario {
	return scenario{name: name, only: h1, run: func(t *testing.T, g *gateway) {
		good := g.fill(connectTo("allowed.example:PORT"))
		before := g.counts()
		c := g.call(t, who)
		if got := c.ask(t, g.fill(head)+good); got.reason() != want.String() || !got.close {
			t.Errorf("answered %s, closing: %v", got.phrase, got.close)
		}
		_, _ = c.Write([]byte(good))
		c.ended(t)
		if r := g.next(t, audit.EventDecision); r.Reason != want.String() {
			t.Errorf("record %+v", r)
		}
		if g.counts() != before {
			t.Error("a lookup or a dial for bytes behind a refusal")
		}
	}}
}

// carries returns a case that sends bytes behind a CONNECT. They must arrive at the
// origin unchanged.
func carries(name, head, early string) scenario {
	return scenario{name: name, run: func(t *testing.T, g *gateway) {
		c := g.call(t, "builder")
		if got := c.ask(t, g.fill(head)+early); got.status != 200 {
			t.Fatalf("answered %s", got.phrase)
		}
		g.next(t, audit.EventDecision)
		o := g.origin.next(t)
		c.send(t, "late")
		closeWrite(t, c.Conn)
		if got := readAll(t, o); got != early+"late" {
			t.Errorf("the origin got %.40q (%d bytes), want %.40q and late", got, len(got), early)
		}
		_ = o.Close()
		c.ended(t)
		if r := g.next(t, audit.EventTunnelClose); r.Up != int64(len(early)+4) {
			t.Errorf("%d bytes up, want %d", r.Up, len(early)+4)
		}
	}}
}

// forged returns the cases of fields that claim an identity or an address, each sent by
// builder and by a caller without a certificate.
func forged() []scenario {
	var cases []scenario
	for _, field := range []string{
		"X-Forwarded-Client-Cert: URI=spiffe://test.example/wide", "X-Forwarded-For: 10.0.0.1", "Forwarded: for=10.0.0.1", "X-Real-Ip: 10.0.0.1", "X-Role: admin",
		"Proxy-Status: exeat; reason=allowed", "Proxy-Authorization: Basic d2lkZTp3aWRl", "Authorization: Bearer wide", "X-Spiffe-Id: spiffe://test.example/wide",
	} {
		cases = append(cases,
			scenario{name: field + ", by builder", run: func(t *testing.T, g *gateway) {
				c := g.call(t, "builder")
				if got := c.ask(t, g.fill(connectTo("allowed.example:PORT", field))); got.status != 200 {
					t.Fatalf("answered %s", got.phrase)
				}
				if r := g.next(t, audit.EventDecision); r.Identity != id("builder") || r.Source != "x509-svid" || r.Client != c.LocalAddr().String() {
					t.Errorf("record %+v", r)
				}
				g.finish(t, c, g.origin)
			}},
			ask{
				name: field + ", by nobody", who: nobody, head: connectTo("allowed.example:PORT", field),
				reason: allowlist.IdentityMissing, host: "allowed.example",
			}.scenario())
	}
	return cases
}
