package front_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// givenBody is the body of a given answer.
const givenBody = "the words of somebody else\n"

// given returns an answer that was given to the handler. The Refusal beside it must not be
// written.
func given(status int, proxyError string) front.Answer {
	return front.Answer{
		Refusal: refusal.Refusal{Reason: allowlist.Draining, DecisionID: "d-1", Detail: "another refusal"},
		Given: &refusal.Response{
			Status: status, Phrase: "As It Was Given",
			Fields: []refusal.Field{
				{Name: "Proxy-Status", Value: "next; error=" + proxyError},
				{Name: "X-Given", Value: "a"},
				{Name: "X-Given", Value: "b"},
				{Name: "Content-Type", Value: "text/given"},
				{Name: "Content-Length", Value: strconv.Itoa(len(givenBody))},
			},
			Body: []byte(givenBody), Error: proxyError,
		},
	}
}

// givenText is what a client of HTTP/1.1 reads of a given answer.
func givenText(status int, connection, body string) string {
	return "HTTP/1.1 " + strconv.Itoa(status) + " As It Was Given\r\n" + connection +
		"Proxy-Status: next; error=x\r\nX-Given: a\r\nX-Given: b\r\nContent-Type: text/given\r\nContent-Length: " +
		strconv.Itoa(len(givenBody)) + "\r\n\r\n" + body
}

// TestGivenAnswerIsWrittenWordForWord checks the bytes that a client of HTTP/1.x reads, whatever
// it accepts and the front discloses.
func TestGivenAnswerIsWrittenWordForWord(t *testing.T) {
	const closing = "Connection: close\r\n"
	for _, row := range []struct {
		name, raw string
		status    int
		want      string
		keeps     bool
	}{
		{"GET", plain, 403, givenText(403, "", givenBody), true},
		{"HEAD", "HEAD" + strings.TrimPrefix(plain, "GET"), 403, givenText(403, "", ""), true},
		{"a client of JSON", strings.Replace(plain, "Host", "Accept: application/problem+json\r\nHost", 1), 403, givenText(403, "", givenBody), true},
		{"CONNECT", connect, 403, givenText(403, closing, givenBody), false},
		{"another status", plain, 418, givenText(418, closing, givenBody), false},
		{"a malformed head", "GET http://a.example/ HTTP/1.1\r\nHost\r\n\r\n", 403, givenText(403, closing, givenBody), false},
	} {
		for _, disclosure := range []refusal.Disclosure{refusal.Full, refusal.ID, refusal.None} {
			t.Run(row.name, func(t *testing.T) {
				var o outcome
				answer := given(row.status, "x")
				s := serve(t, front.Config{Disclosure: disclosure}, handler(func(*front.Request) front.Answer {
					a := answer
					a.Done = o.done
					return a
				}), nil)
				c := s.dial(t)
				c.send(t, row.raw)
				got := make([]byte, len(row.want))
				if _, err := io.ReadFull(c.reader, got); err != nil || string(got) != row.want {
					t.Errorf("answered %q, %v, want %q", got, err, row.want)
				}
				if row.keeps {
					if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				c.gone(t)
				_ = c.Close()
				if e := s.end(t); e != (ending{}) {
					t.Errorf("ended as %+v", e)
				}
				o.check(t, row.name, true)
				if string(answer.Given.Body) != givenBody {
					t.Errorf("the answer of the handler was changed: %q", answer.Given.Body)
				}
			})
		}
	}
}

// TestConnectionAfterAGivenAnswer checks that a connection stays open after a given answer as
// it does after a refusal with the same status.
func TestConnectionAfterAGivenAnswer(t *testing.T) {
	const body = "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
	last := given(http.StatusForbidden, "x")
	last.Last = true
	for _, row := range []struct {
		name, raw string
		answer    front.Answer
		keeps     bool
	}{
		{"denied", plain, given(http.StatusForbidden, "x"), true},
		{"over a limit", plain, given(http.StatusTooManyRequests, "x"), true},
		{"an origin that fails", plain, given(http.StatusBadGateway, "x"), true},
		{"an origin that is too slow", plain, given(http.StatusGatewayTimeout, "x"), true},
		{"no identity", plain, given(http.StatusProxyAuthRequired, "x"), true},
		{"no identity for a CONNECT", connect, given(http.StatusProxyAuthRequired, "x"), true},
		{"no identity for a CONNECT with early bytes", connect + "early", given(http.StatusProxyAuthRequired, "x"), false},
		{"a CONNECT that is denied", connect, given(http.StatusForbidden, "x"), false},
		{"a body", body, given(http.StatusForbidden, "x"), false},
		{"malformed", plain, given(http.StatusBadRequest, "x"), false},
		{"an internal error", plain, given(http.StatusInternalServerError, "x"), false},
		{"the shutdown", plain, given(http.StatusServiceUnavailable, "x"), false},
		{"the last one", plain, last, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := askOnce(t, row.raw, row.answer, row.keeps)
			if a.StatusCode != row.answer.Given.Status || a.body != givenBody || a.Close == row.keeps {
				t.Errorf("answered %s %q, closing: %v", a.Status, a.body, a.Close)
			}
		})
	}
	t.Run("no answer can be sent", func(t *testing.T) {
		var o outcome
		s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer {
			return front.Answer{Given: &refusal.Response{}, Done: o.done}
		}), nil)
		c := s.dial(t)
		c.send(t, plain)
		c.gone(t)
		s.end(t)
		o.check(t, "no answer", true)
	})
	t.Run("no identity again and again", func(t *testing.T) {
		s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer { return given(http.StatusProxyAuthRequired, "x") }), nil)
		c := s.dial(t)
		for i := range 4 {
			if a := c.ask(t, plain); a.Close != (i == 3) {
				t.Errorf("answer %d: closing: %v", i+1, a.Close)
			}
		}
		c.gone(t)
	})
}

// serveH2 serves one connection with a scripted peer as its client.
func serveH2(t *testing.T, cfg front.Config, h front.Handler) *h2test.Peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		defer func() { _ = server.Close() }()
		front.NewH1(cfg).Serve(context.WithoutCancel(t.Context()), front.Conn{Conn: server, Cut: func() {}, Abort: func() {}}, h)
	})
	t.Cleanup(func() {
		_ = client.Close()
		serving.Wait()
	})
	return h2test.NewPeer(t, client)
}

// TestGivenAnswerOnAStream checks a given answer over HTTP/2, which has no reason phrase.
func TestGivenAnswerOnAStream(t *testing.T) {
	var o outcome
	p := serveH2(t, front.Config{Disclosure: refusal.None}, handler(func(r *front.Request) front.Answer {
		host, _, _ := strings.Cut(r.Asked.Dest.String(), ":")
		switch host {
		case "none.example":
			return front.Answer{Given: &refusal.Response{}}
		case "last.example":
			a := given(http.StatusForbidden, "x")
			a.Last = true
			return a
		}
		a := given(http.StatusForbidden, "x")
		a.Done = o.done
		return a
	}))
	id := uint32(1)
	ask := func(method, host string) (head h2test.Event, data string, end h2test.Event) {
		t.Helper()
		if method == http.MethodConnect {
			p.Connect(t, id, host+":443")
		} else {
			p.Open(t, id, true, ":method", method, ":scheme", "http", ":authority", host, ":path", "/")
		}
		head = p.On(t, id)
		end = head
		if head.Kind == h2test.Head && !head.End {
			data, end = p.Rest(t, id)
		}
		id += 2
		return head, data, end
	}
	for _, method := range []string{http.MethodGet, http.MethodConnect, http.MethodHead} {
		head, data, end := ask(method, "a.example")
		body := givenBody
		if method == http.MethodHead {
			body = ""
		}
		if head.Status() != "403" || data != body || !end.End {
			t.Errorf("%s was answered %+v %q, ending with %+v", method, head, data, end)
		}
		var fields []string
		for _, f := range head.Fields {
			if f.Name != "date" {
				fields = append(fields, f.Name+": "+f.Value)
			}
		}
		want := ":status: 403|proxy-status: next; error=x|x-given: a|x-given: b|content-type: text/given|content-length: " + strconv.Itoa(len(givenBody))
		if got := strings.Join(fields, "|"); got != want {
			t.Errorf("%s was answered %q, want %q", method, got, want)
		}
	}
	o.mu.Lock()
	if len(o.told) != 3 || o.told[0] != nil || o.told[1] != nil || o.told[2] != nil {
		t.Errorf("Done was called with %v", o.told)
	}
	o.mu.Unlock()
	if head, _, _ := ask(http.MethodGet, "none.example"); head.Kind != h2test.Reset {
		t.Errorf("an answer that cannot be sent: %+v", head)
	}
	if head, data, _ := ask(http.MethodGet, "last.example"); head.Status() != "403" || data != givenBody {
		t.Errorf("the last answer: %+v %q", head, data)
	}
	for {
		if e := p.Next(t); e.Kind == h2test.GoAway {
			if e.Code != http2.ErrCodeNo {
				t.Errorf("%+v, want the end without an error", e)
			}
			return
		} else if e.Kind == h2test.Ended {
			t.Fatal("the connection has ended without GOAWAY")
		}
	}
}

// TestGivenAnswerOverSOCKS5 checks that the reply follows from the status and the error type of
// a given answer, and from nothing that the front has found itself.
func TestGivenAnswerOverSOCKS5(t *testing.T) {
	const good = greeting + command
	for _, row := range []struct {
		name, sent string
		answer     front.Answer
		want       string
	}{
		{"denied", good + named("a.example", 443), given(403, "http_request_denied"), selected + replyOf(2)},
		{"refused by the origin", good + named("a.example", 443), given(502, "connection_refused"), selected + replyOf(5)},
		{"refused by the origin, which was not told", good + named("a.example", 443), given(502, ""), selected + replyOf(4)},
		{"no answer of the origin", good + named("a.example", 443), given(504, "connection_timeout"), selected + replyOf(6)},
		{"busy", good + named("a.example", 443), given(503, "connection_limit_reached"), selected + replyOf(1)},
		{"no answer can be sent", good + named("a.example", 443), front.Answer{Given: &refusal.Response{}}, selected},
		{"a fault of the request", good + "\x09", given(502, "connection_refused"), selected + replyOf(5)},
		{"a fault of the request, and a refusal for it beside the answer", good + "\x09", given(502, "connection_refused"), selected + replyOf(5)},
	} {
		t.Run(row.name, func(t *testing.T) {
			var o outcome
			s := serveBy(t, front.NewSOCKS5(front.Config{Disclosure: refusal.None}), handler(func(r *front.Request) front.Answer {
				a := row.answer
				if strings.Contains(row.name, "beside") {
					a.Refusal.Reason = r.Reason
				}
				a.Done = o.done
				return a
			}), nil)
			c := s.dial(t)
			c.send(t, row.sent)
			if got, err := io.ReadAll(c); err != nil || string(got) != row.want {
				t.Errorf("answered %q, %v, want %q", got, err, row.want)
			}
			_ = c.Close()
			if e := s.end(t); e != (ending{}) {
				t.Errorf("ended as %+v", e)
			}
			o.check(t, row.name, true)
		})
	}
}
