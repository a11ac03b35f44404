package front_test

import (
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
)

// answersThatStay returns the answers that leave their connection open, each with a
// request for it.
func answersThatStay() map[string]struct {
	raw    string
	answer front.Answer
} {
	rests := refused(allowlist.DialFailed)
	rests.WasAllowed = true
	return map[string]struct {
		raw    string
		answer front.Answer
	}{
		"a refusal":                            {plain, refused(allowlist.NotOnAllowlist)},
		"a refusal of what was allowed":        {plain, rests},
		"a refusal of a limit":                 {plain, refused(allowlist.RateLimited)},
		"a caller without an identity":         {plain, refused(allowlist.IdentityMissing)},
		"a CONNECT of one without an identity": {connect, refused(allowlist.IdentityMissing)},
		"an answer of its own":                 {"TRACE http://a.example/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", front.Answer{Kind: front.Local, Response: front.Response{Status: http.StatusOK}}},
		"an answer of its own to OPTIONS":      {"OPTIONS http://a.example/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", front.Answer{Kind: front.Local, Response: front.Response{Status: http.StatusOK}}},
	}
}

// TestAnAnswerInADrain checks that an answer closes its connection and says so if a drain
// begins before the request has come or before its answer is written, and does not
// without a drain.
func TestAnAnswerInADrain(t *testing.T) {
	for name, row := range answersThatStay() {
		for _, when := range []string{"never", "before the head", "between head and answer"} {
			t.Run(name+", "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h1 := front.NewH1(front.Config{})
					c, ended := inBubbleOf(t, h1, handler(func(*front.Request) front.Answer {
						if when == "between head and answer" {
							h1.Drain()
						}
						return row.answer
					}))
					if when == "before the head" {
						synctest.Wait()
						h1.Drain()
					}
					resp := c.ask(t, row.raw)
					if last := when != "never"; resp.Close != last {
						t.Errorf("%s, closes: %v, want %v", resp.Status, resp.Close, last)
					}
					if when == "never" {
						return
					}
					if rest, err := io.ReadAll(c.reader); len(rest) > 0 || err != nil {
						t.Errorf("behind the last answer came %q, %v", rest, err)
					}
					_ = c.Close()
					<-ended
				})
			})
		}
	}
}

// TestATunnelInADrain checks that a drain does not change the answer that opens a tunnel.
func TestATunnelInADrain(t *testing.T) {
	h1 := front.NewH1(front.Config{})
	h1.Drain()
	near, far := net.Pipe()
	done := make(chan ending, 1)
	go func() {
		done <- serveOne(t.Context(), h1, far, handler(func(*front.Request) front.Answer {
			return front.Answer{Kind: front.Opened, Run: func() {}}
		}), nil)
	}()
	c := newClient(near)
	if resp := c.ask(t, connect); resp.StatusCode != http.StatusOK || len(resp.Header) > 0 {
		t.Errorf("answered %s %v", resp.Status, resp.Header)
	}
	if e := <-done; !e.tunnel {
		t.Errorf("ended as %+v", e)
	}
}

// TestIdleConnectionsInADrain checks that an idle connection ends one second after
// the drain began, and that a request which comes in that second is answered. A
// connection without a request still waits for its first one.
func TestIdleConnectionsInADrain(t *testing.T) {
	forwarded := func(r *front.Request) front.Answer {
		if _, err := io.WriteString(r.Client, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
			return front.Answer{Kind: front.Forwarded}
		}
		return front.Answer{Kind: front.Forwarded, End: front.Keep}
	}
	const before = 20 * time.Second
	for _, row := range []struct {
		name   string
		asked  bool          // a request was answered before the drain
		answer handler       // answers the first request
		again  time.Duration // time from the drain to another request; 0 means that none comes
		ends   time.Duration // time from the drain to the end of the connection
	}{
		{"it is idle after an answer", true, forwarded, 0, time.Second},
		{"it is idle after a refusal", true, refusing(allowlist.NotOnAllowlist), 0, time.Second},
		{"it sends another request", true, forwarded, 900 * time.Millisecond, 900 * time.Millisecond},
		{"it has sent no request yet", false, forwarded, 0, front.DefaultHeadTimeout},
		{"it sends its first request", false, refusing(allowlist.Draining), 5 * time.Second, 5 * time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h1, n := front.NewH1(front.Config{}), 0
				time.Sleep(before)
				c, _ := inBubbleOf(t, h1, handler(func(r *front.Request) front.Answer {
					if n++; n == 1 {
						return row.answer(r)
					}
					return refused(allowlist.Draining)
				}))
				if row.asked {
					c.ask(t, plain)
				}
				synctest.Wait()
				h1.Drain()
				begin := time.Now()
				if row.again > 0 {
					time.Sleep(row.again)
					if resp := c.ask(t, plain); !resp.Close || resp.StatusCode != http.StatusServiceUnavailable {
						t.Errorf("answered %s, closes: %v", resp.Status, resp.Close)
					}
				}
				if rest, err := io.ReadAll(c.reader); len(rest) > 0 || err != nil {
					t.Errorf("%q, %v", rest, err)
				}
				if took := time.Since(begin); took != row.ends {
					t.Errorf("it ended after %s, want %s", took, row.ends)
				}
			})
		})
	}
}

// TestDrainAfterTheHeadOfAnAnswer checks a drain that begins after the head of an answer was sent,
// which does not announce the close. The connection waits for another request for one
// second after the end of that answer.
func TestDrainAfterTheHeadOfAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h1 := front.NewH1(front.Config{})
		c, _ := inBubbleOf(t, h1, handler(func(r *front.Request) front.Answer {
			if _, err := io.WriteString(r.Client, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"); err != nil {
				t.Error(err)
			}
			h1.Drain()
			time.Sleep(time.Minute)
			if _, err := io.WriteString(r.Client, "ok"); err != nil {
				t.Error(err)
			}
			return front.Answer{Kind: front.Forwarded, End: front.Keep}
		}))
		if resp := c.ask(t, plain); resp.Close || resp.body != "ok" {
			t.Errorf("answered %q, closes: %v", resp.body, resp.Close)
		}
		begin := time.Now()
		if rest, err := io.ReadAll(c.reader); len(rest) > 0 || err != nil || time.Since(begin) != time.Second {
			t.Errorf("after %s came %q, %v", time.Since(begin), rest, err)
		}
	})
}

// TestStop checks that Stop ends connections without a request, also later ones, and
// leaves those whose request is being answered or whose head has begun.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h1, proceed := front.NewH1(front.Config{}), make(chan struct{})
		slow := handler(func(*front.Request) front.Answer {
			<-proceed
			return refused(allowlist.Draining)
		})
		fresh, _ := inBubbleOf(t, h1, slow)
		busy, _ := inBubbleOf(t, h1, slow)
		half, _ := inBubbleOf(t, h1, slow)
		busy.send(t, plain)
		half.send(t, plain[:10])
		synctest.Wait()
		h1.Drain()
		h1.Stop()
		late, _ := inBubbleOf(t, h1, slow)
		begin := time.Now()
		for name, c := range map[string]*client{"fresh": fresh, "late": late} {
			if rest, err := io.ReadAll(c.reader); len(rest) > 0 || err != nil || time.Since(begin) != 0 {
				t.Errorf("%s: after %s came %q, %v", name, time.Since(begin), rest, err)
			}
		}
		time.Sleep(time.Second)
		close(proceed)
		half.send(t, plain[10:])
		for name, c := range map[string]*client{"busy": busy, "half": half} {
			if resp := c.read(t, http.MethodGet); resp.StatusCode != http.StatusServiceUnavailable || !resp.Close {
				t.Errorf("%s: answered %s, closes: %v", name, resp.Status, resp.Close)
			}
		}
	})
}
