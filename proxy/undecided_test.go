package proxy_test

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestPartsThatNoDecisionDependsOnAreSentUnchanged checks, byte for byte, what an origin
// receives of the parts of a request that no decision depends on.
func TestPartsThatNoDecisionDependsOnAreSentUnchanged(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder") // one connection for all, so that each request also follows another one
	var every strings.Builder // all bytes that neither end nor divide the request line
	for b := range 256 {
		if b > ' ' && b != 0x7f {
			every.WriteByte(byte(b))
		}
	}
	for name, row := range map[string]struct{ before, target, line string }{
		"a bare percent sign in a query":        {"", "http://HOST/a?%", "GET /a?%"},
		"half an escape in a query":             {"", "http://HOST/a?b=%2&c=100%", "GET /a?b=%2&c=100%"},
		"no escape in a query":                  {"", "http://HOST/a?%zz%u0041", "GET /a?%zz%u0041"},
		"a backslash in a query":                {"", `http://HOST/a?b=c\d`, `GET /a?b=c\d`},
		"a number sign in a query":              {"", "http://HOST/a?b#c", "GET /a?b#c"},
		"UTF-8 in a query":                      {"", "http://HOST/a?q=caf\xc3\xa9", "GET /a?q=caf\xc3\xa9"},
		"Latin-1 in a query":                    {"", "http://HOST/a?q=caf\xe9", "GET /a?q=caf\xe9"},
		"every byte in a query":                 {"", "http://HOST/a?" + every.String(), "GET /a?" + every.String()},
		"every byte behind a path like a host":  {"", "http://HOST/a/./../%2e?" + every.String(), "GET /a/./../%2e?" + every.String()},
		"a query without a path":                {"", `http://HOST?a\%b`, `GET /?a\%b`},
		"an empty query":                        {"", "http://HOST/?", "GET /?"},
		"two question marks":                    {"", "http://HOST/??", "GET /??"},
		"the scheme in capitals":                {"", "HTTP://HOST/a", "GET /a"},
		"the scheme in both":                    {"", "hTtP://HOST/a", "GET /a"},
		"an empty line before it":               {"\r\n", "http://HOST/a", "GET /a"},
		"sixteen empty lines before it":         {strings.Repeat("\r\n", 16), "http://HOST/a", "GET /a"},
		"a query under a rule with paths":       {"", `http://PATHS/public/x?..\..%2f%`, `GET /public/x?..\..%2f%`},
		"the scheme under a rule with methods":  {"", "HTTP://METHODS/?%", "GET /?%"},
		"an origin in another case, with a dot": {"", "HTTP://ALLOWED.example.:PORT?%", "GET /?%"},
	} {
		t.Run(name, func(t *testing.T) {
			authority := strings.NewReplacer("HOST", r.at("allowed.example"), "PATHS", r.at("public-path.example"), "METHODS", r.at("read-only.example"), ":PORT", strings.TrimPrefix(r.at("x"), "x"))
			a := c.ask(t, row.before+"GET "+authority.Replace(row.target)+" HTTP/1.1\r\nHost: x\r\n\r\n")
			if a.status != 200 || a.close {
				t.Fatalf("answered %s", a.phrase)
			}
			if got := r.received(t).raw; !strings.HasPrefix(got, row.line+" HTTP/1.1\r\nHost: ") {
				t.Errorf("the origin got %q, want the line %q", got, row.line)
			}
			if d, _ := r.carried(t); d.Verdict != "allow" {
				t.Errorf("record %+v", d)
			}
		})
	}
}

// TestEmptyPortIsThatOfTheScheme checks that an empty port means 80 in a plain request. A
// CONNECT has no scheme, and is refused.
func TestEmptyPortIsThatOfTheScheme(t *testing.T) {
	g := newGateway(t, options{})
	for target, host := range map[string]string{
		"http://evil.example:/": "evil.example", "http://evil.example:?q": "evil.example", "http://evil.example:": "evil.example", "HTTP://[2001:4860::1]:/": "2001:4860::1",
	} {
		if a := g.call(t, "builder").ask(t, "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n"); a.status != 403 {
			t.Errorf("%s: answered %s", target, a.phrase)
		}
		if d := g.next(t, audit.EventDecision); d.Host != host || d.Port != 80 {
			t.Errorf("%s: record %+v", target, d)
		}
	}
	if a := g.call(t, "builder").ask(t, connectTo("allowed.example:")); a.reason() != "malformed-port" {
		t.Errorf("CONNECT: answered %s", a.phrase)
	}
	g.next(t, audit.EventDecision)
}

// TestWebSocketURLs checks that a ws URL is treated like an http URL with the fields of an
// upgrade to WebSocket.
func TestWebSocketURLs(t *testing.T) {
	g := newGateway(t, options{})
	upgrade := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"}
	for scheme, fields := range map[string][]string{ // the scheme alone requests the upgrade
		"ws": upgrade, "WS": nil, "wS": {"Connection: Upgrade", "Upgrade: h2c"}, "Ws": {"Upgrade: websocket"},
	} {
		c := g.call(t, "builder")
		c.send(t, get(scheme+"://"+g.at("ws.example")+"/chat?a=%", fields...))
		conn := g.origin.next(t)
		reader := bufio.NewReader(conn)
		line, err := reader.Peek(len("GET /chat?a=% HTTP/1.1\r\n"))
		if err != nil || string(line) != "GET /chat?a=% HTTP/1.1\r\n" {
			t.Errorf("the origin got %q, %v", line, err)
		}
		req, err := http.ReadRequest(reader)
		if err != nil || req.Host != g.at("ws.example") || req.Header.Get("Upgrade") != "websocket" {
			t.Fatalf("the origin got %+v, %v", req, err)
		}
		agree(t, c, conn)
		echo(t, c, conn, reader)
		_ = conn.Close()
		c.gone(t)
		if d := g.next(t, audit.EventDecision); d.Status != 101 || d.Host != "ws.example" {
			t.Errorf("record %+v", d)
		}
		g.next(t, audit.EventTunnelClose)
	}
	before := g.origin.accepted.Load()
	for name, row := range map[string]struct {
		raw    string
		status int
	}{
		"HTTP/1.0":              {strings.Replace(get("ws://"+g.at("ws.example")+"/", upgrade...), "HTTP/1.1", "HTTP/1.0", 1), 400},
		"with a body":           {plainTo("POST", "ws://"+g.at("ws.example")+"/", append(upgrade, "Content-Length: 1")...) + "x", 400},
		"no rule for upgrades":  {get("ws://"+g.at("allowed.example")+"/", upgrade...), 403},
		"no rule and no fields": {get("ws://" + g.at("allowed.example") + "/"), 403},
		"no rule":               {get("ws://"+g.at("evil.example")+"/", upgrade...), 403},
		"over TLS":              {get("wss://"+g.at("ws.example")+"/", upgrade...), 400},
	} {
		if a := g.call(t, "builder").ask(t, row.raw); a.status != row.status {
			t.Errorf("%s: answered %s", name, a.phrase)
		}
		if d := g.next(t, audit.EventDecision); d.Verdict != "deny" || d.Status != row.status {
			t.Errorf("%s: record %+v", name, d)
		}
	}
	if n := g.origin.accepted.Load(); n != before {
		t.Errorf("%d connections to the origin", n-before)
	}
}

// TestRefusalNamesItsCause checks the cause of a refusal in the answer and in the record.
func TestRefusalNamesItsCause(t *testing.T) {
	g := newGateway(t, options{})
	for target, cause := range map[string]string{
		"http://secret@allowed.example/":     "malformed target: it has userinfo",
		"http://allowed.example/secret%":     "malformed target: the path has an escape that is not two hexadecimal digits",
		"http://s\xc3\xa9cret.example/":      "malformed host: it has a non-ASCII byte (write an international name as its A-label)",
		"http://allowed.example/s\xe9cret":   "malformed target: the path has a non-ASCII byte",
		"http://allowed.example:secret/":     "malformed port: want 1 to 65535 in decimal",
		"https://allowed.example/secret":     "malformed target: the scheme is not http",
		"/secret":                            "malformed target: want http://HOST/",
		"http:///secret":                     "malformed host: it is missing",
		"http://allowed.example/secret#":     "malformed target: it has a fragment",
		`http://allowed.example/\secret`:     "malformed target: it has a backslash before the query",
		"http://secret%2eexample/":           "malformed host: it has an escape",
		"CONNECT secret@allowed.example:443": "malformed target: it has userinfo",
		"CONNECT s\xc3\xa9cret.example:443":  "malformed host: it has a non-ASCII byte (write an international name as its A-label)",
		"CONNECT secret.example":             "malformed target: want HOST:PORT",
		"CONNECT secret.example:":            "malformed port: want 1 to 65535 in decimal",
	} {
		line := target
		if !strings.HasPrefix(line, "CONNECT ") {
			line = "GET " + line
		}
		a := g.call(t, "builder").ask(t, line+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if a.status != 400 || !strings.Contains(a.phrase, "egress refused: "+cause+";") || !strings.Contains(a.body, cause) || strings.Contains(a.phrase+a.body, "cret") {
			t.Errorf("%q: answered %s %s, want %s", target, a.phrase, a.body, cause)
		}
		if d := g.next(t, audit.EventDecision); d.Detail != cause || d.Reason != a.reason() {
			t.Errorf("%q: record %+v, want %s", target, d, cause)
		}
	}
}

// TestEmptyLinesAreNoRequest checks that a connection on which only empty lines came
// leaves no record, however it ends, and is not kept longer because of them. More than
// sixteen empty lines are a malformed request.
func TestEmptyLinesAreNoRequest(t *testing.T) {
	g := newGateway(t, options{headTimeout: 50 * time.Millisecond})
	for _, name := range []string{"closed", "silent"} {
		c := g.call(t, "builder")
		c.send(t, "\r\n\r\n\r\n")
		if name == "closed" {
			closeWrite(t, c.Conn)
		}
		c.gone(t)
	}
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("records %+v", left)
	}
	g = newGateway(t, options{})
	c := g.call(t, "builder")
	if a := c.ask(t, strings.Repeat("\r\n", 17)); a.reason() != allowlist.MalformedRequestLine.String() {
		t.Errorf("answered %s", a.phrase)
	}
	if d := g.next(t, audit.EventDecision); d.Reason != "malformed-request-line" {
		t.Errorf("record %+v", d)
	}
}
