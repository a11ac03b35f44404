package proxy_test

import (
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestRefusedFirstBytesEndTheStream checks that a tunnel on a stream whose ClientHello is
// refused ends with the alert, also while its origin sends and the client takes nothing, and
// that the other streams go on.
func TestRefusedFirstBytesEndTheStream(t *testing.T) {
	t.Parallel() // it mostly waits
	g := newGateway(t, options{})
	g.checked(t)
	s := g.session(t, "builder")
	other, origin := s.tunnel(t, "off.example")
	for _, row := range []struct {
		name, sent string
		want       allowlist.Reason
	}{
		{"another name", clientHello("auto.example", false, 1<<14), allowlist.SNIMismatch},
		{"no TLS", "SSH-2.0-client\r\n", allowlist.NotTLS},
	} {
		t.Run(row.name, func(t *testing.T) {
			id, refused := s.tunnel(t, "strict.example")
			s.Body(t, id, row.sent, false)
			if got, end := s.Rest(t, id); got != alert || end.Kind != h2test.Data {
				t.Errorf("the client got %q and %v, want the alert and an orderly end", got, end)
			}
			if got := readAll(t, refused); got != "" {
				t.Errorf("the origin got %d bytes", len(got))
			}
			if r := g.next(t, audit.EventDecision); r.Verdict != "deny" || r.Reason != row.want.String() {
				t.Errorf("record %+v", r)
			}
			if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "denied" || r.Up != 0 {
				t.Errorf("record %+v", r)
			}
			s.wantEcho(t, other, origin)
		})
	}
	t.Run("an origin that sends to a client that takes nothing", func(t *testing.T) {
		s := g.session(t, "builder")
		s.Keeps = true
		id, refused := s.tunnel(t, "strict.example")
		written := make(chan struct{})
		go func() {
			defer close(written)
			_, _ = refused.Write(make([]byte, 16<<20)) // more than the windows and sockets hold
		}()
		for got := 0; got < 65535; {
			got += len(s.On(t, id).Data)
		}
		s.Body(t, id, "SSH-2.0-client\r\n", false)
		if r := g.next(t, audit.EventDecision); r.Verdict != "deny" {
			t.Errorf("record %+v", r)
		}
		g.next(t, audit.EventTunnelClose)
		<-written
		_ = refused.Close()
	})
}
