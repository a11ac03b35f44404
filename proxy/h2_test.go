package proxy_test

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// session returns a connection of HTTP/2 that has begun.
func (g *gateway) session(t *testing.T, who string, settings ...http2.Setting) *h2test.Peer {
	t.Helper()
	return h2test.NewPeer(t, g.call(t, who).Conn, settings...)
}

// TestTunnelOverHTTP2 opens a tunnel on a stream, and ends it from both sides.
func TestTunnelOverHTTP2(t *testing.T) {
	g := newGateway(t, options{})
	for _, size := range []int{3, 100 << 10} {
		p := g.session(t, "builder")
		p.Connect(t, 1, g.at("allowed.example"))
		if got := p.Status(t, 1); got != "200" {
			t.Fatalf("answered %s", got)
		}
		origin := g.origin.next(t)
		up, down := strings.Repeat("u", size), strings.Repeat("d", size)
		for rest := up; rest != ""; {
			n := min(len(rest), 16000)
			p.Body(t, 1, rest[:n], n == len(rest))
			rest = rest[n:]
		}
		if got := readAll(t, origin); got != up {
			t.Errorf("the origin got %d bytes, want %d", len(got), len(up))
		}
		if _, err := origin.Write([]byte(down)); err != nil {
			t.Fatal(err)
		}
		closeWrite(t, origin)
		if got, end := p.Rest(t, 1); got != down || end.Kind != h2test.Data {
			t.Errorf("the client got %d bytes and %v, want %d and an orderly end", len(got), end, len(down))
		}
		r := g.next(t, audit.EventDecision)
		if r.Wire != string(audit.WireH2) {
			t.Errorf("the record has the wire %q", r.Wire)
		}
		if r := g.next(t, audit.EventTunnelClose); r.Up != int64(size) || r.Down != int64(size) || r.CloseReason != "client" {
			t.Errorf("%d bytes up, %d down, closed by %s", r.Up, r.Down, r.CloseReason)
		}
		_ = p.Close()
	}
}
