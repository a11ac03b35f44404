package proxy_test

import (
	"sync/atomic"
	"testing"

	"github.com/exeat-dev/exeat/identity"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
)

// turningSource is an identity whose next reader is overtaken: what it reads
// is out of date, and all that follows from that has happened, when it has it.
type turningSource struct {
	*gatewaytest.Identity

	turn atomic.Pointer[func()]
}

func (s *turningSource) Snapshot() *identity.Snapshot {
	snapshot := s.Identity.Snapshot()
	if turn := s.turn.Swap(nil); turn != nil {
		(*turn)()
	}
	return snapshot
}

// TestAnAuthorityThatGoesBehindARequest takes an authority out of the bundle,
// and enforces that, just after a request was told that its caller is trusted
// and before it is decided: the tunnel must not open, for no state will end it.
func TestAnAuthorityThatGoesBehindARequest(t *testing.T) {
	source := &turningSource{}
	g := newGateway(t, options{source: func(i *gatewaytest.Identity) gw.IdentitySource {
		source.Identity = i
		return source
	}})
	c := g.call(t, "builder")
	if got := c.ask(t, get("http://not-allowed.example/")); got.status != 403 {
		t.Fatalf("status %d, want 403: builder is trusted as yet", got.status)
	}
	without := g.snapshot(t, newCA(t), 2)
	turn := func() {
		source.Set(without)
		source.Tell()
	}
	source.turn.Store(&turn)
	if got := c.ask(t, connectTo(g.at("allowed.example"))); got.reason() != "identity-untrusted" {
		t.Errorf("status %d %q, want a refusal for identity-untrusted", got.status, got.reason())
	}
}
