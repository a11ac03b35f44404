package proxy_test

import (
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestAnOriginsResetDuringAnUpload resets connections to origins while the client sends. A
// socket reports a reset once, either to the direction that reads or to the one that writes.
func TestAnOriginsResetDuringAnUpload(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	for n := range 300 {
		stream, origin := s.tunnel(t, "allowed.example")
		s.wantEcho(t, stream, origin)
		var closing sync.WaitGroup
		closing.Go(func() {
			_ = origin.SetLinger(0)
			_ = origin.Close()
		})
		for range 10 {
			s.Body(t, stream, "more", false)
		}
		closing.Wait()
		if got, end := s.Rest(t, stream); got != "" || end.Kind != h2test.Reset || end.Code != http2.ErrCodeConnect {
			t.Fatalf("tunnel %d: the client got %q and %+v, want a reset", n, got, end)
		}
		if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "error" {
			t.Errorf("record %+v", r)
		}
	}
}
