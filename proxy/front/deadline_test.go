package front_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
)

// inBubble serves one connection with a new front, and returns the client's end. It must
// run in a synctest bubble. The front's end is closed after Serve has returned.
func inBubble(t *testing.T, cfg front.Config, h front.Handler) (c net.Conn, ended <-chan ending) {
	t.Helper()
	near, ended := inBubbleOf(t, front.NewH1(cfg), h)
	return near.Conn, ended
}

// inBubbleOf does what inBubble does, with the given front.
func inBubbleOf(t *testing.T, by server, h front.Handler) (c *client, ended <-chan ending) {
	t.Helper()
	near, theirs := net.Pipe()
	done := make(chan ending, 1)
	go func() { done <- serveOne(t.Context(), by, theirs, h, nil) }()
	t.Cleanup(func() { _ = near.Close() })
	return newClient(near), done
}

// TestHeadTimeout checks that the handler gets no request from a connection that
// stays silent, and gets half a head to refuse.
func TestHeadTimeout(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  front.Config
		sent string
		want time.Duration
		read *read // what the handler gets; nil if it is not called
	}{
		{"nothing", front.Config{}, "", front.DefaultHeadTimeout, nil},
		{"nothing, of another timeout", front.Config{HeadTimeout: time.Minute, KeepAlive: time.Second}, "", time.Minute, nil},
		{"empty lines", front.Config{}, "\r\n\r\n", front.DefaultHeadTimeout, nil},
		{
			"half a head",
			front.Config{},
			"GET http://a.example/ HTTP/1.1\r\nHo", front.DefaultHeadTimeout,
			&read{Method: "GET", Target: "http://a.example/", HeadIsNil: true, Reason: allowlist.HeadTimeout, Cause: "34 bytes of a head came within 10s"},
		},
		{
			"the first byte of a ClientHello is no request",
			front.Config{},
			"\x16\x03", 0,
			&read{HeadIsNil: true, Reason: allowlist.MalformedRequestLine, Detail: "a TLS ClientHello came on a listener without TLS"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked *read
				c, ended := inBubble(t, row.cfg, handler(func(r *front.Request) front.Answer {
					got := seen(r)
					asked = &got
					return refused(r.Reason)
				}))
				begin := time.Now()
				if _, err := io.WriteString(c, row.sent); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(c)
				if took := time.Since(begin); err != nil || took != row.want || (len(got) > 0) != (row.read != nil) {
					t.Errorf("after %s came %.60q, %v; want %s", took, got, err, row.want)
				}
				if e := <-ended; e != (ending{}) {
					t.Errorf("ended as %+v", e)
				}
				if diff := cmp.Diff(row.read, asked); diff != "" {
					t.Errorf("the handler was asked (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestKeepAlive checks that a connection may stay idle for KeepAlive
// after an answer, and for HeadTimeout after a refusal if no request was allowed on it.
// A head that has begun has HeadTimeout for itself.
func TestKeepAlive(t *testing.T) {
	const keepAlive, headTimeout = time.Hour, 5 * time.Second
	rests := refused(allowlist.DialFailed)
	rests.WasAllowed = true
	forwarded := front.Answer{Kind: front.Forwarded, End: front.Keep}
	for _, row := range []struct {
		name    string
		answers []front.Answer
		begun   string // the beginning of another request, sent a second before KeepAlive ends
		want    time.Duration
	}{
		{"after an answer", []front.Answer{forwarded}, "", keepAlive},
		{"after a dial that failed", []front.Answer{rests}, "", keepAlive},
		{"after a refusal", []front.Answer{refused(allowlist.NotOnAllowlist)}, "", headTimeout},
		{"after a refusal of a caller without an identity", []front.Answer{refused(allowlist.IdentityMissing)}, "", headTimeout},
		{"after an answer and a refusal", []front.Answer{forwarded, refused(allowlist.NotOnAllowlist)}, "", keepAlive},
		{"another request has begun", []front.Answer{forwarded}, "GET http://a.ex", keepAlive - time.Second + headTimeout},
		{"an empty line is no request", []front.Answer{forwarded}, "\r\n", keepAlive},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				c, ended := inBubble(t, front.Config{HeadTimeout: headTimeout, KeepAlive: keepAlive}, handler(func(r *front.Request) front.Answer {
					if n == len(row.answers) {
						return refused(r.Reason)
					}
					n++
					if a := row.answers[n-1]; a.Kind != front.Forwarded {
						return a
					}
					if _, err := io.WriteString(r.Client, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
						t.Error(err)
					}
					return row.answers[n-1]
				}))
				buffer := make([]byte, 4096)
				for range row.answers {
					if _, err := io.WriteString(c, plain); err != nil {
						t.Fatal(err)
					}
					if _, err := c.Read(buffer); err != nil {
						t.Fatal(err)
					}
				}
				begin := time.Now()
				if row.begun != "" {
					time.AfterFunc(keepAlive-time.Second, func() {
						if _, err := io.WriteString(c, row.begun); err != nil {
							t.Error(err)
						}
					})
				}
				if _, err := io.ReadAll(c); err != nil {
					t.Error(err)
				}
				if took := time.Since(begin); took != row.want {
					t.Errorf("the connection rested for %s, want %s", took, row.want)
				}
				if e := <-ended; e != (ending{}) || n != len(row.answers) {
					t.Errorf("ended as %+v after %d answers", e, n)
				}
			})
		})
	}
}

// TestAClientThatDoesNotRead checks that the front waits for HeadTimeout to write an
// answer, closes the connection, and passes the error to Done.
func TestAClientThatDoesNotRead(t *testing.T) {
	for name, row := range written() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var o outcome
				c, ended := inBubble(t, front.Config{HeadTimeout: 3 * time.Second}, handler(func(*front.Request) front.Answer {
					a := row.answer
					a.Done = o.done
					return a
				}))
				begin := time.Now()
				if _, err := io.WriteString(c, row.raw); err != nil {
					t.Fatal(err)
				}
				if e := <-ended; e != (ending{cut: 1}) || time.Since(begin) != 3*time.Second {
					t.Errorf("ended as %+v after %s", e, time.Since(begin))
				}
				o.check(t, name, false)
				if !errors.Is(o.told[0], os.ErrDeadlineExceeded) {
					t.Errorf("Done was called with %v", o.told[0])
				}
			})
		})
	}
}

// TestAConnectionThatIsClosed checks that Serve returns when an idle connection is
// closed, as a shutdown does.
func TestAConnectionThatIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, theirs := net.Pipe()
		done := make(chan ending, 1)
		go func() {
			done <- serveOne(t.Context(), front.NewH1(front.Config{}), theirs, refusing(allowlist.NotOnAllowlist), nil)
		}()
		if _, err := io.WriteString(c, plain); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_ = theirs.Close()
		if e := <-done; e != (ending{}) {
			t.Errorf("ended as %+v", e)
		}
	})
}
