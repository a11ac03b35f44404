package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// plainRig is a gateway whose origin reports every request and answers as the test says.
type plainRig struct {
	*gateway
	got    chan request
	answer func(request) string
}

func newPlainRig(t *testing.T, answer string) *plainRig {
	t.Helper()
	r := &plainRig{gateway: newGateway(t, options{}), got: make(chan request, 100)}
	r.answer = func(request) string { return answer }
	r.origin.serve(t, func(req request) string {
		r.got <- req
		return r.answer(req)
	})
	return r
}

// url returns the URL of a path at the origin, under a host name.
func (r *plainRig) url(host, path string) string { return "http://" + r.at(host) + path }

// received waits for the next request at the origin.
func (r *plainRig) received(t *testing.T) request {
	t.Helper()
	select {
	case req := <-r.got:
		return req
	case <-time.After(patience):
		t.Fatal("the origin got no request")
		return request{}
	}
}

// carried returns the two records of an exchange.
func (r *plainRig) carried(t *testing.T) (decision, end record) {
	t.Helper()
	return r.next(t, audit.EventDecision), r.next(t, audit.EventTunnelClose)
}

// TestForwardedHeads checks what an origin receives, byte for byte.
func TestForwardedHeads(t *testing.T) {
	r := newPlainRig(t, ok)
	authority := r.at("allowed.example")
	c := r.call(t, "builder") // one connection for all
	for _, row := range []struct {
		name, head, want string
	}{
		{
			"fields go through in their order", "GET http://HOST/a/b?c=d HTTP/1.1\r\nHost: HOST\r\nUser-Agent: x/1\r\nAccept: */*\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n",
			"GET /a/b?c=d HTTP/1.1\r\nHost: HOST\r\nUser-Agent: x/1\r\nAccept: */*\r\nVia: 1.1 exeat\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n",
		},
		{
			"Host is the target's", "GET http://HOST/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"a path as it came", "GET http://HOST//a/./../%2e%7E|^{}\"<>`;[]@:? HTTP/1.1\r\nHost: x\r\n\r\n",
			"",
		},
		{
			"odd bytes in a path", "GET http://HOST/a/./../%2e%7E|^{}\"<>`;[]@:?x|y HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET /a/./../%2e%7E|^{}\"<>`;[]@:?x|y HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"a path that begins like an authority", "GET http://HOST//evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET //evil.example/ HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"no path", "GET http://HOST HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"no path for the server itself", "OPTIONS http://HOST HTTP/1.1\r\nHost: x\r\n\r\n",
			"OPTIONS * HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"no path for the server itself, with a body", "OPTIONS http://HOST HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
			"OPTIONS * HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\n\r\nhi",
		},
		{
			"a path for OPTIONS", "OPTIONS http://HOST/ HTTP/1.1\r\nHost: x\r\n\r\n",
			"OPTIONS / HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"a query for OPTIONS", "OPTIONS http://HOST? HTTP/1.1\r\nHost: x\r\n\r\n",
			"OPTIONS /? HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"a path that is an asterisk", "OPTIONS http://HOST/* HTTP/1.1\r\nHost: x\r\n\r\n",
			"OPTIONS /* HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"another case of OPTIONS", "options http://HOST HTTP/1.1\r\nHost: x\r\n\r\n",
			"options / HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"an unknown method", "PROPFIND http://HOST/ HTTP/1.1\r\nHost: x\r\nDepth: 1\r\n\r\n",
			"PROPFIND / HTTP/1.1\r\nHost: HOST\r\nDepth: 1\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"a body of a length", "POST http://HOST/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
			"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nVia: 1.1 exeat\r\n\r\nhello",
		},
		{
			"an empty body", "POST http://HOST/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"a GET with a body", "GET http://HOST/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
			"GET / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\n\r\nhi",
		},
		{
			"chunks are made anew, without extensions", "POST http://HOST/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=\"a\"\r\nhello\r\n0;last\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nVia: 1.1 exeat\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		},
		{
			"trailers that were announced", "POST http://HOST/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nVia: 1.1 exeat\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
		},
		{
			"trailers that nobody may announce", "POST http://HOST/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length, Host, Authorization, X-Exeat-Decision\r\n\r\n0\r\nContent-Length: 7\r\nHost: evil\r\nAuthorization: a\r\nX-Exeat-Decision: b\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nVia: 1.1 exeat\r\n\r\n0\r\n\r\n",
		},
		{
			"nominated fields, but none that frames", "POST http://HOST/ HTTP/1.1\r\nHost: x\r\nConnection: X-Gone, Content-Length, Host, Via\r\nX-Gone: 1\r\nX-Stays: 1\r\nContent-Length: 2\r\n\r\nhi",
			"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\nX-Stays: 1\r\n\r\nhi",
		},
		{
			"nominated fields, in many lines, cases and spaces", "GET http://HOST/ HTTP/1.1\r\nHost: x\r\nConnection: keep-alive,x-one\r\nCONNECTION:,\t X-TWO ,, \r\nConnection:\r\nconnection:Upgrade ,X-Three\r\nX-One: 1\r\nx-two: 2\r\nX-Three: 3\r\nX-Three: 4\r\nX-Stays: 1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\nX-Stays: 1\r\n\r\n",
		},
		{
			"nominated trailers", "POST http://HOST/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: x-sum\r\nTrailer: X-Sum, X-More\r\n\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTrailer: X-More\r\nVia: 1.1 exeat\r\n\r\n0\r\nX-More: 2\r\n\r\n",
		},
		{
			"hop-by-hop fields", "GET http://HOST/ HTTP/1.1\r\nHost: x\r\nKeep-Alive: 1\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic c2VjcmV0\r\nProxy-Foo: 1\r\nTE: trailers\r\nTrailer: X\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Exeat-Decision: forged\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"fields about clients behind other proxies", "GET http://HOST/ HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.1.2.3\r\nForwarded: for=10.1.2.3\r\nX-Real-IP: 10.1.2.3\r\nX-Forwarded-Client-Cert: URI=spiffe://test.example/legacy\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 exeat\r\n\r\n",
		},
		{
			"a Via of others", "GET http://HOST/ HTTP/1.1\r\nHost: x\r\nVia: 1.0 fred\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: HOST\r\nVia: 1.0 fred\r\nVia: 1.1 exeat\r\n\r\n",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.want == "" { // a path that net/http would change is refused, not changed
				c := r.call(t, "builder")
				if a := c.ask(t, strings.ReplaceAll(row.head, "HOST", authority)); a.reason() != "malformed-target" {
					t.Errorf("answered %s", a.phrase)
				}
				r.next(t, audit.EventDecision)
				return
			}
			a := c.ask(t, strings.ReplaceAll(row.head, "HOST", authority))
			if a.status != 200 || a.body != "ok" || a.close {
				t.Fatalf("answered %s %q, closing: %v", a.phrase, a.body, a.close)
			}
			got := r.received(t)
			if diff := cmp.Diff(strings.ReplaceAll(row.want, "HOST", authority), got.raw); diff != "" {
				t.Errorf("the origin got (+), want (-): %s", diff)
			}
			decision, end := r.carried(t)
			if decision.Verdict != "allow" || decision.Status != 200 || decision.Host != "allowed.example" || decision.Method != got.Method {
				t.Errorf("record %+v", decision)
			}
			if end.ID != decision.ID || end.Up != int64(len(got.raw)) || end.CloseReason != "upstream" || end.Down == 0 {
				t.Errorf("record %+v of %d bytes up", end, len(got.raw))
			}
		})
	}
	if n := r.origin.accepted.Load(); n != 1 {
		t.Errorf("%d connections to the origin, want the one that is kept", n)
	}
}

// TestForwardedAnswers checks what a client receives.
func TestForwardedAnswers(t *testing.T) {
	r := newPlainRig(t, "")
	for _, row := range []struct {
		name, head, origin, want string
		closes                   bool
	}{
		{"a length", "GET", ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\n\r\nok", false},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nVia: 1.1 exeat\r\n\r\n", false},
		{"HEAD without a length", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\nVia: 1.1 exeat\r\n\r\n", false},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\nVia: 1.1 exeat\r\n\r\n", false},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"a\"\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nEtag: \"a\"\r\nVia: 1.1 exeat\r\n\r\n", false},
		{"an empty body", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: 1.1 exeat\r\n\r\n", false},
		{"chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nVia: 1.1 exeat\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false},
		{"trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Set-Cookie\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nSet-Cookie: a=b\r\nX-Late: 8\r\nContent-Length: 1\r\n\r\n", "HTTP/1.1 200 OK\r\nVia: 1.1 exeat\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Late: 8\r\nX-Sum: 7\r\n\r\n", false},
		{"until the end of the connection", "GET", "close:HTTP/1.1 200 OK\r\n\r\nabc", "HTTP/1.1 200 OK\r\nVia: 1.1 exeat\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false},
		{"HTTP/1.0 of the origin", "GET", "close:HTTP/1.0 200 OK\r\n\r\nabc", "HTTP/1.1 200 OK\r\nVia: 1.0 exeat\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false},
		{"HTTP/1.0 of the origin, kept", "GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nVia: 1.1 fred\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 fred\r\nVia: 1.0 exeat\r\n\r\nok", false},
		{"an early hint of HTTP/1.0", "GET", "HTTP/1.0 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nVia: 1.0 exeat\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\n\r\nok", false},
		{"chunks for HTTP/1.0", "GET 1.0", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nVia: 1.1 exeat\r\nConnection: close\r\n\r\nabc", true},
		{"a client that wants to close", "GET close", ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\nConnection: close\r\n\r\nok", true},
		{"an early hint", "GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Exeat-Decision: forged\r\n\r\n" + ok, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nVia: 1.1 exeat\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\n\r\nok", false},
		{"an early hint for HTTP/1.0", "GET 1.0", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\nConnection: close\r\n\r\nok", true},
		{
			"what belongs to the origin's connection, and what only the gateway says", "GET",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Gone, Content-Length\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\nProxy-Status: exeat; error=forged\r\nProxy-Authenticate: Basic\r\nX-Exeat-Trace: forged\r\nUpgrade: h2c\r\nAlt-Svc: h3\r\nX-Stays: 1\r\n\r\nok",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\nX-Stays: 1\r\n\r\nok", false,
		},
		{"nominated beside close", "GET", "close:HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close, X-Named\r\nX-Named: 1\r\nX-Stays: 1\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\nX-Stays: 1\r\n\r\nok", false},
		{"nominated beside keep-alive", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Named\r\nX-Named: 1\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\n\r\nok", false},
		{"nominated beside close in HTTP/1.0", "GET", "close:HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: close, X-Named\r\nX-Named: 1\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.0 exeat\r\n\r\nok", false},
		{"nominated in many lines, cases and spaces", "GET", "close:HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive,x-one\r\nCONNECTION:,\t X-TWO ,, \r\nConnection:\r\nconnection: CLOSE ,X-Three,\r\n \tX-Four\r\nX-One: 1\r\nx-two: 2\r\nX-Three: 3\r\nX-Three: 4\r\nX-Four: 5\r\nX-Stays: 1\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\nX-Stays: 1\r\n\r\nok", false},
		{"nominated behind a head of many reads", "GET", "close:HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: " + strings.Repeat("a", 50<<10) + "\r\nConnection: close, X-Named, Set-Cookie\r\nX-Named: 1\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\n\r\nok", false},
		{"nominated in answers before the last", "GET", "close:HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\nHTTP/1.1 103 Early Hints\r\nConnection: close, X-Named\r\nX-Named: 1\r\nX-Other: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nConnection: X-Named\r\nX-Named: 2\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close, X-Other\r\nX-Named: 3\r\nX-Other: 2\r\n\r\nok", "HTTP/1.1 103 Early Hints\r\nVia: 1.1 exeat\r\nX-Other: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nVia: 1.1 exeat\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 exeat\r\nX-Named: 3\r\n\r\nok", false},
		{"nominated trailers", "GET", "close:HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close, x-sum, X-Late\r\nTrailer: X-Sum, X-More\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nX-Late: 8\r\nX-More: 9\r\n\r\n", "HTTP/1.1 200 OK\r\nVia: 1.1 exeat\r\nTransfer-Encoding: chunked\r\nTrailer: X-More\r\n\r\n3\r\nabc\r\n0\r\nX-More: 9\r\n\r\n", false},
		{"an answer without a body nominates", "HEAD", "close:HTTP/1.1 200 OK\r\nConnection: close, X-Named\r\nX-Named: 1\r\n\r\n", "HTTP/1.1 200 OK\r\nVia: 1.1 exeat\r\n\r\n", false},
		{"256 fields", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + strings.Repeat("X: a\r\n", 255) + "\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: 1.1 exeat\r\n" + strings.Repeat("X: a\r\n", 255) + "\r\n", false},
		{"a malformed field name", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX : a\r\nX Y: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: 1.1 exeat\r\n\r\n", false},
		{"a refusal of the origin", "GET", "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nProxy-Authenticate: Basic\r\n\r\n", "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nVia: 1.1 exeat\r\n\r\n", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.answer = func(request) string { return row.origin }
			c := r.call(t, "builder")
			method, how, _ := strings.Cut(row.head, " ")
			raw := plainTo(method, r.url("allowed.example", "/"))
			switch how {
			case "1.0":
				raw = strings.Replace(raw, "HTTP/1.1", "HTTP/1.0", 1)
			case "close":
				raw = plainTo(method, r.url("allowed.example", "/"), "Connection: close")
			}
			c.send(t, raw)
			date := regexp.MustCompile(`\r\nDate: [A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT`) // the gateway adds it to each answer
			got := make([]byte, len(row.want)+len("\r\nDate: ")+len(http.TimeFormat))
			if n, err := io.ReadFull(c.reader, got); err != nil {
				t.Errorf("after %d bytes: %v", n, err)
			}
			if diff := cmp.Diff(row.want, date.ReplaceAllString(string(got), "")); diff != "" {
				t.Errorf("the client got (+), want (-): %s", diff)
			}
			r.received(t)
			r.carried(t)
			if row.closes {
				c.ended(t)
				return
			}
			r.answer = func(request) string { return ok }
			if a := c.ask(t, get(r.url("allowed.example", "/next"))); a.body != "ok" {
				t.Errorf("the next request was answered %s", a.phrase)
			}
			r.received(t)
			r.carried(t)
		})
	}
}

// TestAnswerHasADate checks that an answer has the origin's Date, or the time of its
// arrival (RFC 9110 section 6.6.1).
func TestAnswerHasADate(t *testing.T) {
	r := newPlainRig(t, "")
	for name, row := range map[string]struct{ origin, want string }{
		"the Date of the origin":       {"HTTP/1.1 200 OK\r\ndate: Tue, 15 Nov 1994 08:12:31 GMT\r\nContent-Length: 0\r\n\r\n", "Tue, 15 Nov 1994 08:12:31 GMT"},
		"a Date in another form":       {"HTTP/1.1 200 OK\r\nDate: yesterday\r\nContent-Length: 0\r\n\r\n", "yesterday"},
		"no Date":                      {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		"no Date in a 304":             {"HTTP/1.1 304 Not Modified\r\n\r\n", ""},
		"no Date in a 500":             {"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", ""},
		"no Date behind an early hint": {"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		"a Date that Connection lists": {"HTTP/1.1 200 OK\r\nConnection: date\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\nContent-Length: 0\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r.answer = func(request) string { return row.origin }
			c := r.call(t, "builder")
			before := time.Now().Truncate(time.Second)
			a := c.ask(t, get(r.url("allowed.example", "/")))
			if a.status == http.StatusEarlyHints {
				if a.header.Get("Date") != "" {
					t.Error("a hint has a date")
				}
				a = c.answer(t)
			}
			got := a.header["Date"]
			if at, err := http.ParseTime(strings.Join(got, "+")); row.want == "" && (err != nil || at.Before(before) || at.After(time.Now())) {
				t.Errorf("got the dates %q", got)
			}
			if row.want != "" && (len(got) != 1 || got[0] != row.want) {
				t.Errorf("got the dates %q, want %q", got, row.want)
			}
			r.received(t)
			r.carried(t)
		})
	}
}

// TestInvalidAnswerOfTheOriginIsRefused checks what a client gets if the origin sends no
// valid answer.
func TestInvalidAnswerOfTheOriginIsRefused(t *testing.T) {
	r := newPlainRig(t, "")
	for name, origin := range map[string]string{
		"nothing":                         "close:",
		"half a head":                     "close:HTTP/1.1 200 OK\r\nContent-",
		"something else":                  "close:220 mail.example ESMTP\r\n",
		"lengths that differ":             "close:HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
		"a head without end":              "close:HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 80<<10) + "\r\n\r\n",
		"chunks in HTTP/1.0":              "close:HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"chunks in HTTP/1.0 to be kept":   "close:HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"a coding with a space":           "close:HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"a length with a space":           "close:HTTP/1.1 200 OK\r\nContent-Length : 3\r\nContent-Length: 4\r\n\r\nabcd",
		"another version":                 "close:HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
		"a version before":                "close:HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
		"257 fields":                      "close:HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + strings.Repeat("X:\r\n", 256) + "\r\n",
		"a status of one digit":           "close:HTTP/1.1 007 x\r\nContent-Length: 0\r\n\r\n",
		"a status with a sign":            "close:HTTP/1.1 +20 x\r\nContent-Length: 0\r\n\r\n",
		"a protocol nobody had asked for": "close:HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r.answer = func(request) string { return origin }
			c := r.call(t, "builder")
			a := c.ask(t, get(r.url("allowed.example", "/")))
			if a.status != 502 || a.reason() != "response-failed" || a.close {
				t.Errorf("answered %s, closing: %v", a.phrase, a.close)
			}
			if text := fmt.Sprint(a); strings.Contains(text, "127.0.0.1") {
				t.Errorf("the answer names an address: %s", text)
			}
			if decision, end := r.carried(t); decision.Verdict != "fail" || decision.Reason != "response-failed" || end.CloseReason != "error" {
				t.Errorf("records %+v and %+v", decision, end)
			}
			r.received(t)
		})
	}
	for name, origin := range map[string]string{
		"a body that is too short": "close:HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"a chunk that is missing":  "close:HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r.answer = func(request) string { return origin }
			c := r.call(t, "builder")
			c.send(t, get(r.url("allowed.example", "/")))
			resp, err := http.ReadResponse(c.reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(resp.Body); err == nil || string(body) != "abc" {
				t.Errorf("the client got %q, %v, and must see that something is missing", body, err)
			}
			if decision, end := r.carried(t); decision.Status != 200 || end.CloseReason != "error" {
				t.Errorf("records %+v and %+v", decision, end)
			}
			r.received(t)
		})
	}
}

// TestIncompleteAnswerToHTTP10HasNoOrderlyEnd checks an incomplete answer to a client of
// HTTP/1.0. Its end is the end of the connection, which must not look orderly.
func TestIncompleteAnswerToHTTP10HasNoOrderlyEnd(t *testing.T) {
	r := newPlainRig(t, "close:HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	spec := r.policy()
	spec.Entries[2].Accept = 0 // sidecar, who speaks without TLS
	r.swap(t, spec)
	for name, c := range map[string]*caller{"TLS": r.call(t, "builder"), "no TLS": r.callPlain(t)} {
		t.Run(name, func(t *testing.T) {
			c.send(t, strings.Replace(get(r.url("allowed.example", "/")), "HTTP/1.1", "HTTP/1.0", 1))
			if text, err := io.ReadAll(c.reader); err == nil {
				t.Errorf("the client got %q and must see that something is missing", text)
			}
			r.received(t)
			if _, end := r.carried(t); end.CloseReason != "error" {
				t.Errorf("record %+v", end)
			}
		})
	}
}

// TestPlainDecisions sends many requests on one connection. A denied request must be
// answered without a look-up, and must leave the connection open.
func TestPlainDecisions(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	for _, row := range []struct {
		method, host, path string
		want               allowlist.Reason
	}{
		{"GET", "allowed.example", "/", allowlist.NoReason},
		{"GET", "secret.example", "/", allowlist.NotOnAllowlist},
		{"GET", "read-only.example", "/", allowlist.NoReason},
		{"POST", "read-only.example", "/", allowlist.MethodNotAllowed},
		{"get", "read-only.example", "/", allowlist.MethodNotAllowed},
		{"HEAD", "read-only.example", "/", allowlist.MethodNotAllowed},
		{"GET", "public-path.example", "/public/x", allowlist.NoReason},
		{"GET", "public-path.example", "/public/x?../..", allowlist.NoReason},
		{"GET", "public-path.example", "/public", allowlist.PathNotAllowed},
		{"GET", "public-path.example", "/admin", allowlist.PathNotAllowed},
		{"GET", "denied.wild.example", "/", allowlist.DeniedByRule},
		{"GET", "inner.example", "/", allowlist.ResolvedAddressDenied},
		{"GET", "unknown.example", "/", allowlist.ResolveFailed},
		{"GET", "expired.example", "/", allowlist.RuleExpired},
		{"GET", "allowed.example", "/", allowlist.NoReason},
	} {
		lookups, accepted := r.names.lookups.Load(), r.origin.accepted.Load()
		a := c.ask(t, plainTo(row.method, r.url(row.host, row.path)))
		if a.reason() != row.want.String() || a.close || row.want == allowlist.NoReason && a.body != "ok" {
			t.Errorf("%s %s%s: answered %s %q, closing: %v, want %q", row.method, row.host, row.path, a.phrase, a.body, a.close, row.want)
		}
		decision := r.next(t, audit.EventDecision)
		if decision.Reason != row.want.String() || decision.Host != row.host || decision.Method != row.method {
			t.Errorf("record %+v", decision)
		}
		if inPath := row.host == "public-path.example"; inPath && decision.Path != strings.Split(row.path, "?")[0] || !inPath && decision.Path != "" {
			t.Errorf("path %q in the record of %s%s", decision.Path, row.host, row.path)
		}
		if row.want == allowlist.NoReason {
			r.next(t, audit.EventTunnelClose)
			r.received(t)
		} else if row.want.Info().Status == 403 && row.want != allowlist.ResolvedAddressDenied && (r.names.lookups.Load() != lookups || r.origin.accepted.Load() != accepted) {
			t.Errorf("a lookup or a dial for %s", row.host)
		}
	}
	for _, path := range []string{"/public/../admin", "/public/..%2fadmin", "/public/%2e%2e/admin", "/public//x", "/public/x;y", "/public/%5cx"} {
		c := r.call(t, "builder")
		if a := c.ask(t, get(r.url("public-path.example", path))); a.status != 400 || a.reason() != "malformed-target" || !a.close {
			t.Errorf("%s: answered %s", path, a.phrase)
		}
		r.next(t, audit.EventDecision)
		_ = c.Close()
	}
	_ = c.Close()
	if left := r.rest(t); len(left) > 0 {
		t.Errorf("%d records too many, first %+v", len(left), left[0])
	}
}

// TestPipelinedRequestsAreDecidedOneByOne sends three requests at once.
func TestPipelinedRequestsAreDecidedOneByOne(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	good := plainTo("POST", r.url("allowed.example", "/"), "Transfer-Encoding: chunked") + "1\r\nx\r\n0\r\n\r\n"
	c.send(t, good+get(r.url("secret.example", "/"))+good)
	for _, want := range []string{"", "not-on-allowlist", ""} {
		if a := c.answer(t); a.reason() != want {
			t.Errorf("answered %s, want %q", a.phrase, want)
		}
		if decision := r.next(t, audit.EventDecision); decision.Reason != want {
			t.Errorf("record %+v", decision)
		}
		if want == "" {
			r.next(t, audit.EventTunnelClose)
			if got := r.received(t); got.body != "x" {
				t.Errorf("the origin got %q", got.raw)
			}
		}
	}
}

// TestTunnelMayFollowPlainRequests checks that a CONNECT may follow plain requests on a
// connection.
func TestTunnelMayFollowPlainRequests(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	if a := c.ask(t, get(r.url("allowed.example", "/"))); a.body != "ok" {
		t.Fatalf("answered %s", a.phrase)
	}
	r.received(t)
	r.carried(t)
	if a := c.ask(t, connectTo(r.at("allowed.example"))); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	r.next(t, audit.EventDecision)
	if a := c.ask(t, "GET /in-the-tunnel HTTP/1.1\r\nHost: x\r\n\r\n"); a.body != "ok" {
		t.Errorf("answered %s", a.phrase)
	}
	if got := r.received(t); got.URL.Path != "/in-the-tunnel" || got.Header.Get("Via") != "" {
		t.Errorf("the origin got %q", got.raw)
	}
	_ = c.Close()
	r.next(t, audit.EventTunnelClose)
}

// TestExpectContinue checks that a client which waits gets 100 (Continue) when the origin
// has sent it or has sent nothing, and never after the origin has refused.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		origin string
		asked  bool
		before string // a field of the request
	}{
		"the origin says continue":  {"HTTP/1.1 100 Continue\r\n\r\n", true, "X: x"},
		"the origin says nothing":   {"", true, "X: x"},
		"the origin says wait":      {"HTTP/1.1 102 Processing\r\n\r\n", true, "X: x"},
		"the origin refuses":        {"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno", false, "X: x"},
		"not the first of its kind": {"HTTP/1.1 100 Continue\r\n\r\n", true, "Expect: x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // two wait for the timer of the transport
			g := newGateway(t, options{})
			c := g.call(t, "builder")
			c.send(t, plainTo("POST", "http://"+g.at("allowed.example")+"/", "Content-Length: 5", row.before, "Expect: 100-continue"))
			conn := g.origin.next(t)
			reader := bufio.NewReader(conn)
			req, err := http.ReadRequest(reader)
			if err != nil {
				t.Fatal(err)
			}
			if req.Header.Get("Expect") != "100-continue" {
				t.Errorf("the origin got %v", req.Header)
			}
			if _, err := io.WriteString(conn, row.origin); err != nil {
				t.Fatal(err)
			}
			if !row.asked {
				if a := c.answer(t); a.status != 417 || a.body != "no" || !a.close {
					t.Errorf("answered %s", a.phrase)
				}
				c.gone(t)
				g.next(t, audit.EventDecision)
				g.next(t, audit.EventTunnelClose)
				return
			}
			if strings.Contains(row.origin, "102") {
				if a := c.answerTo(t, http.MethodPost); a.status != http.StatusProcessing {
					t.Errorf("answered %s", a.phrase)
				}
			}
			if line, err := c.reader.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
				t.Fatalf("the client got %q, %v", line, err)
			}
			if line, err := c.reader.ReadString('\n'); err != nil || line != "\r\n" {
				t.Fatalf("the client got %q, %v", line, err)
			}
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(req.Body); err != nil || string(body) != "hello" {
				t.Errorf("the origin got %q, %v", body, err)
			}
			if _, err := io.WriteString(conn, ok); err != nil {
				t.Fatal(err)
			}
			if a := c.answer(t); a.body != "ok" || a.close {
				t.Errorf("answered %s", a.phrase)
			}
			g.next(t, audit.EventDecision)
			g.next(t, audit.EventTunnelClose)
		})
	}
}

// TestAnswerBeforeTheBodyIsPassedOn checks an answer that the origin sends before it has
// read the body.
func TestAnswerBeforeTheBodyIsPassedOn(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, plainTo("POST", "http://"+g.at("allowed.example")+"/", "Content-Length: 100000000")+"some of it")
	conn := g.origin.next(t)
	if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.status != 413 || a.body != "no" || !a.close {
		t.Errorf("answered %s %q, closing: %v", a.phrase, a.body, a.close)
	}
	c.gone(t)
	g.next(t, audit.EventDecision)
	if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "upstream" {
		t.Errorf("record %+v", end)
	}
}

// TestMalformedOrIncompleteBodyEndsTheRequest checks malformed chunks, and a client that
// leaves within its body.
func TestMalformedOrIncompleteBodyEndsTheRequest(t *testing.T) {
	for name, row := range map[string]struct {
		body   string
		leaves bool
	}{
		"a size that is no number": {"zz\r\nabc\r\n0\r\n\r\n", false},
		"a negative number":        {"-1\r\n\r\n", false},
		"a number that overflows":  {"fffffffffffffffff\r\n\r\n", false},
		"a bare LF behind a size":  {"3\nabc\r\n0\r\n\r\n", false},
		"no end of a chunk":        {"3\r\nabcd\r\n0\r\n\r\n", false},
		"extensions without end":   {"3;" + strings.Repeat("a", 100<<10), false},
		"trailers without end":     {"0\r\n" + strings.Repeat("X: a\r\n", 100<<10), false},
		"a client that leaves":     {"5\r\nab", true},
		"one that ends in a chunk": {"5\r\nabcde", true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{})
			g.origin.serve(t, func(request) string { t.Error("the origin got a whole request"); return ok })
			c := g.call(t, "builder")
			go func() {
				_, _ = io.WriteString(c, plainTo("POST", "http://"+g.at("allowed.example")+"/", "Transfer-Encoding: chunked")+row.body)
				if row.leaves {
					_ = c.Close()
				}
			}()
			want := "malformed-header"
			if row.leaves {
				want = "client-gone"
			} else if a := c.answerTo(t, http.MethodPost); a.status != 400 || a.reason() != want || !a.close {
				t.Errorf("answered %s", a.phrase)
			}
			if decision := g.next(t, audit.EventDecision); decision.Reason != want {
				t.Errorf("record %+v", decision)
			}
			if end := g.next(t, audit.EventTunnelClose); (end.CloseReason == "client") != row.leaves {
				t.Errorf("record %+v", end)
			}
		})
	}
}

// TestBackPressure checks that a slow reader at one end stops the sender at the other.
func TestBackPressure(t *testing.T) {
	t.Parallel() // it waits for a write that makes no progress
	const total, bound = 256 << 20, 64 << 20
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, plainTo("POST", "http://"+g.at("allowed.example")+"/", "Content-Length: "+strconv.Itoa(total)))
	conn := g.origin.next(t) // the test does not read from it
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	sent, chunk := 0, make([]byte, 64<<10)
	for sent < total {
		n, err := c.Write(chunk)
		sent += n
		if err != nil {
			break
		}
	}
	if sent > bound {
		t.Errorf("%d bytes went into a gateway whose origin reads nothing", sent)
	}
	_ = conn.Close()
	_ = c.Close()
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
}

// TestPooledConnectionsAreNotShared checks that an identity cannot use a pooled connection
// which another identity was allowed to make.
func TestPooledConnectionsAreNotShared(t *testing.T) {
	r := newPlainRig(t, ok)
	spec := r.policy()
	spec.Entries = append(spec.Entries, allowlist.Entry{
		Pattern: only("outsider"), // may reach the name, but no internal address
		Allow:   []allowlist.Rule{with(to("allowed.example", r.origin.port), func(rule *allowlist.Rule) { rule.Addresses = nil })},
	})
	r.swap(t, spec)
	for range 2 {
		if a := r.call(t, "builder").ask(t, get(r.url("allowed.example", "/"))); a.body != "ok" {
			t.Fatalf("answered %s", a.phrase)
		}
		r.received(t)
		r.carried(t)
	}
	if n := r.origin.accepted.Load(); n != 1 {
		t.Errorf("%d connections to the origin, want the one that is kept", n)
	}
	if a := r.call(t, "outsider").ask(t, get(r.url("allowed.example", "/"))); a.reason() != "resolved-address-denied" {
		t.Errorf("answered %s", a.phrase)
	}
	if decision := r.next(t, audit.EventDecision); decision.AddressClass != "loopback" {
		t.Errorf("record %+v", decision)
	}
	if a := r.call(t, "reporter").ask(t, get(r.url("allowed.example", "/"))); a.body != "ok" {
		t.Errorf("answered %s", a.phrase)
	}
	r.received(t)
	r.carried(t)
	if n := r.origin.accepted.Load(); n != 2 {
		t.Errorf("%d connections to the origin, want one for each identity", n)
	}
}

// TestNewStateClosesIdleConnections checks that an idle connection to an origin is closed
// when a state follows the one that allowed it.
func TestNewStateClosesIdleConnections(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, get("http://"+g.at("allowed.example")+"/"))
	conn := g.origin.next(t)
	reader := bufio.NewReader(conn)
	if _, err := http.ReadRequest(reader); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, ok); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.body != "ok" {
		t.Fatalf("answered %s", a.phrase)
	}
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
	g.swap(t, g.policy())
	g.proxy.CloseIdle()
	if _, err := reader.ReadByte(); err != io.EOF {
		t.Errorf("the origin's connection: %v, want its end", err)
	}
}

// TestUpgrade checks that a connection becomes a tunnel if the origin agrees to another
// protocol and the rule allows upgrades.
func TestUpgrade(t *testing.T) {
	const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nX-Exeat-Decision: forged\r\n\r\n"
	ask := func(g *gateway, host string) string {
		return get("http://"+g.at(host)+"/chat", "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: k")
	}
	t.Run("refused without", func(t *testing.T) {
		r := newPlainRig(t, ok)
		c := r.call(t, "builder")
		if a := c.ask(t, ask(r.gateway, "allowed.example")); a.reason() != "upgrade-not-allowed" || !strings.Contains(a.body, "upgrade: true") {
			t.Errorf("answered %s\n%s", a.phrase, a.body)
		}
		r.next(t, audit.EventDecision)
		if n := r.origin.accepted.Load(); n != 0 {
			t.Errorf("%d connections to the origin", n)
		}
	})
	t.Run("a tunnel like any other", func(t *testing.T) {
		g := newGateway(t, options{})
		c := g.call(t, "builder")
		c.send(t, ask(g, "ws.example"))
		conn := g.origin.next(t)
		reader := bufio.NewReader(conn)
		req, err := http.ReadRequest(reader)
		if err != nil {
			t.Fatal(err)
		}
		if req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Connection") != "Upgrade" || req.Header.Get("Sec-Websocket-Key") != "k" || req.URL.Path != "/chat" {
			t.Errorf("the origin got %v", req.Header)
		}
		if _, err := io.WriteString(conn, switching+"early"); err != nil {
			t.Fatal(err)
		}
		a := c.answerTo(t, http.MethodGet)
		if a.status != 101 || a.header.Get("Upgrade") != "websocket" || a.header.Get("Sec-Websocket-Accept") != "x" || a.header.Get("X-Exeat-Decision") != "" {
			t.Errorf("answered %s %v", a.phrase, a.header)
		}
		early := make([]byte, 5)
		if _, err := io.ReadFull(c.reader, early); err != nil || string(early) != "early" {
			t.Errorf("the client got %q, %v", early, err)
		}
		echo(t, c, conn, reader)
		decision := g.next(t, audit.EventDecision)
		if decision.Status != 101 || decision.Verdict != "allow" || decision.Host != "ws.example" {
			t.Errorf("record %+v", decision)
		}
		_ = conn.Close()
		c.gone(t)
		if end := g.next(t, audit.EventTunnelClose); end.Up < 4 || end.CloseReason != "upstream" || end.ID != decision.ID {
			t.Errorf("record %+v", end)
		}
	})
	t.Run("the origin does not agree", func(t *testing.T) {
		r := newPlainRig(t, ok)
		c := r.call(t, "builder")
		if a := c.ask(t, ask(r.gateway, "ws.example")); a.body != "ok" {
			t.Errorf("answered %s", a.phrase)
		}
		r.received(t)
		r.carried(t)
	})
}

// agreed is the answer of an origin that agrees to a WebSocket.
const agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

// agree makes the origin agree to a WebSocket, and reads the answer at the client.
func agree(t *testing.T, c *caller, conn net.Conn) {
	t.Helper()
	if _, err := io.WriteString(conn, agreed); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.status != http.StatusSwitchingProtocols {
		t.Fatalf("answered %s", a.phrase)
	}
}

// echo sends bytes in each direction.
func echo(t *testing.T, c *caller, conn net.Conn, reader *bufio.Reader) {
	t.Helper()
	got := make([]byte, 4)
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != "ping" {
		t.Fatalf("the origin got %q, %v", got, err)
	}
	if _, err := io.WriteString(conn, "pong"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c.reader, got); err != nil || string(got) != "pong" {
		t.Fatalf("the client got %q, %v", got, err)
	}
}

// TestNewStateEndsForbiddenExchanges checks an answer that is still being sent, and a
// request that still waits for its answer.
func TestNewStateEndsForbiddenExchanges(t *testing.T) {
	for _, answering := range []bool{true, false} {
		t.Run(fmt.Sprintf("answering: %v", answering), func(t *testing.T) {
			g := newGateway(t, options{})
			enforcer := g.enforcer()
			c, other := g.call(t, "builder"), g.call(t, "reporter")
			conns := make([]*net.TCPConn, 2)
			for i, caller := range []*caller{c, other} {
				caller.send(t, get("http://"+g.at("allowed.example")+"/"))
				conns[i] = g.origin.next(t)
				if _, err := http.ReadRequest(bufio.NewReader(conns[i])); err != nil {
					t.Fatal(err)
				}
			}
			start := func(conn *net.TCPConn, caller *caller) *http.Response {
				if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"); err != nil {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(caller.reader, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(resp.Body, make([]byte, 2)); err != nil {
					t.Fatal(err)
				}
				g.next(t, audit.EventDecision)
				return resp
			}
			var resp *http.Response
			if answering {
				resp = start(conns[0], c)
			}
			spec := g.policy()
			spec.Version, spec.Entries = "two", spec.Entries[1:]
			policy, err := allowlist.Compile(spec)
			if err != nil {
				t.Fatal(err)
			}
			if done := enforcer.put(t.Context(), policy); done.Closed != 1 || done.Open != 2 {
				t.Errorf("enforcement %+v", done)
			}
			if answering {
				if rest, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("the client got %q and no error", rest)
				}
			} else {
				if a := c.answer(t); a.status != 502 || a.reason() != "cut-off" {
					t.Errorf("answered %s", a.phrase)
				}
				if decision := g.next(t, audit.EventDecision); decision.Reason != "cut-off" || decision.Policy != "one" || decision.Verdict != "fail" {
					t.Errorf("record %+v", decision)
				}
			}
			if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "revoked" || end.Reason != "identity-unknown" || end.Identity != id("builder").String() {
				t.Errorf("record %+v", end)
			}
			if n, err := conns[0].Read(make([]byte, 1)); err == nil {
				t.Errorf("the origin of the revoked one reads %d bytes more", n)
			}
			resp = start(conns[1], other) // the other exchange goes on
			if _, err := io.WriteString(conns[1], "cd"); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "cd" {
				t.Errorf("the survivor got %q, %v", rest, err)
			}
			g.next(t, audit.EventTunnelClose)
			if n := g.registry.Len(); n != 0 {
				t.Errorf("%d entries left in the registry", n)
			}
		})
	}
}

// TestPanicEndsOnePlainRequest checks that a panic ends one request only, also a panic in
// a goroutine of the transport.
func TestPanicEndsOnePlainRequest(t *testing.T) {
	g := newGateway(t, options{})
	a := g.call(t, "builder").ask(t, get("http://"+g.at("panic.example")+"/"))
	if a.status != 500 || a.reason() != "internal-error" || !a.close {
		t.Errorf("answered %s", a.phrase)
	}
	if decision := g.next(t, audit.EventDecision); decision.Verdict != "fail" || decision.Reason != "internal-error" {
		t.Errorf("record %+v", decision)
	}
	if n := g.proxy.Panics(); n != 1 {
		t.Errorf("%d panics, want the one", n)
	}
	if n := g.registry.Len(); n != 0 {
		t.Errorf("%d entries left in the registry", n)
	}
}

// TestDrainCutsAnExchange checks that a drain ends an exchange that has not ended in time.
func TestDrainCutsAnExchange(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, get("http://"+g.at("allowed.example")+"/"))
	conn := g.origin.next(t)
	if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.proxy.Drain()
	g.registry.Drain(0)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the client takes what was cut for the whole")
	}
	g.next(t, audit.EventDecision)
	if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "drain" || end.Reason != "" {
		t.Errorf("record %+v", end)
	}
}
