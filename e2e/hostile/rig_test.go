package hostile

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// options configure the gateway of a case.
type options struct {
	wire    wire      // the wire of callers; anyWire means HTTP/1
	config  gw.Config // times and limits; a zero limit means more than any case needs
	proxies []netip.Prefix
	queue   int
	stuck   chan struct{} // see evidence.stuck
}

// unlimited replaces zero limits by limits that no case reaches.
func unlimited(l limit.Config) limit.Config {
	const plenty = 1 << 20
	l.Connections, l.Handshakes, l.Requests = cmp.Or(l.Connections, plenty), cmp.Or(l.Handshakes, plenty), cmp.Or(l.Requests, plenty)
	l.Strangers = cmp.Or(l.Strangers, time.Hour)
	l.Identity = l.Identity.Or(allowlist.Limits{Tunnels: plenty, ConnectsPerSecond: plenty, UploadPerHour: 1 << 50})
	return l
}

// gateway is the real gateway, which runs in this process between callers and a world of
// the test's. One of its listeners asks for certificates. Another one has no TLS, and all
// its callers are sidecar. The third one is for CONNECT and DoH.
type gateway struct {
	*evidence
	callers
	world
	ports

	running  *gw.Gateway
	policies *gatewaytest.Policy
	identity *gatewaytest.Identity
}

// Addresses and prefixes of the gateway's host in the configuration.
const (
	ownAddress = "93.184.216.34"         // would be public if it were not the gateway's own
	ownNAT64   = "2001:470:64:ff9b::/96" // would be public if it were not a NAT64 prefix
	ownNAT64s  = "2001:470:65::/48"      // a shorter NAT64 prefix
)

func newGateway(tb testing.TB, o options) *gateway {
	tb.Helper()
	g := &gateway{
		evidence: newEvidence(tb, o.queue, o.stuck), callers: newCallers(tb, o.wire), world: newWorld(tb),
		policies: gatewaytest.NewPolicy(nil),
	}
	g.identity = gatewaytest.NewIdentity(g.ca.snapshot(tb, 1))
	g.serve(tb, o)
	g.put(tb, g.policy())
	return g
}

// another returns another gateway with callers of the same wire.
func (g *gateway) another(tb testing.TB, o options) *gateway {
	tb.Helper()
	o.wire = g.wire
	return newGateway(tb, o)
}

// serve runs the gateway until the test ends or rest is called.
func (g *gateway) serve(tb testing.TB, o options) {
	tb.Helper()
	cfg := o.config
	cfg.Policy, cfg.Identity, cfg.Recorder, cfg.Log = g.policies, g.identity, g.recorder, slog.New(slog.DiscardHandler)
	cfg.Resolver.Resolve, cfg.Limits = gatewaytest.Addresses(g.names.resolve), unlimited(cfg.Limits)
	cfg.Resolver.DNS = g.names.dns()
	cfg.HostAddresses = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr(ownAddress)}, nil }
	cfg.NAT64 = []netip.Prefix{netip.MustParsePrefix(ownNAT64), netip.MustParsePrefix(ownNAT64s)}
	cfg.Listeners = []gw.Listener{
		{Name: "secure", Address: "127.0.0.1:0", Proxies: o.proxies},
		{Name: "plain", Address: "127.0.0.1:0", Identity: gw.Fixed, ID: spiffeid.RequireFromString(id("sidecar"))},
		{Name: "shared", Address: "127.0.0.1:0", Protocol: gw.ConnectAndDoH},
		{Name: "socks5", Address: "127.0.0.1:0", Protocol: gw.SOCKS5, Identity: gw.Fixed, ID: spiffeid.RequireFromString(id("builder"))},
	}
	var err error
	if g.running, err = gw.New(tb.Context(), cfg); err != nil {
		tb.Fatal(err)
	}
	listening := g.running.Listening()
	g.secure, g.plain = netip.MustParseAddrPort(listening[0].Addr.String()), netip.MustParseAddrPort(listening[1].Addr.String())
	g.shared, g.socks5 = netip.MustParseAddrPort(listening[2].Addr.String()), netip.MustParseAddrPort(listening[3].Addr.String())
	g.ports = ports{port: g.origin.addr.Port(), listener: g.secure.Port()}
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { g.running.Serve(ctx) })
	g.end = sync.OnceFunc(func() {
		stop()
		serving.Wait()
	})
	tb.Cleanup(g.end)
}

// put parses a policy and puts it in force.
func (g *gateway) put(tb testing.TB, text string) {
	tb.Helper()
	g.policies.Put(load(tb, text))
}
