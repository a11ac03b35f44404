package proxy_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
)

// turningSource is an identity whose next reader is overtaken: what it reads
// is out of date, and all that follows from that has happened, when it has it.
type turningSource struct {
	now  atomic.Pointer[identity.Snapshot]
	turn atomic.Pointer[func()]
}

func (s *turningSource) Snapshot() *identity.Snapshot {
	snapshot := s.now.Load()
	if turn := s.turn.Swap(nil); turn != nil {
		(*turn)()
	}
	return snapshot
}

// TestAnAuthorityThatGoesBehindARequest takes an authority out of the bundle,
// and enforces that, just after a request was told that its caller is trusted
// and before it is decided: the tunnel must not open, for no state will end it.
func TestAnAuthorityThatGoesBehindARequest(t *testing.T) {
	g := newGateway(t, options{})
	own, other := g.ca, newCA(t)
	source := &turningSource{}
	source.now.Store(snapshotOf(t, own, 1))
	verifier, err := identity.NewVerifier(source)
	if err != nil {
		t.Fatal(err)
	}
	config, err := identity.ServerConfig{Source: source, Verifier: verifier}.TLS()
	if err != nil {
		t.Fatal(err)
	}
	enforcer, err := live.NewEnforcer(live.EnforcerConfig{Current: &g.current, Registry: &g.registry, Trusts: verifier.Trusts})
	if err != nil {
		t.Fatal(err)
	}
	g.secure = g.serve(t, listen.Config{
		Name: "turning", TLS: config, Verifier: verifier, Realm: "test.example",
		HandshakeFailed: func(_ context.Context, _ netip.AddrPort, err error) {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		},
	}, listen.NewSlots(10))
	c := g.call(t, "builder")
	if got := c.ask(t, get("http://not-allowed.example/")); got.status != 403 {
		t.Fatalf("status %d, want 403: builder is trusted as yet", got.status)
	}
	without := snapshotOf(t, other, 2)
	turn := func() {
		source.now.Store(without)
		enforcer.Again(context.Background())
	}
	source.turn.Store(&turn)
	if got := c.ask(t, connectTo(g.at("allowed.example"))); got.reason() != "identity-untrusted" {
		t.Errorf("status %d %q, want a refusal for identity-untrusted", got.status, got.reason())
	}
}

// snapshotOf trusts one authority, which issued our own certificate.
func snapshotOf(t *testing.T, ca *testCA, generation uint64) *identity.Snapshot {
	t.Helper()
	snapshot, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: ca.issue(t, "spiffe://test.example/gateway"),
		Bundles:     []*x509bundle.Bundle{ca.bundle()},
		Generation:  generation,
	})
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}
