package proxy_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestAnswersWhileTheClientSends checks that a client which reads only after it has sent its
// whole body, which is larger than the buffers of the sockets, gets the answer and an
// orderly end (RFC 9112 section 9.6): a refusal, and an early answer of an origin.
func TestAnswersWhileTheClientSends(t *testing.T) {
	g := newGateway(t, options{})
	spec := g.policy()
	spec.Entries[2].Accept = 0 // sidecar, who speaks without TLS
	g.swap(t, spec)
	body := strings.Repeat("b", 8<<20)
	for _, wire := range []string{"in clear", "over TLS"} {
		call := func() *caller {
			if wire == "in clear" {
				return g.callPlain(t)
			}
			return g.call(t, "builder")
		}
		t.Run("a refusal "+wire, func(t *testing.T) {
			c := call()
			c.send(t, "POST http://unlisted.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n"+body)
			c.expect(t, 403)
			g.next(t, audit.EventDecision)
		})
		for name, answer := range map[string]struct{ raw, request string }{
			"an answer of a length":    {"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig", "HTTP/1.1"},
			"an answer in chunks":      {"HTTP/1.1 413 Content Too Large\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbig\r\n0\r\n\r\n", "HTTP/1.1"},
			"an answer without an end": {"HTTP/1.1 413 Content Too Large\r\n\r\nbig", "HTTP/1.1"},
			"an answer to HTTP/1.0":    {"HTTP/1.1 413 Content Too Large\r\n\r\nbig", "HTTP/1.0"},
		} {
			t.Run(name+" "+wire, func(t *testing.T) {
				c := call()
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					_, _ = io.WriteString(c, "POST http://"+g.at("allowed.example")+"/ "+answer.request+"\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n"+body)
				}()
				o := g.origin.next(t)
				if _, err := http.ReadRequest(bufio.NewReader(o)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(o, answer.raw); err != nil {
					t.Fatal(err)
				}
				_ = o.CloseWrite() // it does not read any more either
				<-sent
				c.expect(t, 413)
				g.next(t, audit.EventDecision)
				g.next(t, audit.EventTunnelClose)
			})
		}
	}
}

// expect reads a complete answer with the given status and the orderly end behind it.
func (c *caller) expect(t *testing.T, status int) {
	t.Helper()
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != status {
		t.Errorf("answered %s, %v; want %d", resp.Status, err, status)
	}
	if rest, err := io.ReadAll(c.reader); err != nil || len(rest) > 0 {
		t.Errorf("behind the answer %q, %v", rest, err)
	}
}

// TestEarlyAnswerSurvivesAResetOfTheOrigin checks that the answer of an origin counts
// although the origin then closes its connection with the body unread, which resets it.
func TestEarlyAnswerSurvivesAResetOfTheOrigin(t *testing.T) {
	g := newGateway(t, options{})
	body := strings.Repeat("b", 8<<20)
	for range 20 {
		c := g.call(t, "builder")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = io.WriteString(c, "POST http://"+g.at("allowed.example")+"/ HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n"+body)
		}()
		o := g.origin.next(t)
		if _, err := http.ReadRequest(bufio.NewReader(o)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(o, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig"); err != nil {
			t.Fatal(err)
		}
		_ = o.Close()
		<-sent
		c.expect(t, 413)
		_ = c.Close()
		g.next(t, audit.EventDecision)
		g.next(t, audit.EventTunnelClose)
	}
}
