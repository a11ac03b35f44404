package proxy_test

import (
	"bufio"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// plainOver returns the fields of a plain request for the origin, and others behind them.
func (g *gateway) plainOver(method, host, path string, others ...string) []string {
	return append([]string{":method", method, ":scheme", "http", ":authority", g.at(host), ":path", path}, others...)
}

// TestPlainRequestsOverHTTP2 sends plain requests on the streams of one connection.
func TestPlainRequestsOverHTTP2(t *testing.T) {
	g := newGateway(t, options{})
	g.origin.serve(t, func(r request) string {
		switch r.URL.Path {
		case "/empty":
			return "HTTP/1.1 204 No Content\r\n\r\n"
		case "/chunked":
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n"
		case "/early":
			return "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		case "/short":
			return "close:HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\npart"
		case "/large":
			return "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 1000000)
		}
		if r.Method == http.MethodHead {
			return "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
		}
		text := r.Method + " " + r.RequestURI + " " + r.Host + " via " + r.Header.Get("Via") + " body " + r.body
		return "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: " + strconv.Itoa(len(text)) + "\r\n\r\n" + text
	})
	s := g.session(t, "builder")
	id := uint32(1)
	ask := func(body string, fields ...string) (head h2test.Event, text string, end h2test.Event) {
		s.Open(t, id, body == "", fields...)
		if body != "" {
			s.Upload(t, id, body, true)
		}
		head = s.On(t, id)
		for strings.HasPrefix(head.Status(), "1") {
			head = s.On(t, id)
		}
		if end = head; head.Kind == h2test.Head && !head.End {
			text, end = s.Rest(t, id)
		}
		id += 2
		return head, text, end
	}
	host := g.at("allowed.example")
	if head, text, _ := ask("", g.plainOver("GET", "allowed.example", "/a?b=c")...); head.Status() != "200" ||
		text != "GET /a?b=c "+host+" via 2.0 exeat body " || head.Field("keep-alive") != "" || head.Field("connection") != "" {
		t.Errorf("%v %q", head.Fields, text)
	}
	if r := g.next(t, audit.EventDecision); r.Wire != "h2" || r.Protocol != "http" || r.Status != 200 || r.Method != "GET" {
		t.Errorf("record %+v", r)
	}
	g.next(t, audit.EventTunnelClose)
	if head, text, _ := ask("of unknown length", g.plainOver("POST", "allowed.example", "/")...); !strings.HasSuffix(text, "body of unknown length") {
		t.Errorf("%v %q", head.Fields, text)
	}
	if head, text, _ := ask("1234567", g.plainOver("PUT", "allowed.example", "/", "content-length", "7")...); !strings.HasSuffix(text, "body 1234567") {
		t.Errorf("%v %q", head.Fields, text)
	}
	if head, text, _ := ask("", g.plainOver("HEAD", "allowed.example", "/")...); head.Status() != "200" || text != "" || !head.End {
		t.Errorf("%v %q", head, text)
	}
	if head, _, _ := ask("", g.plainOver("GET", "allowed.example", "/empty")...); head.Status() != "204" || !head.End {
		t.Errorf("%v", head)
	}
	if _, text, end := ask("", g.plainOver("GET", "allowed.example", "/chunked", "te", "trailers")...); text != "hello" || end.Field("x-sum") != "7" {
		t.Errorf("%q %v", text, end)
	}
	if head, text, _ := ask("", g.plainOver("GET", "allowed.example", "/early")...); head.Status() != "200" || text != "ok" {
		t.Errorf("%v %q", head.Fields, text)
	}
	if _, text, end := ask("", g.plainOver("GET", "allowed.example", "/short")...); end.Kind != h2test.Reset || text != "part" {
		t.Errorf("%q %+v, want a reset behind a part", text, end)
	}
	if _, text, end := ask("", g.plainOver("GET", "allowed.example", "/large")...); len(text) != 1000000 || !end.End {
		t.Errorf("%d bytes %+v", len(text), end)
	}
	if head, text, _ := ask("", g.plainOver("TRACE", "allowed.example", "/", "max-forwards", "0", "x-a", "b")...); head.Status() != "200" ||
		text != "TRACE http://"+host+"/ HTTP/2.0\r\nmax-forwards: 0\r\nx-a: b\r\n\r\n" {
		t.Errorf("%v %q", head.Fields, text)
	}
	if head, _, _ := ask("", g.plainOver("OPTIONS", "allowed.example", "*")...); head.Status() != "200" {
		t.Errorf("%v", head.Fields)
	}
}

// TestMalformedStreams sends requests that have no or two meanings. Each is refused with its
// reason, on its stream, and nothing of it reaches the origin.
func TestMalformedStreams(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	a := g.at("allowed.example")
	connect := []string{":method", "CONNECT", ":authority", a}
	id := uint32(1)
	for _, row := range []struct {
		name   string
		reason string
		fields []string
	}{
		{"another host", "authority-mismatch", append(connect, "host", "secret.example:443")},
		{"two hosts", "duplicate-host", append(connect, "host", a, "host", a)},
		{"CONNECT with :scheme", "malformed-header", []string{":method", "CONNECT", ":scheme", "https", ":authority", a}},
		{"CONNECT with :path", "malformed-header", []string{":method", "CONNECT", ":path", "/", ":authority", a}},
		{"extended CONNECT", "malformed-header", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", a}},
		{":protocol alone", "malformed-header", append(connect, ":protocol", "connect-udp")},
		{"no :authority", "missing-host", []string{":method", "CONNECT"}},
		{"host in place of :authority", "missing-host", []string{":method", "CONNECT", "host", a}},
		{"no :method", "malformed-header", []string{":authority", a}},
		{"two methods", "malformed-header", append(connect, ":method", "GET")},
		{"two authorities", "malformed-header", append(connect, ":authority", a)},
		{"unknown pseudo-header field", "malformed-header", append(connect, ":status", "200")},
		{"pseudo-header field behind another", "malformed-header", []string{":method", "CONNECT", "x", "y", ":authority", a}},
		{"lower-case method", "connect-only", []string{":method", "connect", ":authority", a}},
		{"upper-case name", "malformed-header", append(connect, "X-Upper", "y")},
		{"connection", "malformed-header", append(connect, "connection", "x")},
		{"keep-alive", "malformed-header", append(connect, "keep-alive", "1")},
		{"proxy-connection", "malformed-header", append(connect, "proxy-connection", "keep-alive")},
		{"transfer-encoding", "malformed-header", append(connect, "transfer-encoding", "chunked")},
		{"upgrade", "malformed-header", append(connect, "upgrade", "h2c")},
		{"te", "malformed-header", append(connect, "te", "gzip")},
		{"line break in a value", "malformed-header", append(connect, "x", "a\r\nhost: secret.example")},
		{"space in a name", "malformed-header", append(connect, "x y", "a")},
		{"empty name", "malformed-header", append(connect, "", "a")},
		{"line break in :authority", "malformed-request-line", []string{":method", "CONNECT", ":authority", a + "\r\nx: y"}},
		{"space in :method", "malformed-request-line", []string{":method", "GET http://x/", ":scheme", "http", ":authority", a, ":path", "/"}},
		{"user in :authority", "malformed-target", g.plainTarget("user@", a, "/")},
		{"path in :authority", "malformed-target", g.plainTarget("", a+"/x", "/")},
		{"query in :authority", "malformed-target", g.plainTarget("", a+"?x", "/")},
		{":path without a slash", "malformed-target", g.plainTarget("", a, "x")},
		{":path that is a URL", "malformed-target", g.plainTarget("", a, "http://secret.example/")},
		{"* for GET", "malformed-target", g.plainTarget("", a, "*")},
		{"empty :path", "malformed-header", g.plainTarget("", a, "")},
		{"https", "malformed-target", []string{":method", "GET", ":scheme", "https", ":authority", a, ":path", "/"}},
		{"another scheme", "malformed-target", []string{":method", "GET", ":scheme", "ftp", ":authority", a, ":path", "/"}},
		{"no scheme", "malformed-header", []string{":method", "GET", ":authority", a, ":path", "/"}},
		{"plain request to another host", "authority-mismatch", append(g.plainTarget("", a, "/"), "host", "secret.example")},
		{"two lengths", "malformed-header", append(g.plainTarget("", a, "/"), "content-length", "1", "content-length", "2")},
		{"no number", "malformed-header", append(g.plainTarget("", a, "/"), "content-length", "+5")},
		{"a length and no body", "malformed-header", append(g.plainTarget("", a, "/"), "content-length", "5")},
		{"too many fields", "head-too-large", append(connect, manyFields(280)...)},
		{"far too many fields", "head-too-large", append(connect, manyFields(2000)...)},
		{"too large", "head-too-large", append(connect, "x", strings.Repeat("y", 60<<10), "z", strings.Repeat("y", 10<<10))},
	} {
		t.Run(row.name, func(t *testing.T) {
			block := s.Encode(row.fields...)
			s.Send(t, func() error {
				return writeHead(s.Peer, id, block)
			})
			e := s.On(t, id)
			if got := reasonOf(e); got != row.reason || len(e.Status()) != 3 || e.Status()[0] != '4' {
				t.Errorf("answered %s %q %v", e.Status(), got, e)
			}
			if r := g.next(t, audit.EventDecision); r.Reason != row.reason || r.Wire != "h2" || strconv.Itoa(r.Status) != e.Status() {
				t.Errorf("record %+v", r)
			}
			id += 2
		})
	}
	if n := g.origin.accepted.Load(); n != 0 {
		t.Errorf("%d connections to the origin", n)
	}
	s.last = id
	s.works(t)
}

// plainTarget returns the fields of a GET.
func (g *gateway) plainTarget(user, authority, path string) []string {
	return []string{":method", "GET", ":scheme", "http", ":authority", user + authority, ":path", path}
}

// manyFields returns n short fields.
func manyFields(n int) []string {
	var fields []string
	for range n {
		fields = append(fields, "x", "y")
	}
	return fields
}

// writeHead writes a head in as many frames as it needs.
func writeHead(p *h2test.Peer, id uint32, block []byte) error {
	first := block[:min(len(block), 16<<10)]
	rest := block[len(first):]
	if err := p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: true, EndHeaders: len(rest) == 0}); err != nil {
		return err
	}
	for len(rest) > 0 {
		n := min(len(rest), 16<<10)
		if err := p.WriteContinuation(id, n == len(rest), rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// TestABodyThatIsNotAsAnnounced sends more or less than content-length says, and a trailer.
func TestABodyThatIsNotAsAnnounced(t *testing.T) {
	g := newGateway(t, options{})
	complete := make(chan string, 10)
	g.origin.serve(t, func(r request) string {
		complete <- r.body
		return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	})
	for name, send := range map[string]func(s *session){
		"short": func(s *session) { s.Body(t, 1, "1234", true) },
		"long":  func(s *session) { s.Body(t, 1, "123456", true) },
		"with a trailer": func(s *session) {
			s.Body(t, 1, "1234", false)
			s.Open(t, 1, true, "x-trailer", "5")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := g.session(t, "builder")
			s.Open(t, 1, false, g.plainOver("POST", "allowed.example", "/", "content-length", "5")...)
			send(s)
			if e := s.On(t, 1); e.Kind != h2test.Reset && reasonOf(e) != "malformed-header" {
				t.Errorf("answered %+v", e)
			}
			if r := g.decisionOver(t, "h2"); r.Reason != "malformed-header" {
				t.Errorf("record %+v", r)
			}
		})
	}
	select {
	case body := <-complete:
		t.Errorf("the origin got a whole request with the body %q", body)
	default:
	}
}

// TestAClientLeavesAPlainRequest resets a plain request while its origin thinks.
func TestAClientLeavesAPlainRequest(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	s.Open(t, 1, true, g.plainOver("GET", "allowed.example", "/")...)
	origin := g.origin.next(t)
	if _, err := http.ReadRequest(bufio.NewReader(origin)); err != nil {
		t.Fatal(err)
	}
	s.Send(t, func() error { return s.WriteRSTStream(1, http2.ErrCodeCancel) })
	if _, err := origin.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the connection to the origin stays open: %v", err)
	}
	if r := g.decisionOver(t, "h2"); r.Reason != "client-gone" || r.Status != 0 {
		t.Errorf("record %+v", r)
	}
	g.next(t, audit.EventTunnelClose)
	s.last = 1
	s.works(t)
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error) //nolint:errorlint // the error of a read is unwrapped
	return ok && timeout.Timeout()
}
