package proxy_test

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// asked returns the connection on which a request has come to the origin. Its head was
// read, and its body was not.
func (g *gateway) asked(t *testing.T) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	conn := g.origin.next(t)
	reader := bufio.NewReader(conn)
	if _, err := http.ReadRequest(reader); err != nil {
		t.Fatal(err)
	}
	return conn, reader
}

// TestWaitingClientIsRefusedWhenTheOriginCloses checks that a client which has sent half a
// body, or waits for 100 (Continue), is refused at once when the origin closes its
// connection.
func TestWaitingClientIsRefusedWhenTheOriginCloses(t *testing.T) {
	t.Parallel() // it waits longer than the timer of the transport
	for name, row := range map[string]struct{ field, body, origin string }{
		"half a body":            {"Accept: */*", "hal", ""},
		"half a body and a hint": {"Accept: */*", "hal", "HTTP/1.1 103 Early Hints\r\n\r\n"},
		"half an answer":         {"Expect: 100-continue", "", "HTTP/1.1 200 OK\r\nX:"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{})
			c := g.call(t, "builder")
			c.send(t, plainTo("POST", "http://"+g.at("allowed.example")+"/", "Content-Length: 5", row.field)+row.body)
			conn, reader := g.asked(t)
			if _, err := io.ReadFull(reader, make([]byte, len(row.body))); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, row.origin); err != nil {
				t.Fatal(err)
			}
			if row.body != "" && row.origin != "" {
				if resp, err := http.ReadResponse(c.reader, nil); err != nil || resp.StatusCode/100 != 1 {
					t.Fatalf("%v, %v", resp, err)
				}
			}
			if row.body == "" { // wait longer than the transport waits for 100
				if err := c.SetReadDeadline(time.Now().Add(1500 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				if b, err := c.reader.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the client got %q, %v", b, err)
				}
				if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
			}
			_ = conn.Close()
			if a := c.answer(t); a.status != 502 || a.reason() != "response-failed" {
				t.Errorf("answered %s", a.phrase)
			}
			if decision := g.next(t, audit.EventDecision); decision.Reason != "response-failed" {
				t.Errorf("record %+v", decision)
			}
			g.next(t, audit.EventTunnelClose)
		})
	}
}

// TestRevokedUpgradeClosesTheConnectionToTheOrigin forbids a request for an upgrade while
// the origin is silent, or sends an ordinary answer.
func TestRevokedUpgradeClosesTheConnectionToTheOrigin(t *testing.T) {
	for name, origin := range map[string]string{
		"no answer":      "",
		"half an answer": "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab",
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{})
			enforcer := g.enforcer()
			c := g.call(t, "builder")
			c.send(t, get("http://"+g.at("ws.example")+"/", "Connection: Upgrade", "Upgrade: websocket"))
			conn, reader := g.asked(t)
			if _, err := io.WriteString(conn, origin); err != nil {
				t.Fatal(err)
			}
			if origin != "" {
				resp, err := http.ReadResponse(c.reader, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(resp.Body, make([]byte, 2)); err != nil {
					t.Fatal(err)
				}
			}
			spec := g.policy()
			spec.Version, spec.Entries = "two", spec.Entries[1:]
			policy, err := allowlist.Compile(spec)
			if err != nil {
				t.Fatal(err)
			}
			enforcer.put(t.Context(), policy)
			if _, err := reader.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the origin's connection: %v, want its end", err)
			}
			if origin != "" {
				c.gone(t)
			} else if a := c.answer(t); a.status != 502 || a.reason() != "cut-off" {
				t.Errorf("answered %s", a.phrase)
			}
			g.next(t, audit.EventDecision)
			if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "revoked" {
				t.Errorf("record %+v", end)
			}
		})
	}
}

// TestUpgradesToOtherProtocolsThanWebSocket checks upgrades to other protocols than
// WebSocket, which is the only one that goproxy knows.
func TestUpgradesToOtherProtocolsThanWebSocket(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, get("http://"+g.at("ws.example")+"/", "Connection: Upgrade", "Upgrade: spdy/3.1"))
	conn := g.origin.next(t)
	reader := bufio.NewReader(conn)
	req, err := http.ReadRequest(reader)
	if err != nil {
		t.Fatal(err)
	}
	if req.Header.Get("Connection") != "Upgrade" || req.Header.Get("Upgrade") != "spdy/3.1" {
		t.Errorf("the origin got %v", req.Header)
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nConnection: close, X-Named\r\nX-Named: 1\r\nLink: </a>\r\n\r\n"+
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Named\r\nX-Named: 2\r\nUpgrade: SPDY/3.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.status != http.StatusEarlyHints || a.header.Get("Link") != "</a>" || a.header.Get("X-Named") != "" {
		t.Errorf("answered %s %v", a.phrase, a.header)
	}
	if a := c.answer(t); a.status != http.StatusSwitchingProtocols || a.header.Get("Upgrade") != "SPDY/3.1" || a.header.Get("X-Named") != "" {
		t.Errorf("answered %s %v", a.phrase, a.header)
	}
	echo(t, c, conn, reader)
	_ = conn.Close()
	c.gone(t)
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
}

// TestUpgradeToAnUnrequestedProtocolIsRefused checks that an upgrade to a protocol that
// was not requested is refused.
func TestUpgradeToAnUnrequestedProtocolIsRefused(t *testing.T) {
	for name, fields := range map[string]string{
		"no protocol":               "Connection: Upgrade\r\n",
		"another protocol":          "Connection: Upgrade\r\nUpgrade: h2c\r\n",
		"no Upgrade in Connection":  "Upgrade: websocket\r\n", // RFC 9110 section 7.8
		"the end of the connection": "Connection: Upgrade, close\r\nUpgrade: websocket\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{})
			c := g.call(t, "builder")
			c.send(t, get("http://"+g.at("ws.example")+"/", "Connection: Upgrade", "Upgrade: websocket, spdy/3.1"))
			conn, reader := g.asked(t)
			if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n"+fields+"\r\n"); err != nil {
				t.Fatal(err)
			}
			if a := c.answer(t); a.status != 502 || a.reason() != "response-failed" || a.close {
				t.Errorf("answered %s", a.phrase)
			}
			if _, err := reader.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the origin's connection: %v, want its end", err)
			}
			g.next(t, audit.EventDecision)
			g.next(t, audit.EventTunnelClose)
		})
	}
}

// TestPanicEndsItsConnectionOnly checks that a panic anywhere ends its connection only.
func TestPanicEndsItsConnectionOnly(t *testing.T) {
	g := newGateway(t, options{})
	for name, head := range map[string]string{
		"a request":  get("http://" + g.at("panic.example") + "/"),
		"an upgrade": get("http://"+g.at("panic.example")+"/", "Connection: Upgrade", "Upgrade: websocket"),
	} {
		t.Run(name, func(t *testing.T) {
			before := g.proxy.Panics()
			c := g.call(t, "builder")
			if a := c.ask(t, head); a.status != 500 || a.reason() != "internal-error" || !a.close {
				t.Errorf("answered %s", a.phrase)
			}
			c.ended(t)
			if n := g.proxy.Panics() - before; n != 1 {
				t.Errorf("%d panics", n)
			}
			if decision := g.next(t, audit.EventDecision); decision.Verdict != "fail" || decision.Reason != "internal-error" {
				t.Errorf("record %+v", decision)
			}
			if n := g.registry.Len(); n != 0 {
				t.Errorf("%d entries left in the registry", n)
			}
		})
	}
}

// TestExchangeHasAnEndAfterAPanicInItsSecondTry checks a panic while the transport tries
// again on a new connection: the record of the exchange must have an end.
func TestExchangeHasAnEndAfterAPanicInItsSecondTry(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, get("http://"+g.at("once.example")+"/"))
	conn, reader := g.asked(t)
	if _, err := io.WriteString(conn, ok); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.body != "ok" {
		t.Fatalf("answered %s", a.phrase)
	}
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
	c.send(t, get("http://"+g.at("once.example")+"/"))
	if _, err := http.ReadRequest(reader); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if a := c.answer(t); a.status != 500 || a.reason() != "internal-error" || !a.close {
		t.Errorf("answered %s", a.phrase)
	}
	if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "error" {
		t.Errorf("record %+v", end)
	}
	if decision := g.next(t, audit.EventDecision); decision.Verdict != "fail" || decision.Reason != "internal-error" {
		t.Errorf("record %+v", decision)
	}
	if n := g.registry.Len(); n != 0 {
		t.Errorf("%d entries left in the registry", n)
	}
}

// TestBytesAreCountedOnce checks the counts when a connection to an origin is used by the
// next request before the exchange of the last one has ended.
func TestBytesAreCountedOnce(t *testing.T) {
	const callers, requests = 8, 100
	g := newGateway(t, options{})
	sizes := make(chan int, callers*requests)
	g.origin.serve(t, func(req request) string { sizes <- len(req.raw); return ok })
	var calling sync.WaitGroup
	for range callers {
		c := g.call(t, "builder")
		calling.Go(func() {
			for range requests {
				if _, err := io.WriteString(c, get("http://"+g.at("allowed.example")+"/")); err != nil {
					t.Error(err)
					return
				}
				resp, err := http.ReadResponse(c.reader, nil)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
			}
		})
	}
	calling.Wait()
	want, counted := int64(<-sizes), 0
	for _, r := range g.rest(t) {
		if r.Event != string(audit.EventTunnelClose) {
			continue
		}
		if counted++; r.Up != want {
			t.Errorf("%d bytes up in the record, want %d", r.Up, want)
		}
	}
	if counted != callers*requests {
		t.Errorf("%d exchanges ended, want %d", counted, callers*requests)
	}
}

// TestInterimAnswersAreBounded checks that the number of interim answers is bounded,
// whether or not they are sent on.
func TestInterimAnswersAreBounded(t *testing.T) {
	for _, status := range []string{"103 Early Hints", "100 Continue"} {
		t.Run(status, func(t *testing.T) {
			g := newGateway(t, options{})
			c := g.call(t, "builder")
			c.send(t, get("http://"+g.at("allowed.example")+"/"))
			conn, _ := g.asked(t)
			var flooding sync.WaitGroup
			flooding.Go(func() {
				for {
					if _, err := io.WriteString(conn, "HTTP/1.1 "+status+"\r\n\r\n"); err != nil {
						return
					}
				}
			})
			for interims := 0; ; interims++ {
				a := c.answer(t)
				if a.status == 502 && a.reason() == "response-failed" {
					break
				}
				if a.status != 103 || interims == 100 {
					t.Fatalf("answered %s after %d interim answers", a.phrase, interims)
				}
			}
			flooding.Wait()
			g.next(t, audit.EventDecision)
			g.next(t, audit.EventTunnelClose)
		})
	}
}

// TestBytesBehindAnAnswerAreNotTheNextAnswer checks that bytes behind an answer, such as a
// second answer or a body that the answer cannot have, are not taken for the answer to the
// next request on the connection.
func TestBytesBehindAnAnswerAreNotTheNextAnswer(t *testing.T) {
	const callers, requests = 8, 100
	const more = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nanother"
	answers := map[string]string{
		"HEAD /":   "HTTP/1.1 200 OK\r\nContent-Length: 62\r\n\r\n" + more,
		"GET /304": "HTTP/1.1 304 Not Modified\r\n\r\n" + more,
		"GET /200": ok + more,
	}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler)) // net/http logs each of these
	t.Cleanup(func() { slog.SetDefault(before) })
	g := newGateway(t, options{})
	g.lossy = true // the test does not read the records
	g.origin.serve(t, func(req request) string { return cmp.Or(answers[req.Method+" "+req.URL.Path], ok) })
	var calling sync.WaitGroup
	for range callers {
		c := g.call(t, "builder")
		calling.Go(func() {
			for i := range requests {
				method, path, _ := strings.Cut([]string{"HEAD /", "GET /304", "GET /200", "GET /"}[i%4], " ")
				if _, err := io.WriteString(c, plainTo(method, "http://"+g.at("allowed.example")+path)); err != nil {
					t.Error(err)
					return
				}
				resp, err := http.ReadResponse(c.reader, &http.Request{Method: method})
				if err != nil {
					t.Error(err)
					return
				}
				if body, _ := io.ReadAll(resp.Body); resp.StatusCode > 304 || len(body) > 0 && string(body) != "ok" {
					t.Errorf("%s %s was answered %s %q", method, path, resp.Status, body)
				}
			}
		})
	}
	calling.Wait()
	g.rest(t)
}

// TestBytesOnAnIdleConnectionAreNotTheNextAnswer checks that bytes which an origin sends
// on an idle connection do not reach the next request.
func TestBytesOnAnIdleConnectionAreNotTheNextAnswer(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	for range 2 {
		c.send(t, get("http://"+g.at("allowed.example")+"/"))
		conn, reader := g.asked(t)
		if _, err := io.WriteString(conn, ok); err != nil {
			t.Fatal(err)
		}
		if a := c.answer(t); a.body != "ok" {
			t.Errorf("answered %s %q", a.phrase, a.body)
		}
		g.next(t, audit.EventDecision)
		g.next(t, audit.EventTunnelClose)
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nanother"); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the origin's connection: %v, want its end", err)
		}
	}
}

// TestListsOfFieldNamesAreBounded checks that the longest allowed lists of field names are
// handled name by name, and that messages with longer ones are refused.
func TestListsOfFieldNamesAreBounded(t *testing.T) {
	const most = 128 // half of head.MaxMembers
	numbered := func(format string, n int) string {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf(format, i))
		}
		return strings.Join(names, ", ")
	}
	lines := func(names string) string { return strings.ReplaceAll(names, ", ", ": 1\r\n") + ": 1\r\n" }
	r := newPlainRig(t, "")
	c := r.call(t, "builder")
	ask := func(named int) *http.Response {
		r.answer = func(request) string {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: " + numbered("O-%d", named) + "\r\nTrailer: " + numbered("P-%d", most/2) + ", " +
				numbered("O-%d", most/2) + "\r\n" + lines(numbered("O-%d", 50)) + "\r\n0\r\n" + lines(numbered("O-%d", 50)) + lines(numbered("P-%d", 50)) + "\r\n"
		}
		c.send(t, plainTo("POST", r.url("allowed.example", "/"), "Transfer-Encoding: chunked",
			"Connection: "+numbered("x-%d", most), "Trailer: "+numbered("Y-%d", most/2)+", "+numbered("X-%d", most/2))+
			"0\r\n"+lines(numbered("x-%d", 50))+lines(numbered("Y-%d", 50))+"\r\n")
		resp, err := http.ReadResponse(c.reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp
	}
	if resp := ask(most); resp.StatusCode != 200 || strings.Contains(fmt.Sprint(resp.Header, resp.Trailer), "O-") || len(resp.Trailer) != most/2 ||
		resp.Trailer.Get("P-49") != "1" {
		t.Errorf("answered %s, %v, trailer %v", resp.Status, resp.Header, resp.Trailer)
	}
	if got := r.received(t).raw; strings.Contains(got, "X-") || strings.Count(got, "Y-") != most/2+50 {
		t.Errorf("the origin got %q", got)
	}
	r.carried(t)
	if resp := ask(most + 1); resp.StatusCode != 502 || !strings.Contains(resp.Header.Get("Proxy-Status"), "reason=response-failed") {
		t.Errorf("answered %s", resp.Status)
	}
	r.received(t)
	r.carried(t)
	for _, fields := range []string{"Connection: " + numbered("O-%d", 2*most+1) + "\r\n", lines(numbered("O-%d", 257))} {
		r.answer = func(request) string { return "HTTP/1.1 103 Early Hints\r\n" + fields + "\r\n" + ok }
		c = r.call(t, "builder")
		if a := c.ask(t, get(r.url("allowed.example", "/"))); a.status != 502 || a.reason() != "response-failed" {
			t.Errorf("with an interim answer answered %s", a.phrase)
		}
		r.received(t)
		r.carried(t)
	}
	c = r.call(t, "builder")
	if a := c.ask(t, get(r.url("allowed.example", "/"), "Connection: "+numbered("x-%d", 2*most+1))); a.status != 431 || a.reason() != "head-too-large" {
		t.Errorf("answered %s", a.phrase)
	}
	if decision := r.next(t, audit.EventDecision); decision.Detail != "line 3: 257 names of fields in Connection and Trailer, more than 256: head too large" {
		t.Errorf("record %+v", decision)
	}
}
