package front_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

func readFull(r *front.Request, body []byte) (int, error) {
	if len(body) == 0 {
		return 0, nil
	}
	return io.ReadFull(r.Reader, body)
}

// TestConnectionAfterARefusal checks that a connection stays open after a refusal only if no bytes
// that have come could be misread as another request.
func TestConnectionAfterARefusal(t *testing.T) {
	const (
		old     = "GET http://a.example/ HTTP/1.0\r\n\r\n"
		closing = "GET http://a.example/ HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"
		body    = "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
		chunked = "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
		lower   = "connect a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"
	)
	for _, row := range []struct {
		name, raw string
		reason    allowlist.Reason
		keeps     bool
	}{
		{"a plain request that is denied", plain, allowlist.NotOnAllowlist, true},
		{"a plain request over a limit", plain, allowlist.RateLimited, true},
		{"an origin that fails", plain, allowlist.DialFailed, true},
		{"an origin that is too slow", plain, allowlist.ResponseTimeout, true},
		{"no certificate", plain, allowlist.IdentityMissing, true},
		{"no certificate for a CONNECT", connect, allowlist.IdentityMissing, true},
		{"no certificate for a CONNECT with early bytes", connect + "early", allowlist.IdentityMissing, false},
		{"no certificate, with a body", body, allowlist.IdentityMissing, false},
		{"a CONNECT that is denied", connect, allowlist.NotOnAllowlist, false},
		{"a CONNECT to an origin that fails", connect, allowlist.DialFailed, false},
		{"a CONNECT in another case", lower, allowlist.NotOnAllowlist, false},
		{"a malformed target", plain, allowlist.MalformedTarget, false},
		{"an internal error", plain, allowlist.InternalError, false},
		{"the shutdown", plain, allowlist.Draining, false},
		{"HTTP/1.0", old, allowlist.NotOnAllowlist, false},
		{"the client asked for the end", closing, allowlist.NotOnAllowlist, false},
		{"a body", body, allowlist.NotOnAllowlist, false},
		{"chunks", chunked, allowlist.NotOnAllowlist, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := askOnce(t, row.raw, refused(row.reason), row.keeps)
			if a.StatusCode != row.reason.Info().Status || a.reason() != row.reason.String() || a.Close == row.keeps {
				t.Errorf("answered %s %v, want %s, and to keep the connection: %v", a.Status, a.Header, row.reason, row.keeps)
			}
		})
	}
}

// askOnce sends a request, which gets an answer, and returns that. If the connection stays
// open, it sends another one, which is refused. The connection must end in order.
func askOnce(t *testing.T, raw string, first front.Answer, keeps bool) *answer {
	t.Helper()
	var o outcome
	first.Done = o.done
	given := false
	s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer {
		if given {
			return refused(allowlist.Draining)
		}
		given = true
		return first
	}), nil)
	c := s.dial(t)
	a := c.ask(t, raw)
	if keeps {
		if a := c.ask(t, plain); a.reason() != allowlist.Draining.String() {
			t.Errorf("the next answer: %s", a.Status)
		}
	}
	c.gone(t)
	_ = c.Close()
	if e := s.end(t); e != (ending{}) {
		t.Errorf("ended as %+v", e)
	}
	o.check(t, "the answer", true)
	return a
}

// TestTheFormOfARefusal checks that the front chooses the form of a refusal, whatever the
// handler has set.
func TestTheFormOfARefusal(t *testing.T) {
	s := serve(t, front.Config{Disclosure: refusal.ID}, handler(func(*front.Request) front.Answer {
		return front.Answer{Refusal: refusal.Refusal{Reason: allowlist.NotOnAllowlist, DecisionID: "d-1", Detail: "the detail", Bodyless: true, JSON: true}}
	}), nil)
	c := s.dial(t)
	for _, row := range []struct {
		name, raw, contentType string
		bodyless               bool
	}{
		{"GET", plain, "text/plain; charset=utf-8", false},
		{"HEAD", "HEAD" + strings.TrimPrefix(plain, "GET"), "text/plain; charset=utf-8", true},
		{"JSON", strings.Replace(plain, "Host", "Accept: text/html, application/problem+json\r\nHost", 1), "application/problem+json", false},
	} {
		a := c.ask(t, row.raw)
		if a.Header.Get("Content-Type") != row.contentType || (a.body == "") != row.bodyless || a.ContentLength <= 0 || a.Close {
			t.Errorf("%s: answered %s %v %q", row.name, a.Status, a.Header, a.body)
		}
		if a.Header.Get("X-Exeat-Decision") != "d-1" || a.reason() != "" {
			t.Errorf("%s: told %v", row.name, a.Header)
		}
	}
}

// TestTheZeroAnswerRefuses checks that the zero Answer refuses any request with an
// internal error.
func TestTheZeroAnswerRefuses(t *testing.T) {
	s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer { return front.Answer{} }), nil)
	for _, raw := range []string{connect, plain, "\r\nx\r\n\r\n"} {
		c := s.dial(t)
		if a := c.ask(t, raw); a.StatusCode != http.StatusInternalServerError || a.reason() != allowlist.InternalError.String() || !a.Close {
			t.Errorf("%.20q: answered %s %v", raw, a.Status, a.Header)
		}
		c.gone(t)
	}
}

// TestACallerWithoutAnIdentity checks that a connection ends with the fourth refusal for
// want of an identity, also if there is another answer between them.
func TestACallerWithoutAnIdentity(t *testing.T) {
	n := 0
	s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer {
		if n++; n == 3 {
			return refused(allowlist.NotOnAllowlist)
		}
		return refused(allowlist.IdentityMissing)
	}), nil)
	c := s.dial(t)
	for i, raw := range []string{connect, plain, plain, connect, plain} {
		want := http.StatusProxyAuthRequired
		if i == 2 {
			want = http.StatusForbidden
		}
		if a := c.ask(t, raw); a.StatusCode != want || a.Close != (i == 4) {
			t.Errorf("answer %d: %s, closing: %v", i+1, a.Status, a.Close)
		}
	}
	c.gone(t)
}

// TestAClientThatGoesOnSending checks that the connection is not reset before the client
// has read its answer.
func TestAClientThatGoesOnSending(t *testing.T) {
	s := serve(t, front.Config{}, refusing(allowlist.NotOnAllowlist), nil)
	c := s.dial(t)
	c.send(t, "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
	for range 10 {
		c.send(t, strings.Repeat("a", 100_000))
	}
	if a := c.ask(t, ""); a.StatusCode != http.StatusForbidden {
		t.Errorf("answered %s", a.Status)
	}
	c.gone(t)
	select {
	case e := <-s.ended:
		t.Errorf("the connection was closed before its client had: %+v", e)
	default:
	}
}

// TestATunnelOpens checks that a tunnel runs after its client has got the answer, to a
// CONNECT and to an upgrade, and that Early returns what the client had already sent.
func TestATunnelOpens(t *testing.T) {
	const switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
	for _, row := range []struct {
		name, raw, early string
		switched, want   string
	}{
		{"by CONNECT", connect, "", "", "HTTP/1.1 200 OK\r\n\r\n"},
		{"by CONNECT, with early bytes", connect, "GET / HTTP/1.1\r\n\r\n", "", "HTTP/1.1 200 OK\r\n\r\n"},
		{"by an upgrade", strings.Replace(plain, "Host", "Connection: upgrade\r\nUpgrade: x\r\nHost", 1), "frame", switched, switched},
	} {
		t.Run(row.name, func(t *testing.T) {
			var o outcome
			s := serve(t, front.Config{}, handler(func(r *front.Request) front.Answer {
				client := r.Client
				done := func(err error) {
					o.done(err)
					if early := string(r.Early()); early != row.early {
						t.Errorf("early bytes %q, want %q", early, row.early)
					}
				}
				a := front.Answer{Kind: front.Opened, Done: done, Run: func() {
					o.check(t, "before the tunnel runs", true)
					if _, err := io.Copy(client, client); err != nil {
						t.Error(err)
					}
				}}
				if row.switched != "" {
					a.Switched = []byte(row.switched)
				}
				return a
			}), nil)
			c := s.dial(t)
			c.send(t, row.raw+row.early)
			told := make([]byte, len(row.want))
			if _, err := io.ReadFull(c.reader, told); err != nil || string(told) != row.want {
				t.Fatalf("the client was told %q, %v; want %q", told, err, row.want)
			}
			c.send(t, "CONNECT is data here")
			if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if echo, err := io.ReadAll(c.reader); err != nil || string(echo) != "CONNECT is data here" {
				t.Errorf("through the tunnel came %q, %v", echo, err)
			}
			if e := s.end(t); e != (ending{tunnel: true}) {
				t.Errorf("ended as %+v", e)
			}
			o.check(t, "a tunnel", true)
		})
	}
}

// TestTheFrontsOwnAnswer checks the answers that the front gives as the final recipient:
// an empty one to OPTIONS, and to TRACE the received request without secrets.
func TestTheFrontsOwnAnswer(t *testing.T) {
	own := func(method, fields string) string {
		return method + " http://a.example/a?b HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: 0\r\n" + fields + "\r\n"
	}
	for _, row := range []struct {
		name, raw, contentType, body string
		keeps                        bool
	}{
		{"OPTIONS", own("OPTIONS", ""), "", "", true},
		{
			"TRACE", own("TRACE", "Authorization: s\r\nCOOKIE: s\r\nCookie2: s\r\nproxy-x: s\r\nX-Proxy: 1\r\n"),
			"message/http", own("TRACE", "X-Proxy: 1\r\n"), true,
		},
		{"the client asked for the end", own("OPTIONS", "Connection: close\r\n"), "", "", false},
		{"a body", own("OPTIONS", "Content-Length: 3\r\n") + "abc", "", "", false},
		{"HTTP/1.0", strings.Replace(own("OPTIONS", ""), "HTTP/1.1", "HTTP/1.0", 1), "", "", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			var o outcome
			s := serve(t, front.Config{}, handler(func(r *front.Request) front.Answer {
				if !r.StopsHere {
					return refused(allowlist.Draining)
				}
				return front.Answer{Kind: front.Local, Response: front.FinalRecipientResponse(r), Done: o.done}
			}), nil)
			c := s.dial(t)
			a := c.ask(t, row.raw)
			at, err := http.ParseTime(a.Header.Get("Date"))
			if a.StatusCode != http.StatusOK || err != nil || time.Since(at) > time.Minute {
				t.Errorf("answered %s %v", a.Status, a.Header)
			}
			if a.Header.Get("Content-Type") != row.contentType || a.body != row.body || a.Close == row.keeps {
				t.Errorf("answered %v %q, and to keep the connection: %v", a.Header, a.body, !a.Close)
			}
			if row.keeps {
				if a := c.ask(t, plain); a.reason() != allowlist.Draining.String() {
					t.Errorf("the next answer: %s", a.Status)
				}
			}
			c.gone(t)
			_ = c.Close()
			if e := s.end(t); e != (ending{}) {
				t.Errorf("ended as %+v", e)
			}
			o.check(t, "an answer of its own", true)
		})
	}
}

// TestConnectionAfterAForwardedAnswer checks what each End does with a connection, and that
// Done is not called for an answer that the handler has written.
func TestConnectionAfterAForwardedAnswer(t *testing.T) {
	forward := func(end front.End) (*site, *client, *outcome) {
		o := &outcome{}
		s := serve(t, front.Config{}, handler(func(r *front.Request) front.Answer {
			if _, err := io.WriteString(r.Client, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				t.Error(err)
			}
			return front.Answer{Kind: front.Forwarded, End: end, Done: o.done}
		}), nil)
		c := s.dial(t)
		if a := c.ask(t, plain); a.StatusCode != http.StatusOK || a.body != "ok" {
			t.Errorf("answered %s %q", a.Status, a.body)
		}
		return s, c, o
	}
	untold := func(t *testing.T, o *outcome) {
		t.Helper()
		if len(o.told) > 0 {
			t.Errorf("Done was called with %v", o.told)
		}
	}
	t.Run("kept", func(t *testing.T) {
		s, c, o := forward(front.Keep)
		if a := c.ask(t, plain); a.body != "ok" {
			t.Errorf("the next answer: %s %q", a.Status, a.body)
		}
		_ = c.Close()
		if e := s.end(t); e != (ending{}) {
			t.Errorf("ended as %+v", e)
		}
		untold(t, o)
	})
	t.Run("closed", func(t *testing.T) {
		s, c, o := forward(front.Close)
		if e := s.end(t); e != (ending{}) {
			t.Errorf("ended as %+v", e)
		}
		c.gone(t)
		untold(t, o)
	})
	t.Run("lingering", func(t *testing.T) {
		s, c, o := forward(front.Linger)
		c.gone(t)
		c.send(t, "it may still be sending")
		select {
		case e := <-s.ended:
			t.Errorf("the connection was closed before its client had: %+v", e)
		default:
		}
		_ = c.Close()
		if e := s.end(t); e != (ending{}) {
			t.Errorf("ended as %+v", e)
		}
		untold(t, o)
	})
	t.Run("aborted", func(t *testing.T) {
		s, c, o := forward(front.Abort)
		if e := s.end(t); e != (ending{aborted: 1}) {
			t.Errorf("ended as %+v", e)
		}
		if rest, err := io.ReadAll(c.reader); err == nil {
			t.Errorf("the connection was closed in order, behind %q", rest)
		}
		untold(t, o)
	})
}

// written returns an answer of each kind that the front writes, with a request for it.
func written() map[string]struct {
	raw    string
	answer front.Answer
} {
	return map[string]struct {
		raw    string
		answer front.Answer
	}{
		"a refusal":            {plain, refused(allowlist.NotOnAllowlist)},
		"a tunnel":             {connect, front.Answer{Kind: front.Opened, Run: func() { panic("a tunnel that was not opened runs") }}},
		"an answer of its own": {"TRACE http://a.example/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", front.Answer{Kind: front.Local, Response: front.Response{Status: http.StatusOK}}},
	}
}

// TestAnAnswerThatCannotBeWritten checks that the connection ends and that Done gets the
// error.
func TestAnAnswerThatCannotBeWritten(t *testing.T) {
	for name, row := range written() {
		t.Run(name, func(t *testing.T) {
			var o outcome
			s := serve(t, front.Config{}, handler(func(r *front.Request) front.Answer {
				if err := r.Client.Close(); err != nil { // writing fails, as if the client had left
					t.Error(err)
				}
				a := row.answer
				a.Done = o.done
				return a
			}), nil)
			s.dial(t).send(t, row.raw+row.raw)
			if e := s.end(t); e.tunnel || e.panicked != nil || e.aborted > 0 || e.cut > 1 {
				t.Errorf("ended as %+v", e)
			}
			o.check(t, name, false)
		})
	}
}

// TestAnAnswerThatIsCutShort checks that a connection is closed at once when only a part
// of an answer was written, so that nothing that follows is taken for the rest.
func TestAnAnswerThatIsCutShort(t *testing.T) {
	for name, row := range written() {
		t.Run(name, func(t *testing.T) {
			var o outcome
			s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer {
				a := row.answer
				a.Done = o.done
				return a
			}), func(conn net.Conn) net.Conn { return short{conn} })
			c := s.dial(t)
			c.send(t, row.raw)
			if got, err := io.ReadAll(c.reader); err != nil || string(got) != "H" {
				t.Errorf("the client got %q, %v", got, err)
			}
			if e := s.end(t); e != (ending{cut: 1}) {
				t.Errorf("ended as %+v", e)
			}
			o.check(t, name, false)
		})
	}
}

// short is a connection that writes only the first byte of each answer.
type short struct{ net.Conn }

func (s short) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p[:1])
	if err != nil {
		return n, err
	}
	return n, io.ErrShortWrite
}

// TestTheFrontPanics checks that Done gets an error if the front panics while it writes,
// and that Serve does not recover the panic, nor one of the handler.
func TestTheFrontPanics(t *testing.T) {
	for name, row := range written() {
		t.Run(name, func(t *testing.T) {
			var o outcome
			s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer {
				a := row.answer
				a.Done = o.done
				return a
			}), func(conn net.Conn) net.Conn { return broken{conn} })
			s.dial(t).send(t, row.raw)
			if e := s.end(t); e != (ending{panicked: errPanic}) {
				t.Errorf("ended as %+v", e)
			}
			o.check(t, name, false)
		})
	}
	t.Run("Done, which is not called a second time", func(t *testing.T) {
		calls := 0
		s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer {
			a := refused(allowlist.NotOnAllowlist)
			a.Done = func(error) {
				calls++
				panic(errPanic)
			}
			return a
		}), nil)
		s.dial(t).send(t, plain)
		if e := s.end(t); e != (ending{panicked: errPanic}) || calls != 1 {
			t.Errorf("ended as %+v after %d calls", e, calls)
		}
	})
	t.Run("the handler", func(t *testing.T) {
		s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer { panic(errPanic) }), nil)
		c := s.dial(t)
		c.send(t, plain)
		if e := s.end(t); e != (ending{panicked: errPanic}) {
			t.Errorf("ended as %+v", e)
		}
		c.gone(t)
	})
}

// TestDoneMayBeNil checks that answers of every kind may have no Done.
func TestDoneMayBeNil(t *testing.T) {
	for name, row := range written() {
		a := row.answer
		a.Run = func() {}
		s := serve(t, front.Config{}, handler(func(*front.Request) front.Answer { return a }), nil)
		c := s.dial(t)
		if got := c.ask(t, row.raw); got.StatusCode == http.StatusInternalServerError {
			t.Errorf("%s: answered %s", name, got.Status)
		}
		_ = c.Close()
		if e := s.end(t); e.panicked != nil {
			t.Errorf("%s: ended as %+v", name, e)
		}
	}
}
