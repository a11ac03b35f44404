package front_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/head"
)

// queried describes what a handler got of a request.
func queried(r *front.Request) string {
	switch {
	case r.Reason != allowlist.NoReason:
		return r.Reason.String()
	case r.Query == nil:
		return "no query"
	case r.IsPlain() || r.Head == nil || r.Asked != (allowlist.Request{}):
		return "a query that is something else, too"
	case r.Query.Body == nil:
		return fmt.Sprintf("%s %q, length %d", r.Method, r.Query.Parameters, r.Body)
	}
	body, err := io.ReadAll(r.Query.Body)
	if err != nil {
		return "an incomplete body " + string(body)
	}
	return fmt.Sprintf("%s %q %q", r.Method, r.Query.Parameters, body)
}

// queryText returns a request for a query over HTTP/1.1.
func queryText(method, target, fields, body string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: gateway.example\r\n" + fields + "\r\n" + body
}

// reporting returns a handler that answers every request with what it got. It does not read
// the body if unread is set.
func reporting(unread bool) handler {
	return func(r *front.Request) front.Answer {
		text := "unread"
		if !unread || r.Query == nil {
			text = queried(r)
		}
		return front.Answer{Kind: front.Local, Response: front.Response{Status: http.StatusOK, Body: []byte(text)}}
	}
}

// TestQueryThatAHandlerGets checks which requests are queries, and what the handler gets of
// them.
func TestQueryThatAHandlerGets(t *testing.T) {
	const target = "/dns-query"
	long := strings.Repeat("x", 70_000) // longer than the buffer for a head
	malformed := allowlist.MalformedTarget.String()
	for _, row := range []struct {
		name, raw, want string
		closes          bool
	}{
		{"GET", queryText("GET", target+"?dns=AAAA", "", ""), `GET "dns=AAAA" ""`, false},
		{"GET without parameters", queryText("GET", target, "", ""), `GET "" ""`, false},
		{"two question marks", queryText("GET", target+"?a?b", "", ""), `GET "a?b" ""`, false},
		{"another method", queryText("DELETE", target, "", ""), `DELETE "" ""`, false},
		{"POST", queryText("POST", target, "Content-Length: 3\r\n", "abc"), `POST "" "abc"`, false},
		{"POST of nothing", queryText("POST", target, "Content-Length: 0\r\n", ""), `POST "" ""`, false},
		{"a long body", queryText("POST", target, "Content-Length: 70000\r\n", long), `POST "" "` + long + `"`, false},
		{"GET with a body", queryText("GET", target, "Content-Length: 3\r\n", "abc"), `GET "" "abc"`, false},
		{"chunks", queryText("POST", target, "Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), fmt.Sprintf(`POST "", length %d`, head.Chunked), true},
		{"HTTP/1.0", "GET /dns-query HTTP/1.0\r\nHost: gateway.example\r\n\r\n", `GET "" ""`, true},
		{"HTTP/1.0 without Host", "GET /dns-query HTTP/1.0\r\n\r\n", malformed, true},
		{"another Host", "GET /dns-query HTTP/1.1\r\nHost: other.example\r\n\r\n", malformed, true},
		{"another path", queryText("GET", "/", "", ""), malformed, true},
		{"a longer path", queryText("GET", target+"/", "", ""), malformed, true},
		{"capital letters", queryText("GET", "/DNS-QUERY", "", ""), malformed, true},
		{"an escaped path", queryText("GET", "/dns%2dquery", "", ""), malformed, true},
		{"a fragment", queryText("GET", target+"#a", "", ""), malformed, true},
		{"the server itself", queryText("OPTIONS", "*", "", ""), malformed, true},
		{"https in absolute form", queryText("GET", "https://gateway.example/dns-query", "", ""), malformed, true},
		{"http in absolute form", queryText("GET", "http://gateway.example/dns-query", "", ""), "no query", false},
		{"CONNECT", queryText("CONNECT", target, "", ""), malformed, true},
		{"two lengths", queryText("POST", target, "Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), allowlist.MalformedHeader.String(), true},
		{"a length and chunks", queryText("POST", target, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "abc"), allowlist.MalformedHeader.String(), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			report := reporting(false)
			s := serve(t, front.Config{}, queryHandler{func(r *front.Request) front.Answer {
				a := report(r)
				a.Last = r.Reason != allowlist.NoReason
				return a
			}}, nil)
			c := s.dial(t)
			if a := c.ask(t, row.raw); a.body != row.want || a.Close != row.closes {
				t.Errorf("the handler got %.100s, and the connection closes: %v; want %.100s, %v", a.body, a.Close, row.want, row.closes)
			}
			if !row.closes {
				if a := c.ask(t, queryText("GET", target+"?next", "", "")); a.body != `GET "next" ""` {
					t.Errorf("the next request: %s", a.body)
				}
			}
		})
	}
}

// TestListenerWithoutDoHTakesNoQueries checks that a query is refused like any other
// request in origin form on a listener that takes none.
func TestListenerWithoutDoHTakesNoQueries(t *testing.T) {
	s := serve(t, front.Config{}, handler(func(r *front.Request) front.Answer {
		if r.Query != nil {
			t.Error("the handler got a query")
		}
		return refusing(allowlist.Draining)(r)
	}), nil)
	if a := s.dial(t).ask(t, queryText("GET", "/dns-query?dns=AAAA", "", "")); a.reason() != allowlist.MalformedTarget.String() {
		t.Errorf("answered %s", a.Status)
	}
}

// TestUnreadBodyIsNoRequest checks that a body which the handler has not read, or not to its
// end, is never read as the next request.
func TestUnreadBodyIsNoRequest(t *testing.T) {
	body := queryText("GET", "/dns-query?smuggled", "", "")
	fields := fmt.Sprintf("Content-Length: %d\r\n", len(body))
	some := queryHandler{func(r *front.Request) front.Answer {
		a := reporting(true)(r)
		if _, err := io.ReadFull(r.Query.Body, make([]byte, 4)); err != nil {
			t.Error(err)
		}
		return a
	}}
	for name, h := range map[string]front.Handler{"nothing": queryHandler{reporting(true)}, "some bytes": some} {
		s := serve(t, front.Config{}, h, nil)
		c := s.dial(t)
		if a := c.ask(t, queryText("POST", "/dns-query", fields, body)); a.body != "unread" || !a.Close {
			t.Errorf("%s is read: answered %q, closing: %v", name, a.body, a.Close)
		}
		c.gone(t)
	}
}

// TestPipelinedQueriesAreAnsweredInTurn checks that the bytes behind a body are the next
// request.
func TestPipelinedQueriesAreAnsweredInTurn(t *testing.T) {
	s := serve(t, front.Config{}, queryHandler{reporting(false)}, nil)
	c := s.dial(t)
	c.send(t, queryText("POST", "/dns-query", "Content-Length: 3\r\n", "abc")+queryText("GET", "/dns-query?x", "", "")+plain)
	for _, want := range []string{`POST "" "abc"`, `GET "x" ""`, "no query"} {
		if a := c.read(t, http.MethodGet); a.body != want || a.Close {
			t.Errorf("answered %q, closing: %v; want %q", a.body, a.Close, want)
		}
	}
}

// TestBodyThatEndsEarlyIsIncomplete checks that a body whose client ends before it is
// complete is not taken for a whole one.
func TestBodyThatEndsEarlyIsIncomplete(t *testing.T) {
	s := serve(t, front.Config{}, queryHandler{reporting(false)}, nil)
	c := s.dial(t)
	c.send(t, queryText("POST", "/dns-query", "Content-Length: 5\r\n", "abc"))
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if a := c.read(t, http.MethodPost); a.body != "an incomplete body abc" || !a.Close {
		t.Errorf("answered %q, closing: %v", a.body, a.Close)
	}
}

// TestBodyThatIsAwaited checks that a client which waits for 100 (Continue) gets it before
// the body is read, and only then.
func TestBodyThatIsAwaited(t *testing.T) {
	const expect = "Expect: 100-continue\r\n"
	for _, row := range []struct {
		name, raw, rest string
		unread          bool
		want            []string
	}{
		{"the client waits", queryText("POST", "/dns-query", expect+"Content-Length: 3\r\n", ""), "abc", false, []string{"100 Continue", "200 OK"}},
		{"the body has come", queryText("POST", "/dns-query", expect+"Content-Length: 3\r\n", "abc"), "", false, []string{"200 OK"}},
		{"the body is not read", queryText("POST", "/dns-query", expect+"Content-Length: 3\r\n", ""), "", true, []string{"200 OK"}},
		{"there is no body", queryText("GET", "/dns-query", expect, ""), "", false, []string{"200 OK"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := serve(t, front.Config{}, queryHandler{reporting(row.unread)}, nil)
			c := s.dial(t)
			c.send(t, row.raw)
			for _, want := range row.want {
				a := c.read(t, http.MethodPost)
				if a.Status != want {
					t.Errorf("answered %s, want %s", a.Status, want)
				}
				if a.StatusCode == http.StatusContinue {
					c.send(t, row.rest)
				}
			}
		})
	}
}

// TestBodyComesWithinTheTimeForTheHead checks that the body of a query which does not come
// is waited for no longer than the head would be.
func TestBodyComesWithinTheTimeForTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ended := inBubbleOf(t, front.NewH1(front.Config{HeadTimeout: 7 * time.Second}), queryHandler{reporting(false)})
		began := time.Now()
		head := queryText("POST", "/dns-query", "Content-Length: 5\r\n", "abc")
		c.send(t, head[:10])
		time.Sleep(3 * time.Second)
		c.send(t, head[10:])
		if a := c.read(t, http.MethodPost); a.body != "an incomplete body abc" || !a.Close {
			t.Errorf("answered %q, closing: %v", a.body, a.Close)
		}
		if took := time.Since(began); took != 7*time.Second {
			t.Errorf("answered after %s, want the head timeout", took)
		}
		_ = c.Close()
		<-ended
	})
}
