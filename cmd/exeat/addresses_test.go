package main

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

// openGateway opens a gateway with a policy and a listener whose callers are all
// spiffe://prod.example/a. It does not serve.
func openGateway(t *testing.T, policy string, change ...func(*config.Config)) *gateway {
	t.Helper()
	cfg := config.Defaults()
	cfg.Policy = []string{policy}
	cfg.Listeners = []config.Listener{{
		Name: "own", Address: "unix:" + filepath.Join(t.TempDir(), "s"),
		Identity: config.Fixed, ID: spiffeid.RequireFromString("spiffe://prod.example/a"),
	}}
	for _, c := range change {
		c(&cfg)
	}
	g, err := newGateway(t.Context(), cfg, io.Discard, func(string) string { return "" }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(func() {
		stop()
		for _, w := range g.watchers {
			w.Run(ctx) // which closes what it watches with
		}
		g.closeListeners()
		g.flush(context.Background())
	})
	return g
}

// TestAnAddressThatAppearsLater is the host's own as soon as it is seen, also
// while another policy is held back.
func TestAnAddressThatAppearsLater(t *testing.T) {
	const later = "10.77.0.1"
	policy := write(t, "policy.yaml", `version: 1
identities:
  - id: spiffe://prod.example/a
    allow: [{host: api.example, addresses: [10.77.0.0/16]}]
`)
	g := openGateway(t, policy)
	g.policy.enforce(t.Context())
	dest, err := allowlist.ParseDestination("api.example:443")
	if err != nil {
		t.Fatal(err)
	}
	check := func() error {
		d := g.current.Load().Decide(allowlist.Request{ID: g.cfg.Listeners[0].ID, Source: allowlist.SourceListener, Dest: dest, Time: time.Now()})
		return d.CheckAddr(netip.MustParseAddrPort(later + ":443"))
	}
	if err := check(); err != nil {
		t.Fatalf("before it appears: %v", err)
	}

	before := g.policy.classifier.Load()
	g.addresses = nil // as if all of the host's had appeared
	g.lookAtAddresses(t.Context())
	if g.policy.classifier.Load() == before || len(g.addresses) == 0 {
		t.Error("the addresses of the host were not looked at")
	}
	before = g.policy.classifier.Load()
	g.lookAtAddresses(t.Context())
	if g.policy.classifier.Load() != before {
		t.Error("the same addresses make another classifier")
	}

	generation := g.current.Load().Generation
	g.policy.classifier.Store(allowlist.NewClassifier(allowlist.Local{Addresses: []netip.Addr{netip.MustParseAddr(later)}}))
	g.policy.reload(t.Context(), true)
	if err := check(); err == nil {
		t.Error("an own address can be reached")
	}
	g.policy.reload(t.Context(), true)
	if got := g.current.Load().Generation; got != generation+1 {
		t.Errorf("generation %d, want one more than %d", got, generation)
	}
}
