package proxy_test

import (
	"sync/atomic"
	"testing"

	"github.com/exeat-dev/exeat/identity"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
)

// turningSource is an identity that calls turn after its next reader has read a snapshot and
// before the reader gets it. turn changes the identity, so that the snapshot is outdated and
// the change has been enforced when the reader gets it.
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

// TestRemovedAuthorityOpensNoTunnel removes an authority from the bundle, and enforces
// that, after the caller of a request was found to be trusted and before the request is
// decided. The tunnel must not open, because no later state would end it.
func TestRemovedAuthorityOpensNoTunnel(t *testing.T) {
	source := &turningSource{}
	g := newGateway(t, options{source: func(i *gatewaytest.Identity) gw.IdentityProvider {
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
