package forward

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// TestBodyOfAnotherLengthIsMalformed checks a body with more or fewer bytes than its
// content-length. The origin must not take what it gets for a whole request (RFC 9113 section
// 8.1.1).
func TestBodyOfAnotherLengthIsMalformed(t *testing.T) {
	const few, many = "the body is shorter than Content-Length says", "the body is longer than Content-Length says"
	for name, row := range map[string]struct {
		length int64
		body   []string
		want   string
	}{
		"no byte of five":                    {5, nil, few},
		"four bytes of five":                 {5, []string{"four"}, few},
		"six bytes for five":                 {5, []string{"six by"}, many},
		"six bytes for five, the last alone": {5, []string{"six b", "y"}, many},
		"six writes of one byte":             {5, []string{"s", "i", "x", " ", "b", "y"}, many},
		"many bytes for one":                 {1, []string{strings.Repeat("x", 100<<10)}, many},
		"a byte for none":                    {0, []string{"x"}, many},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{})
			c := r.request(t, "POST", "http://a.example/", row.length)
			r.start(t.Context(), c)
			go func() {
				for _, p := range row.body {
					_, _ = io.WriteString(c.client, p)
				}
				_ = c.client.Close()
			}()
			if row.length > 0 {
				_, reader := r.accept(t)
				if req, err := http.ReadRequest(reader); err == nil { // otherwise not even the head has come
					if body, err := io.ReadAll(req.Body); err == nil {
						t.Fatalf("the origin got a whole request, with the body %.20q", body)
					}
				}
			}
			res := c.result(t)
			if res.Reason != allowlist.MalformedHeader || allowlist.DetailOf(res.Err) != row.want {
				t.Errorf("result %v, %v, want %s", res.Reason, res.Err, row.want)
			}
			if got := c.answer(); got != "" {
				t.Errorf("the stream got %q", got)
			}
			if len(r.conns) > 0 || row.length == 0 && res.Sent {
				t.Error("the request went out again, or before the end of its stream")
			}
		})
	}
}

// TestLastBytesWaitForTheEndOfTheStream checks that the origin gets a whole request only after
// the stream of the client has ended.
func TestLastBytesWaitForTheEndOfTheStream(t *testing.T) {
	for _, ends := range []bool{true, false} {
		r := newRig(t, Config{})
		c := r.request(t, "POST", "http://a.example/", 5)
		r.start(t.Context(), c)
		if _, err := io.WriteString(c.client, "hel"); err != nil {
			t.Fatal(err)
		}
		conn, reader := r.accept(t)
		req, err := http.ReadRequest(reader)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(req.Body, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c.client, "lo"); err != nil { // returns when the gateway has read both bytes
			t.Fatal(err)
		}
		if !ends {
			if _, err := io.WriteString(c.client, "!"); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(req.Body); err == nil || len(rest) > 0 {
				t.Errorf("the origin got %q, %v", rest, err)
			}
			if res := c.result(t); res.Reason != allowlist.MalformedHeader {
				t.Errorf("result %+v", res)
			}
			continue
		}
		_ = c.client.Close()
		if rest, err := io.ReadAll(req.Body); err != nil || string(rest) != "lo" {
			t.Errorf("the origin got %q, %v", rest, err)
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
		if res := c.result(t); !res.Complete {
			t.Errorf("result %+v", res)
		}
	}
}

// TestMalformedBodyBehindAnAnswerCutsIt checks a body that turns out malformed while the
// answer is being sent.
func TestMalformedBodyBehindAnAnswerCutsIt(t *testing.T) {
	r := newRig(t, Config{})
	c := r.request(t, "POST", "http://a.example/", 5)
	r.start(t.Context(), c)
	if _, err := io.WriteString(c.client, "h"); err != nil {
		t.Fatal(err)
	}
	conn, reader := r.accept(t)
	if _, err := http.ReadRequest(reader); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
	head, body := c.next(t), c.next(t)
	_ = c.client.Close()
	res := c.result(t)
	if rest := c.answer(); !strings.HasPrefix(head, "HEAD 200") || body != "DATA ab" || rest != "" || res.Complete || !res.Cut {
		t.Errorf("the stream got %q, %q and %q, result %+v", head, body, rest, res)
	}
}

// TestErrorOfAStreamMeansThatItsClientHasGone checks that the error of a stream is told from
// a malformed body, unless the stream itself gives a reason.
func TestErrorOfAStreamMeansThatItsClientHasGone(t *testing.T) {
	reset := errors.New("the stream was reset")
	for name, length := range map[string]int64{"a length": 5, "no length": head.Chunked, "no body": 0} {
		for _, row := range []struct {
			err  error
			want allowlist.Reason
		}{
			{reset, allowlist.ClientGone},
			{&allowlist.ReasonError{Reason: allowlist.MalformedHeader, Err: reset}, allowlist.MalformedHeader},
		} {
			t.Run(name+", "+row.want.String(), func(t *testing.T) {
				r := newRig(t, Config{})
				c := r.request(t, "POST", "http://a.example/", length)
				c.Client = failedStream{c.stream, row.err}
				r.start(t.Context(), c)
				if res := c.result(t); res.Reason != row.want || allowlist.DetailOf(res.Err) != reset.Error() {
					t.Errorf("result %+v", res)
				}
			})
		}
	}
}

// failedStream is a stream whose body cannot be read.
type failedStream struct {
	*fakeStream

	err error
}

// Read implements Stream.
func (s failedStream) Read([]byte) (int, error) { return 0, s.err }

// TestStreamWaitsForContinue checks that a client which waits for 100 (Continue) gets it when
// the origin has sent it or has sent nothing, and never after the origin has refused.
func TestStreamWaitsForContinue(t *testing.T) {
	for name, row := range map[string]struct{ origin, want string }{
		"the origin says continue": {"HTTP/1.1 100 Continue\r\n\r\n", "HEAD 100"},
		"the origin says nothing":  {"", "HEAD 100"},
		"the origin says wait":     {"HTTP/1.1 102 Processing\r\n\r\n", "HEAD 102 | Via: 1.1 exeat"},
		"the origin refuses":       {"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n", "HEAD 417 END | Content-Length: 0 | Via: 1.1 exeat"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, origin := newPipeRig(t, Config{})
				c := r.request(t, "POST", "http://a.example/", 5, "expect", "100-continue")
				r.start(t.Context(), c)
				reader := bufio.NewReader(origin)
				req, err := http.ReadRequest(reader)
				if err != nil {
					t.Fatal(err)
				}
				if req.Header.Get("Expect") != "100-continue" {
					t.Errorf("the origin got %v", req.Header)
				}
				if row.origin != "" {
					_, _ = io.WriteString(origin, row.origin)
				}
				got := c.next(t)
				if got != row.want {
					t.Fatalf("the stream got %q, want %q", got, row.want)
				}
				if strings.Contains(got, "102") {
					if got = c.next(t); got != "HEAD 100" {
						t.Fatalf("the stream got %q", got)
					}
				}
				if got == "HEAD 100" {
					_, _ = io.WriteString(c.client, "hello")
					_ = c.client.Close()
					if body, err := io.ReadAll(req.Body); err != nil || string(body) != "hello" {
						t.Errorf("the origin got %q, %v", body, err)
					}
					_, _ = io.WriteString(origin, "HTTP/1.1 204 No Content\r\n\r\n")
				}
				if res := c.result(t); !res.Complete || res.Cut {
					t.Errorf("result %+v", res)
				}
			})
		})
	}
}

// TestSilentStreamIsGone checks that a client which stalls within its body, or before the end
// of a stream without a body, is given up after Config.Body.
func TestSilentStreamIsGone(t *testing.T) {
	for name, length := range map[string]int64{"within a body": 5, "behind a body": 2, "without a body": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, origin := newPipeRig(t, Config{Body: time.Minute})
				go func() { _, _ = io.Copy(io.Discard, origin) }()
				c := r.request(t, "POST", "http://a.example/", length)
				start := time.Now()
				r.start(t.Context(), c)
				if length > 0 {
					_, _ = io.WriteString(c.client, "hi")
				}
				<-c.done
				if took := time.Since(start); c.res.Reason != allowlist.ClientGone || took < time.Minute || took > 2*time.Minute {
					t.Errorf("after %v: result %+v", took, c.res)
				}
			})
		})
	}
}

// TestEndedExchangeDoesNotWaitForAStream checks that the end of an exchange ends the wait for
// the end of a stream.
func TestEndedExchangeDoesNotWaitForAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newPipeRig(t, Config{})
		c := r.request(t, "GET", "http://a.example/", 0)
		ctx, end := context.WithCancel(t.Context())
		start := time.Now()
		r.start(ctx, c)
		synctest.Wait()
		end()
		<-c.done
		if c.res.Sent || c.res.Reason == allowlist.NoReason || time.Since(start) > 0 {
			t.Errorf("after %v: result %+v", time.Since(start), c.res)
		}
	})
}
