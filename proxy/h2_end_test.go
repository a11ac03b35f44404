package proxy_test

import (
	"io"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestASilentClientLeaves resets streams whose client has ended its direction without a byte,
// so that the gateway has inspected nothing.
func TestASilentClientLeaves(t *testing.T) {
	g := newGateway(t, options{})
	g.checked(t)
	s := g.session(t, "builder")
	for _, host := range []string{"auto.example", "strict.example", "off.example"} {
		stream, origin := s.tunnel(t, host)
		s.Body(t, stream, "", true)
		if got := readAll(t, origin); got != "" {
			t.Errorf("%s: the origin got %q", host, got)
		}
		if _, err := io.WriteString(origin, "hello"); err != nil {
			t.Fatal(err)
		}
		if e := s.On(t, stream); e.Data != "hello" {
			t.Errorf("%s: the client got %+v", host, e)
		}
		s.Send(t, func() error { return s.WriteRSTStream(stream, http2.ErrCodeCancel) })
		if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "client" || r.Down != 5 {
			t.Errorf("%s: record %+v", host, r)
		}
	}
}
