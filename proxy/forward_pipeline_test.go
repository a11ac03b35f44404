package proxy_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestClientThatHasHalfClosedIsAnswered checks that a client which has closed its sending
// direction is answered.
func TestClientThatHasHalfClosedIsAnswered(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	c.send(t, strings.Repeat(get(r.url("allowed.example", "/")), 2))
	if err := c.Conn.(*tls.Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if a := c.answer(t); a.body != "ok" {
			t.Errorf("answered %s", a.phrase)
		}
		r.received(t)
		r.carried(t)
	}
	c.ended(t)
}

// TestBytesBeforeTheAnswerBelongToTheNextRequest checks that bytes which come before the
// answer belong to the next requests, in whatever pieces they come, or to the tunnel.
func TestBytesBeforeTheAnswerBelongToTheNextRequest(t *testing.T) {
	big := strings.Repeat("b", 300<<10)
	for name, first := range map[string]string{
		"no body": plainTo("GET", "http://HOST/"),
		"chunks":  plainTo("POST", "http://HOST/", "Transfer-Encoding: chunked") + "1\r\nx\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{})
			c := g.call(t, "builder")
			host := g.at("allowed.example")
			second := plainTo("POST", "http://"+host+"/second", "Content-Length: 307200") + big
			c.send(t, strings.ReplaceAll(first, "HOST", host)+second[:10])
			conn, reader := g.asked(t)
			if name == "chunks" {
				if _, err := io.ReadFull(reader, make([]byte, len("1\r\nx\r\n0\r\n\r\n"))); err != nil {
					t.Fatal(err)
				}
			}
			sent := make(chan error, 1)
			go func() {
				for _, part := range []string{second[10:11], second[11:50], second[50:]} {
					if _, err := io.WriteString(c, part); err != nil {
						sent <- err
						return
					}
				}
				sent <- nil
			}()
			if _, err := io.WriteString(conn, ok); err != nil {
				t.Fatal(err)
			}
			if a := c.answer(t); a.body != "ok" {
				t.Fatalf("answered %s", a.phrase)
			}
			req, err := http.ReadRequest(reader)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(req.Body); err != nil || req.URL.Path != "/second" || string(body) != big {
				t.Errorf("the origin got %s with %d bytes, %v", req.URL, len(body), err)
			}
			if _, err := io.WriteString(conn, ok); err != nil {
				t.Fatal(err)
			}
			if a := c.answer(t); a.body != "ok" || a.close {
				t.Errorf("answered %s", a.phrase)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			for range 2 {
				g.next(t, audit.EventDecision)
				g.next(t, audit.EventTunnelClose)
			}
		})
	}
	t.Run("a tunnel", func(t *testing.T) {
		g := newGateway(t, options{})
		c := g.call(t, "builder")
		c.send(t, get("http://"+g.at("ws.example")+"/", "Connection: Upgrade", "Upgrade: websocket")+"ea")
		conn, reader := g.asked(t)
		if _, err := io.WriteString(c, "rly"); err != nil {
			t.Fatal(err)
		}
		agree(t, c, conn)
		got := make([]byte, 5)
		if _, err := io.ReadFull(reader, got); err != nil || string(got) != "early" {
			t.Errorf("the origin got %q, %v", got, err)
		}
		echo(t, c, conn, reader)
		_ = conn.Close()
		c.gone(t)
		g.next(t, audit.EventDecision)
		g.next(t, audit.EventTunnelClose)
	})
}
