package agent

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestDoors checks that each door reaches an allowed origin through a gateway, with a
// half-close both ways.
func TestDoors(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, g.addr)

	for name, c := range map[string]*caller{"http": dial(t, "tcp", a.http), "unix": dial(t, "unix", a.unix)} {
		if resp, _ := c.connect(t, s.origin.at("a.example")); resp.Status != "200 OK" {
			t.Fatalf("%s: %s", name, resp.Status)
		}
		c.finish(t)
	}
	c := dial(t, "tcp", a.socks)
	if code := c.socks(t, "a.example", s.origin.port); code != 0 {
		t.Fatalf("SOCKS5: reply %d", code)
	}
	c.finish(t)
}

// finish uses a tunnel, ends it in one direction, and reads what comes in the other.
func (c *caller) finish(t *testing.T) {
	t.Helper()
	c.echo(t)
	if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c.reader); err != nil || string(rest) != "the end" {
		t.Fatalf("behind the end: %q, %v", rest, err)
	}
}

// socks asks a SOCKS5 door for a name, and returns the reply code.
func (c *caller) socks(t *testing.T, host, port string) byte {
	t.Helper()
	n := must(net.LookupPort("tcp", port))
	c.send(t, "\x05\x01\x00\x05\x01\x00\x03"+string(rune(len(host)))+host+string([]byte{byte(n >> 8), byte(n)}))
	var reply [2 + 10]byte
	if _, err := io.ReadFull(c.reader, reply[:]); err != nil {
		t.Fatal(err)
	}
	return reply[3]
}

// TestPlainRequests checks plain requests, with bodies and the end of a chunked answer, over
// one connection that stays open.
func TestPlainRequests(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, func(c *Config) {
		c.Attribute = func(net.Conn) string { return `process="test"` }
	}, g.addr)
	c := dial(t, "tcp", a.http)
	at := s.origin.at("a.example")
	for _, row := range []struct{ method, rest, want string }{
		{"GET", "\r\n", "hello"},
		{"HEAD", "\r\n", ""},
		{"POST", "Content-Length: 3\r\n\r\nabc", "got hello"},
		{"POST", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "got hello"},
		{"POST", "Content-Length: 0\r\n\r\n", "hello"},
		{"PUT", "Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", ""},
	} {
		resp, body := c.ask(t, row.method, row.method+" http://"+at+"/a%20b?c=%2f HTTP/1.1\r\nHost: "+at+"\r\nProxy-Connection: keep-alive\r\nX-Exeat-Attributed: forged\r\n"+row.rest)
		if resp.StatusCode == http.StatusContinue {
			resp, body = c.ask(t, row.method, "")
			row.want = "got hello"
		}
		if resp.StatusCode != http.StatusOK || body != row.want || resp.Header.Get("X-Path") != "/a%20b?c=%2f" {
			t.Errorf("%s %q: %s %v %q", row.method, row.rest, resp.Status, resp.Header, body)
		}
		if row.method == "GET" && resp.Trailer.Get("X-Sum") != "7" {
			t.Errorf("trailer %v", resp.Trailer)
		}
		s.origin.mu.Lock()
		if got := s.origin.last.Get("X-Exeat-Attributed") + s.origin.last.Get("Proxy-Connection"); got != "" {
			t.Errorf("%s: the origin gets %q", row.method, got)
		}
		s.origin.mu.Unlock()
	}
	for decisions := 0; decisions < 6; {
		rec := <-g.records.all
		if rec.Event != audit.EventDecision {
			continue
		}
		if decisions++; rec.AttributedText() != `process="test"` {
			t.Errorf("%s: attributed %q", rec.Event, rec.AttributedText())
		}
	}
}

// TestAnAnswerThatIsCutOff checks that a client notices when the origin ends an answer in the
// middle.
func TestAnAnswerThatIsCutOff(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	var log bytes.Buffer
	a := s.serveAgent(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) }, g.addr)
	c, at := dial(t, "tcp", a.http), s.origin.at("a.example")
	c.send(t, "GET http://"+at+"/cut HTTP/1.1\r\nHost: "+at+"\r\n\r\n")
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err == nil || !strings.HasPrefix("hello", string(body)) { // a reset may overtake what came before it
		t.Errorf("the answer is %q, %v", body, err)
	}
	a.end()
	if log.Len() > 0 {
		t.Errorf("the agent logs %s", &log)
	}
}

// TestRefusalsAreRebuilt checks that the answer at a door is the one that the gateway gives by
// HTTP/1.1, word for word, but for the ids of the decision.
func TestRefusalsAreRebuilt(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, g.addr)
	for _, request := range []string{
		"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n",
		"CONNECT c.example:443 HTTP/1.1\r\nHost: c.example:443\r\n\r\n", // it cannot be resolved
		"CONNECT a.example:1 HTTP/1.1\r\nHost: a.example:1\r\n\r\n",     // it refuses the connection
		"GET http://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
		"HEAD http://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
		"POST http://other.test/ HTTP/1.1\r\nHost: other.test\r\nAccept: application/problem+json\r\nContent-Length: 3\r\n\r\nabc",
	} {
		want, wantBody := s.direct(t, g, request)
		method, _, _ := strings.Cut(request, " ")
		got, gotBody := dial(t, "tcp", a.http).ask(t, method, request)
		wantID, gotID := want.Header.Get("X-Exeat-Decision"), got.Header.Get("X-Exeat-Decision")
		if wantID == "" || len(wantID) != len(gotID) {
			t.Fatalf("%s: the ids are %q and %q", request, wantID, gotID)
		}
		same := func(text string) string { return strings.ReplaceAll(text, gotID, wantID) }
		for name, values := range got.Header {
			got.Header[name] = []string{same(values[0])}
		}
		if same(got.Status) != want.Status || same(gotBody) != wantBody || !maps.EqualFunc(got.Header, want.Header, func(a, b []string) bool { return a[0] == b[0] && len(b) == 1 }) {
			t.Errorf("%s\ngot  %s %v\n%s\nwant %s %v\n%s", request, got.Status, got.Header, gotBody, want.Status, want.Header, wantBody)
		}
	}
	if code := dial(t, "tcp", a.socks).socks(t, "other.test", "443"); code != 2 {
		t.Errorf("SOCKS5: reply %d to a denied name", code)
	}
	if code := dial(t, "tcp", a.socks).socks(t, "a.example", "1"); code != 5 {
		t.Errorf("SOCKS5: reply %d for a port without a listener", code)
	}
}

// TestHTTP2AtADoor checks that a client may speak HTTP/2 to a door, with prior knowledge: each
// stream becomes a tunnel of its own.
func TestHTTP2AtADoor(t *testing.T) {
	s := newSite(t)
	g := s.serveGateway(t, "127.0.0.1:0", nil)
	a := s.serveAgent(t, nil, g.addr)
	c := dial(t, "tcp", a.http)
	link, err := tunnel.NewLink(c.Conn)
	if err != nil {
		t.Fatal(err)
	}
	client, ended := h2.New(h2.Config{Client: true}, link), make(chan struct{})
	go func() {
		defer close(ended)
		_ = client.Run(context.Background(), nil)
	}()
	defer func() { client.Close(); <-ended }()
	for range 3 {
		stream, err := client.Open(t.Context(), []h2.Field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: s.origin.at("a.example")}}, false)
		if err != nil {
			t.Fatal(err)
		}
		head, err := stream.Answer(t.Context())
		if err != nil || head.Get(":status") != "200" {
			t.Fatalf("%v, %v", head, err)
		}
		(&caller{stream, bufio.NewReader(stream)}).finish(t)
		_ = stream.Close()
	}
}
