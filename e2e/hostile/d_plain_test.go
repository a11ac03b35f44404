package hostile

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// Lines of a valid plain request.
const (
	getLine = "GET http://allowed.example:PORT/ HTTP/1.1\r\n"
	post    = "POST http://allowed.example:PORT/ HTTP/1.1\r\n" + host
)

// get returns a plain request for a URL. fields are field lines without their ends.
func get(url string, fields ...string) string {
	authority, _, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	head := "GET " + url + " HTTP/1.1\r\nHost: " + authority + "\r\n"
	for _, f := range fields {
		head += f + "\r\n"
	}
	return head + "\r\n"
}

// urls returns the cases of targets of plain requests that are refused before policy.
func urls(reason allowlist.Reason, all ...string) []scenario {
	var cases []scenario
	for _, url := range all {
		cases = append(cases, refusedAs(brief("GET "+url), reason, "GET "+url+" HTTP/1.1\r\n"+host+"\r\n")...)
	}
	return cases
}

// framing returns the cases of a POST with fields by which two readers might see
// different ends of its body.
func framing(all ...string) []scenario {
	var cases []scenario
	for _, text := range all {
		cases = append(cases, refusedAs(brief(printable(text)), allowlist.MalformedHeader, post+text+"\r\n\r\n0\r\n\r\n")...)
	}
	return cases
}

// twice returns two cases of a request that policy denies: alone on a connection, and
// behind a request that was allowed.
func twice(reason allowlist.Reason, head, host string) []scenario {
	a := ask{head: head, reason: reason, host: host}
	return []scenario{a.scenario(), a.behindAllowed()}
}

// behindAllowed returns the case of the request behind one that was allowed.
func (a ask) behindAllowed() scenario {
	return scenario{name: a.title() + ", behind an allowed request", only: wireOf(a.head, a.reason), run: func(t *testing.T, g *gateway) {
		c := g.callAlone(t, "builder")
		forwarded{}.on(t, g, c)
		a.on(t, g, c)
	}}
}

// forwarded is a plain request that reaches the origin.
type forwarded struct {
	head   string // head and body; "" means a valid request
	answer string // field lines of the origin's answer

	sees  []string // texts that the origin must get
	never []string
	back  []string // names of fields that the caller must not get
}

func (f forwarded) named(name string) scenario {
	only := anyWire
	if f.head != "" {
		only = wireOf(f.head, allowlist.NoReason)
	}
	return scenario{name: name, only: only, run: func(t *testing.T, g *gateway) { f.on(t, g, g.call(t, "builder")) }}
}

// on sends the request and checks everything about it. The origin closes its connection
// after the answer, so that each request gets a connection of its own.
func (f forwarded) on(t *testing.T, g *gateway, c *caller) {
	t.Helper()
	head := f.head
	if head == "" {
		head = getLine + host + "\r\n"
	}
	c.send(t, g.fill(head))
	o := g.origin.next(t)
	got := strings.ToLower(f.serve(t, o))
	for _, part := range f.sees {
		if !strings.Contains(got, strings.ToLower(g.fill(part))) {
			t.Errorf("the origin got %q, want %q in it", got, g.fill(part))
		}
	}
	for _, part := range f.never {
		if strings.Contains(got, strings.ToLower(part)) {
			t.Errorf("the origin got %q, with %q", got, part)
		}
	}
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: http.MethodGet})
	if err != nil {
		t.Fatal(err)
	}
	body := readAll(t, resp.Body)
	if resp.StatusCode != 200 || body != "ok" {
		t.Errorf("answered %s %q", resp.Status, body)
	}
	for _, name := range f.back {
		if _, ok := resp.Header[name]; ok {
			t.Errorf("the caller got %s: %s", name, resp.Header[name])
		}
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "allow" || r.Status != 200 || r.Protocol != "http" {
		t.Errorf("record %+v", r)
	}
	g.next(t, audit.EventTunnelClose)
}

// serve reads a request at the origin and answers it. It returns what it read.
func (f forwarded) serve(t *testing.T, o *net.TCPConn) string {
	t.Helper()
	defer func() { _ = o.Close() }()
	var raw strings.Builder
	req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(o, &raw)))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, req.Body)
	fields := f.answer
	if _, err := io.WriteString(o, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n"+fields+"\r\nok"); err != nil {
		t.Fatal(err)
	}
	return raw.String()
}

// onlyOverH1 returns cases that HTTP/2 does not have.
func onlyOverH1(cases ...scenario) []scenario {
	for i := range cases {
		cases[i].only = h1
	}
	return cases
}

// plainRows returns the rows about plain requests. They follow the rows about CONNECT.
func plainRows() []row {
	const target = allowlist.MalformedTarget
	return []row{
		{"D17", "a plain request whose Host names something else", "the target is decided on, and the origin gets the target's host as Host", onlyOverH1(
			forwarded{head: getLine + "Host: evil.test\r\n\r\n", sees: []string{"\r\nhost: allowed.example:PORT\r\n"}, never: []string{"evil"}}.named("another host"),
			forwarded{head: "GET http://Allowed.EXAMPLE.:PORT/ HTTP/1.1\r\nHost: x\r\n\r\n", sees: []string{"\r\nhost: allowed.example:PORT\r\n"}}.named("another spelling of the target"),
			forwarded{head: "GET http://allowed.example:PORT/ HTTP/1.0\r\n\r\n", sees: []string{"\r\nhost: allowed.example:PORT\r\n"}}.named("HTTP/1.0 without Host"),
		)},
		{"D18", "a plain target with userinfo, without `//`, without a host, in origin form; a host or port that is refused above", "400; the gateway never uses Host instead", slices.Concat(
			urls(target, "http://allowed.example@evil/", "http://u:p@allowed.example:PORT/", "http:allowed.example/", "http:/allowed.example/", "http:///p", "http://", "//evil/", "/", "*",
				`http://allowed.example:PORT\@evil.test/`, "http://allowed.example..:PORT/", "http://127.1:PORT/", "http://[fe80::1%25eth0]:PORT/", "http://allowed%2eexample:PORT/", "http://xn--a.example:PORT/",
				"http://allowed.example:PORT/#f", "http://allowed.example:PORT/%zz", "http://allowed.example:PORT/\xc3\xa9", `http://allowed.example:PORT/\a`),
			urls(allowlist.MalformedPort, "http://allowed.example:0/", "http://allowed.example:+80/", "http://allowed.example:00080/", "http://allowed.example:65536/"))},
		{"D19", "`https:`, `wss:`, `ftp:`, `file:`, `unix:` and others in clear; `ws:` without an upgrade to a WebSocket", "400", urls(target,
			"https://allowed.example:PORT/", "ftp://allowed.example:PORT/", "file:///etc/passwd", "unix:/run/x", "wss://allowed.example:PORT/", "HTTPS://allowed.example:PORT/", "javascript:x")},
		{"D20", "a body whose end two readers may find at different places: a length and chunks, two lengths, signs, lists, unknown codings, chunks in HTTP/1.0", "400, and the connection closes", append(framing(
			"Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5\r\nContent-Length: 5",
			"Content-Length: 5, 5", "Content-Length: +5", "Content-Length: -1", "Content-Length: 0x5", "Content-Length: 99999999999999999999", "Content-Length:", "Transfer-Encoding: xchunked",
			"Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding:\r\n chunked", "Transfer-Encoding : chunked", "Transfer-Encoding: \"chunked\""),
			refusedAs("HTTP/1.0", allowlist.MalformedHeader, "POST http://allowed.example:PORT/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")...)},
		{"D21", "a path that leads out of the path of a rule: dot segments, encoded slashes, dots and backslashes, `//`, `;`, `\\`", "400; denied if it is a well-formed path that no rule has", slices.Concat(
			paths("/public/../admin", "/public/..%2fadmin", "/public/%2e%2e/admin", "/public/.%2E/admin", "/public//x", "/public/x;y", `/public\x`, "/public/%5cx", "/public/.", "/public/%00", "/public/.."),
			twice(allowlist.PathNotAllowed, get("http://public-path.example:PORT/public"), "public-path.example"),
			twice(allowlist.PathNotAllowed, get("http://public-path.example:PORT/admin"), "public-path.example"),
			twice(allowlist.PathNotAllowed, get("http://public-path.example:PORT/publicx"), "public-path.example"),
			twice(allowlist.PathNotAllowed, get("http://public-path.example:PORT/PUBLIC/x"), "public-path.example"),
			[]scenario{forwarded{head: get("http://public-path.example:PORT/public/x?q=../admin"), sees: []string{"get /public/x?q=../admin http/1.1\r\n"}}.named("the path itself")})},
		{"D22", "a method that the rule does not name; `OPTIONS` without a path, which asks about the server itself, where a rule has `paths`", "denied; without `paths` it goes out as `OPTIONS *`", slices.Concat(
			twice(allowlist.MethodNotAllowed, "POST http://read-only.example:PORT/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "read-only.example"),
			twice(allowlist.MethodNotAllowed, "get http://read-only.example:PORT/ HTTP/1.1\r\nHost: x\r\n\r\n", "read-only.example"),
			twice(allowlist.MethodNotAllowed, "OPTIONS http://read-only.example:PORT HTTP/1.1\r\nHost: x\r\n\r\n", "read-only.example"),
			twice(allowlist.PathNotAllowed, "OPTIONS http://public-path.example:PORT HTTP/1.1\r\nHost: x\r\n\r\n", "public-path.example"),
			[]scenario{forwarded{head: "OPTIONS http://allowed.example:PORT HTTP/1.1\r\nHost: x\r\n\r\n", sees: []string{"options * http/1.1\r\n"}}.named("the server itself")})},
		{"D23", "a plain request to a destination for which the rule requires TLS", "denied as `not-tls`", twice(allowlist.NotTLS, get("http://strict.example:PORT/"), "strict.example")},
		{"D24", "fields that concern one connection only, of the caller or the origin: those that Connection names, whatever else it names; TE, Keep-Alive, Proxy-*, Upgrade, Trailer", "not sent on; a field that the gateway sets is sent even if Connection names it", []scenario{
			forwarded{head: get("http://allowed.example:PORT/", "Connection: X-Secret, close-ish", "X-Secret: 1", "TE: trailers", "Keep-Alive: 5", "Proxy-Authorization: Basic x", "Proxy-Connection: keep-alive", "Trailer: X", "Close-Ish: 1"), never: []string{"x-secret", "close-ish", "\r\nte:", "keep-alive", "proxy-", "trailer"}}.named("all of them"),
			forwarded{head: "POST http://allowed.example:PORT/ HTTP/1.1\r\nHost: x\r\nConnection: Host, Content-Length, Via\r\nContent-Length: 3\r\n\r\nabc", sees: []string{"\r\nhost: allowed.example:PORT\r\n", "\r\ncontent-length: 3\r\n", "\r\nvia: "}}.named("Host, Content-Length and Via"),
			forwarded{answer: "Connection: keep-alive ,\tX-SECRET\r\nx-secret: 1\r\nX-Secret: 2\r\nKeep-Alive: timeout=5\r\n", back: []string{"X-Secret", "Keep-Alive", "Connection"}}.named("from an origin that closes"),
		}},
		{"D25", "two requests in one segment, an allowed one and one that is not", "each is decided on its own", []scenario{
			{name: "to another host", only: h1, run: func(t *testing.T, g *gateway) {
				c := g.call(t, "builder")
				forwarded{head: getLine + host + "\r\n" + get("http://evil.test/"), never: []string{"evil"}}.on(t, g, c)
				if got := c.answer(t); got.reason() != "not-on-allowlist" {
					t.Errorf("answered %s", got.phrase)
				}
				if r := g.next(t, audit.EventDecision); r.Host != "evil.test" || r.Verdict != "deny" {
					t.Errorf("record %+v", r)
				}
				_ = c.Close()
			}},
			{name: "behind a body", only: h1, run: func(t *testing.T, g *gateway) {
				c := g.call(t, "builder")
				forwarded{head: post + "Content-Length: 5\r\n\r\nabcde" + get("http://evil.test/"), sees: []string{"\r\n\r\nabcde"}, never: []string{"evil"}}.on(t, g, c)
				if got := c.answer(t); got.reason() != "not-on-allowlist" {
					t.Errorf("answered %s", got.phrase)
				}
				g.next(t, audit.EventDecision)
				_ = c.Close()
			}},
		}},
		{"D26", "fields of a request that claim an identity or an address; a forged Proxy-Status or X-Exeat-* from the origin", "not sent on, to the origin or to the caller", []scenario{
			forwarded{head: get("http://allowed.example:PORT/", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Client-Cert: URI=x", "Forwarded: for=10.0.0.1", "X-Real-IP: 10.0.0.1", "X-Exeat-Decision: 1"), never: []string{"forwarded", "10.0.0.1", "x-exeat"}}.named("to the origin"),
			forwarded{answer: "Proxy-Status: exeat; error=x\r\nX-Exeat-Decision: forged\r\nProxy-Authenticate: Basic\r\nKeep-Alive: timeout=5\r\n", back: []string{"Proxy-Status", "X-Exeat-Decision", "Proxy-Authenticate", "Keep-Alive"}}.named("from the origin"),
		}},
		{"D27", "the health path in absolute form", "an ordinary destination, never a local answer", slices.Concat(
			twice(allowlist.IPNotOnAllowlist, get("http://127.0.0.1/livez"), "127.0.0.1"),
			twice(allowlist.NotOnAllowlist, get("http://localhost:PORT/readyz"), "localhost"))},
		{"D28", "plain requests to destinations to which a CONNECT would be denied", "denied alike", slices.Concat(
			twice(allowlist.NotOnAllowlist, get("http://evil.test/"), "evil.test"),
			twice(allowlist.DeniedByRule, get("http://denied.wild.example:PORT/"), "denied.wild.example"),
			twice(allowlist.PortNotAllowed, get("http://allowed.example:22/"), "allowed.example"),
			twice(allowlist.IPNotOnAllowlist, get("http://[::ffff:169.254.169.254]/"), "169.254.169.254"),
			[]scenario{ask{who: nobody, head: get("http://allowed.example:PORT/"), reason: allowlist.IdentityMissing, host: "allowed.example"}.scenario()})},
		{"D29", "an answer whose end two readers may find at different places: chunks in HTTP/1.0, lengths that differ, unknown codings, a space before the colon; one of another version, with more than 256 fields, or with a head over 64 KiB", "502 `response-failed`; no part of the answer is sent on", noAnswers(
			"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\nok", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
			"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/0.9 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok",
			"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
			"HTTP/1.1 200 OK\r\n"+strings.Repeat("X: a\r\n", 257)+"Content-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("a", 80<<10)+"\r\n\r\n")},
		loginRow(),
		readOtherwise(),
		{"D32", "an upgrade that the client can do without, such as h2c; a WebSocket; an upgrade to another form of HTTP where upgrades are allowed", "the rule's `upgrade: true` decides: without it the upgrade is dropped and the request goes on as a plain one, but a WebSocket is denied as `upgrade-not-allowed`; h2c, HTTP and TLS are dropped under every rule, since no decision would be made about the requests in them", slices.Concat(
			dropped("allowed.example:PORT/", "h2c", "TLS/1.0", "spdy/3.1", "websockets, h2c"), dropped("read-only.example:PORT/", "h2c"), dropped("public-path.example:PORT/public/x", "h2c"),
			dropped("chat.example:PORT/chat/x", "h2c", "H2C", "h2c-16", "HTTP/2.0, TLS/1.0"),
			twice(allowlist.MethodNotAllowed, "POST http://chat.example:PORT/chat/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "chat.example"),
			twice(allowlist.PathNotAllowed, get("http://chat.example:PORT/admin", "Connection: Upgrade", "Upgrade: websocket"), "chat.example"),
			twice(allowlist.PathNotAllowed, get("http://chat.example:PORT/admin", "Connection: Upgrade", "Upgrade: h2c"), "chat.example"),
			demanded("websocket", "WebSocket/13", "h2c, WEBSOCKET", "websocket,"))},
		undecided(),
	}
}

// readOtherwise is the row about texts that some servers read otherwise than the rule
// did.
func readOtherwise() row {
	target := "GET http://public-path.example:PORT/public/x HTTP/1.1\r\nHost: x\r\n"
	overrides := "X-Original-URL: /secret\r\nX-Rewrite-URL: /secret\r\nX_Original_URL: /secret\r\nX.Rewrite.Url: /secret\r\nX-HTTP-Method-Override: secret\r\nX-HTTP-Method: secret\r\nX-Method-Override: secret\r\n" +
		"X-Original-Method: secret\r\nX-Remote-User: secret\r\nDestination: /secret\r\n"
	always := "Proxy: secret\r\nX_Forwarded_For: secret\r\nX-Forwarded: secret\r\nProxy_Authorization: secret\r\nX_Exeat_Decision: secret\r\nContent_Length: 7\r\nTransfer_Encoding: secret\r\nKeep_Alive: secret\r\n"
	never := []string{"secret", "content_length"}
	return row{"D31", "under `paths`, an escape that is not UTF-8, or that decodes to a dot, a slash or another delimiter in any width or form; under `methods` or `paths`, fields that servers take for the path, the method or the caller; and any field that is not sent on, in a spelling that CGI takes for the same", "400; the fields are not sent on", slices.Concat(
		paths("/public/%c0%ae%c0%ae%c0%afsecret", "/public/%e0%80%af", "/public/%f0%80%80%ae", "/public/%80", "/public/%ed%a0%80", "/public/%c3", "/public/..%3f", "/public/%23", "/public/%252e%252e%252fsecret", "/public/%3b",
			"/public/%ef%bc%8f", "/public/%ef%bc%8e%ef%bc%8e/secret", "/public/%e2%80%a4%e2%80%a4/secret", "/public/%e2%80%a5/secret", "/public/%e2%88%95", "/public/%e2%81%84", "/public/%ef%bc%bc", "/public/%e3%80%82", "/public/%ef%b9%92",
			"/public/.%e2%80%8b./secret", "/public/%c2%a0", "/public/.%20./secret", "/public/%u002e%u002e/secret", "/public/%0a"),
		[]scenario{
			forwarded{head: get("http://public-path.example:PORT/public/caf%c3%a9%20%2b"), sees: []string{"get /public/caf%c3%a9%20%2b http/1.1\r\n"}}.named("other escapes"),
			forwarded{head: target + overrides + "\r\n", never: never}.named("fields under paths"),
			forwarded{head: "GET http://read-only.example:PORT/ HTTP/1.1\r\nHost: x\r\n" + strings.ReplaceAll(overrides, "Destination: /secret\r\n", "Destination: /kept\r\n") + "\r\n", sees: []string{"\r\ndestination: /kept\r\n"}, never: never}.named("fields under methods"),
			forwarded{head: getLine + host + "X-Original-URL: /kept\r\nX-HTTP-Method-Override: kept\r\n" + always + "\r\n", sees: []string{"\r\nx-original-url: /kept\r\n", "\r\nx-http-method-override: kept\r\n"}, never: never}.named("fields that are never sent on"),
			forwarded{head: post + "Transfer-Encoding: chunked\r\nTrailer: X_Forwarded_For, X-Original-URL, X-Sum\r\n\r\n0\r\nX_Forwarded_For: secret\r\nX-Original-URL: secret\r\nX-Sum: 1\r\n\r\n", never: []string{"secret", "forwarded", "original"}}.named("trailers"),
			forwarded{head: getLine + host + "Connection: X-Named\r\nX_Named: secret\r\n\r\n", never: never}.named("a twin of a field that Connection names"),
		})}
}

// undecided is the row about parts of a request that no decision depends on.
func undecided() row {
	out := func(name, before, target, line string) scenario {
		return forwarded{head: before + "GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n", sees: []string{line + " http/1.1\r\nhost: allowed.example:PORT\r\n"}}.named(name)
	}
	const good = "http://allowed.example:PORT"
	return row{"D33", "a query with a bare `%`, a backslash, `#` or bytes beyond ASCII; the scheme in capitals; an empty port; up to 16 empty lines before a request; `ws:`", "the query goes out byte for byte; an empty port is 80; `ws:` is `http:` with an upgrade, and denied where the rule has none; a query with a space, a tab, CR or NUL, or more empty lines, is 400", slices.Concat(
		[]scenario{
			out("a bare percent sign", "", good+"/a?b=100%&c=%zz", "get /a?b=100%&c=%zz"),
			out("a backslash", "", good+`/a?b=..\c`, `get /a?b=..\c`),
			out("a number sign", "", good+"/a?b#c", "get /a?b#c"),
			out("UTF-8 and other bytes", "", good+"/a?caf\xc3\xa9", "get /a?caf\xc3\xa9"),
			out("no path", "", good+`?\%`, `get /?\%`),
			out("the scheme in capitals", "", "HTTP://Allowed.example.:PORT/", "get /"),
			out("an empty line", "\r\n", good+"/", "get /"),
			out("sixteen empty lines", strings.Repeat("\r\n", 16), good+"/", "get /"),
		},
		twice(allowlist.NotOnAllowlist, "GET http://evil.test:/ HTTP/1.1\r\nHost: x\r\n\r\n", "evil.test"),
		twice(allowlist.UpgradeNotAllowed, get("ws://allowed.example:PORT/", "Connection: Upgrade", "Upgrade: websocket"), "allowed.example"),
		twice(allowlist.UpgradeNotAllowed, get("WS://allowed.example:PORT/"), "allowed.example"),
		refusedAs("seventeen empty lines", allowlist.MalformedRequestLine, strings.Repeat("\r\n", 17)+getLine+host+"\r\n"),
		refusedAs("an empty line of LF", allowlist.MalformedRequestLine, "\n"+getLine+host+"\r\n"),
		refusedAs("a space in the query", allowlist.MalformedRequestLine, "GET "+good+"/?a b HTTP/1.1\r\n"+host+"\r\n"),
		refusedAs("a tab in the query", allowlist.MalformedRequestLine, "GET "+good+"/?a\tb HTTP/1.1\r\n"+host+"\r\n"),
		refusedAs("CR in the query", allowlist.MalformedRequestLine, "GET "+good+"/?a\rb HTTP/1.1\r\n"+host+"\r\n"),
		refusedAs("NUL in the query", allowlist.MalformedRequestLine, "GET "+good+"/?a\x00b HTTP/1.1\r\n"+host+"\r\n"))}
}

// dropped returns the cases of upgrades that are dropped; the request goes on without.
func dropped(url string, protocols ...string) []scenario {
	var cases []scenario
	for _, p := range protocols {
		head := get("http://"+url, "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", "Upgrade: "+p)
		cases = append(cases, forwarded{head: head, never: []string{"upgrade", "http2-settings", "connection:"}}.named(p+" of "+url))
	}
	return cases
}

// demanded returns the cases of upgrades that are denied, since the client could use no
// other answer.
func demanded(protocols ...string) []scenario {
	var cases []scenario
	for _, p := range protocols {
		for _, host := range []string{"allowed.example", "read-only.example", "public-path.example"} {
			cases = append(cases, twice(allowlist.UpgradeNotAllowed, get("http://"+host+":PORT/public/x", "Connection: Upgrade", "Upgrade: "+p), host)...)
		}
	}
	return cases
}

// noAnswers returns the cases of texts from the origin that are no valid answer.
func noAnswers(all ...string) []scenario {
	var cases []scenario
	for _, text := range all {
		cases = append(cases, scenario{name: brief(printable(text)), run: func(t *testing.T, g *gateway) {
			c := g.call(t, "builder")
			c.send(t, g.fill(getLine+host+"\r\n"))
			o := g.origin.next(t)
			if _, err := http.ReadRequest(bufio.NewReader(o)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(o, text) // the gateway may close before it has read all of it
			_ = o.Close()
			got := c.answer(t)
			for got.status/100 == 1 {
				got = c.answer(t)
			}
			if got.reason() != "response-failed" || got.status != 502 {
				t.Errorf("answered %s %q", got.phrase, got.body)
			}
			if r := g.next(t, audit.EventDecision); r.Verdict != "fail" || r.Reason != "response-failed" {
				t.Errorf("record %+v", r)
			}
			g.next(t, audit.EventTunnelClose)
			forwarded{}.on(t, g, c)
			_ = c.Close()
		}})
	}
	return cases
}

// paths returns the cases of malformed paths, sent to the host whose rule has paths.
func paths(all ...string) []scenario {
	var cases []scenario
	for _, path := range all {
		cases = append(cases, twice(allowlist.MalformedTarget, get("http://public-path.example:PORT"+path), anyHost)...)
	}
	return cases
}

// warmed lets builder leave an open connection to the origin behind, and then sends a
// request for the same host as an identity whose rule does not allow the origin's
// address.
func warmed(t *testing.T, g *gateway) {
	g.names.say("allowed.example")
	c := g.call(t, "builder")
	c.send(t, g.fill(get("http://allowed.example:PORT/")))
	o := g.origin.next(t)
	reader := bufio.NewReader(o)
	if _, err := http.ReadRequest(reader); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(o, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") // the connection stays open
	if got := c.answer(t); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
	ask{
		who: "unopened", head: get("http://allowed.example:PORT/secret"), host: "allowed.example", lookups: 1,
		reason: allowlist.ResolvedAddressDenied, class: allowlist.Loopback, drops: 1,
	}.run(t, g)
	// A busy gateway may have closed the connection, but it must not have used it.
	_ = o.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := reader.Read(make([]byte, 1)); n > 0 {
		t.Error("the origin got bytes of the other identity")
	} else if errors.Is(err, io.EOF) {
		t.Log("the connection was not kept")
	}
	_ = o.Close()
	_ = c.Close()
}
