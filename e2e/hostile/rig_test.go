package hostile

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// options are what a case changes of a gateway of its own.
type options struct {
	slots            int // 0: 1000
	headTimeout      time.Duration
	handshakeTimeout time.Duration
	helloTimeout     time.Duration
	dialTimeout      time.Duration
	queue            int
	stuck            chan struct{} // see evidence
	tunnel           tunnel.Config
	closeAtExpiry    bool
	forward          forward.Config
	limits           limit.Config // a zero field is more than any case needs
	proxies          []netip.Prefix
}

func (o *options) defaults() {
	const plenty = 1 << 20
	o.slots = cmp.Or(o.slots, 1000)
	l := &o.limits
	l.Connections, l.Handshakes = cmp.Or(l.Connections, plenty), cmp.Or(l.Handshakes, plenty)
	l.Requests = cmp.Or(l.Requests, plenty)
	l.Identity = l.Identity.Or(allowlist.Limits{Tunnels: plenty, ConnectsPerSecond: plenty, UploadPerHour: 1 << 50})
}

// gateway is a real one in this process: a listener that asks for
// certificates, and one without TLS whose callers are all sidecar.
type gateway struct {
	*evidence
	ca       *authority
	trust    *trust
	names    *names
	current  live.Current
	registry live.Registry
	enforcer *live.Enforcer
	sources  *limit.Sources
	budgets  *limit.Budgets
	proxy    *proxy.Proxy

	// The rules open the address of origin and that of six; forbidden has the
	// same port on another one.
	origin, forbidden *origin
	six               *origin // nil without IPv6

	secure, plain netip.AddrPort // of the two listeners
}

func newGateway(tb testing.TB, o options) *gateway {
	tb.Helper()
	o.defaults()
	g := &gateway{sources: limit.NewSources(o.limits), budgets: limit.NewBudgets(o.limits), evidence: newEvidence(tb, o.queue, o.stuck), ca: newAuthority(tb), names: newNames()}
	g.trust = newTrust(tb, g.ca.svid(tb, "gateway"), g.ca)
	g.listenForDials(tb)
	dialer, err := dial.New(dial.Config{Resolve: g.names.resolve, Timeout: o.dialTimeout})
	if err != nil {
		tb.Fatal(err)
	}
	g.proxy, err = proxy.New(proxy.Config{
		Current: &g.current, Registry: &g.registry, Dialer: dialer, Recorder: g.recorder,
		Log: slog.New(slog.DiscardHandler), HeadTimeout: o.headTimeout, HelloTimeout: o.helloTimeout, Tunnel: o.tunnel, Forward: o.forward,
		Budgets: g.budgets,
	})
	if err != nil {
		tb.Fatal(err)
	}
	g.listen(tb, o)
	g.put(tb, g.policy())
	return g
}

// listenForDials starts the origins.
func (g *gateway) listenForDials(tb testing.TB) {
	tb.Helper()
	addrs := []string{"127.0.0.1", "127.0.0.2"}
	if hasIPv6() {
		addrs = append(addrs, "::1")
	}
	all := newOrigins(tb, addrs...)
	g.origin, g.forbidden = all[0], all[1]
	if len(all) > 2 {
		g.six = all[2]
	}
}

// hasIPv6 reports whether this machine has the loopback address of IPv6.
func hasIPv6() bool {
	data, err := os.ReadFile("/proc/net/if_inet6")
	return err == nil && strings.Contains(string(data), "00000000000000000000000000000001")
}

// listen starts both listeners.
func (g *gateway) listen(tb testing.TB, o options) {
	tb.Helper()
	slots := listen.NewSlots(o.slots)
	verifier, err := identity.NewVerifier(g.trust)
	if err != nil {
		tb.Fatal(err)
	}
	config, err := identity.ServerConfig{Source: g.trust, Verifier: verifier}.TLS()
	if err != nil {
		tb.Fatal(err)
	}
	g.enforcer, err = live.NewEnforcer(live.EnforcerConfig{
		Current: &g.current, Registry: &g.registry, Trusts: verifier.Trusts, CloseAtExpiry: o.closeAtExpiry,
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var dates sync.WaitGroup
	dates.Go(func() { g.enforcer.Run(ctx) })
	tb.Cleanup(func() {
		stop()
		dates.Wait()
	})
	g.secure = g.serve(tb, g.secureListener(config, verifier, o), slots)
	g.plain = g.serve(tb, listen.Config{
		Name: "plain", Fixed: func() spiffeid.ID { return spiffeid.RequireFromString(id("sidecar")) },
	}, slots)
}

func (g *gateway) secureListener(config *tls.Config, verifier *identity.Verifier, o options) listen.Config {
	return listen.Config{
		Proxies: o.proxies,
		Name:    "secure", TLS: config, Verifier: verifier, Realm: trustDomain, HandshakeTimeout: o.handshakeTimeout,
		HandshakeFailed: func(_ context.Context, client netip.AddrPort, err error) {
			if !errors.Is(err, io.EOF) {
				g.recorder.Event(audit.Record{
					Event: audit.EventHandshake, Listener: "secure", Client: client,
					Reason: allowlist.TLSHandshakeFailed, Detail: err.Error(),
				})
			}
		},
	}
}

// turnedAway records a connection that was closed without an answer.
func (g *gateway) turnedAway(listener string) func(context.Context, netip.AddrPort, allowlist.Reason, string) {
	return func(_ context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
		g.recorder.Event(audit.Record{Event: audit.EventHandshake, Listener: listener, Client: client, Reason: why, Detail: detail})
	}
}

// serve serves a listener until the test ends, or asks for the rest of the records.
func (g *gateway) serve(tb testing.TB, cfg listen.Config, slots *listen.Slots) netip.AddrPort {
	tb.Helper()
	cfg.Address, cfg.Slots, cfg.Log = "127.0.0.1:0", slots, slog.New(slog.DiscardHandler)
	cfg.Sources, cfg.Refused = g.sources, g.turnedAway(cfg.Name)
	l, err := listen.Listen(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cut := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := l.Serve(ctx, g.proxy.Serve); err != nil {
			tb.Error(err)
		}
	})
	end := sync.OnceFunc(func() {
		g.registry.EndAll(tunnel.Drain)
		cut()
		_ = l.Close()
		serving.Wait()
	})
	g.served = append(g.served, end)
	tb.Cleanup(end)
	return netip.MustParseAddrPort(l.Addr().String())
}

// The gateway's host as the address check is told of it.
const (
	ownAddress = "93.184.216.34"         // public, but for being the gateway's own
	ownNAT64   = "2001:470:64:ff9b::/96" // public, but for being an operator's prefix
	ownNAT64s  = "2001:470:65::/48"      // and a shorter one
)

// put puts a policy, written as people write it, in force.
func (g *gateway) put(tb testing.TB, text string) {
	tb.Helper()
	local := allowlist.Local{
		Listeners: []netip.AddrPort{g.secure, g.plain},
		Addresses: []netip.Addr{netip.MustParseAddr(ownAddress)},
		NAT64:     []netip.Prefix{netip.MustParsePrefix(ownNAT64), netip.MustParsePrefix(ownNAT64s)},
	}
	policy := load(tb, text).WithClassifier(allowlist.NewClassifier(local))
	g.enforcer.Put(context.Background(), policy, true)
	g.budgets.Apply(policy)
}

// load reads a policy as people write it.
func load(tb testing.TB, text string) *allowlist.Policy {
	tb.Helper()
	policy, err := parsePolicy(text)
	if err != nil {
		tb.Fatal(err)
	}
	return policy
}

func parsePolicy(text string) (*allowlist.Policy, error) {
	opts := policyfile.Options{TrustDomain: spiffeid.RequireTrustDomainFromString(trustDomain)}
	return policyfile.Parse(opts, map[string][]byte{"policy.yaml": []byte(text)})
}

func writeFile(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// policy is the one that every gateway starts with. Everything that it lets
// out of this machine is refused by address class, so that no case sends a
// packet to anybody.
func (g *gateway) policy() string { return g.fill(policyText) }

// fill puts the ports in where PORT and the like stand.
func (g *gateway) fill(text string) string {
	return strings.NewReplacer(
		"PORT", strconv.Itoa(int(g.origin.addr.Port())),
		"LISTENER", strconv.Itoa(int(g.secure.Port())),
	).Replace(text)
}

const policyText = `version: 1
identities:
  - id: spiffe://test.example/builder
    owner: team-ci
    allow:
      - {host: allowed.example, ports: [PORT, 80, 443], addresses: 127.0.0.1/32}
      - {host: "**.wild.example", ports: [PORT, LISTENER], addresses: 127.0.0.1/32}
      - {host: "*.one.example", ports: [PORT], addresses: 127.0.0.1/32}
      - {host: xn--bcher-kva.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: held.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: loopback.example, ports: [PORT], addresses: 126.0.0.0/7}
      - {host: anywhere.example, ports: [PORT]}
      - {host: everywhere.example, ports: [PORT], addresses: [0.0.0.0/0, "::/0"]}
      - {host: read-only.example, ports: [PORT], methods: [GET], addresses: 127.0.0.1/32}
      - {host: chat.example, ports: [PORT], methods: [GET], paths: ["/chat/**"], upgrade: true, addresses: 127.0.0.1/32}
      - {host: public-path.example, ports: [PORT], paths: ["/public/**"], addresses: 127.0.0.1/32}
      - {host: strict.example, ports: [PORT], tls: require, addresses: 127.0.0.1/32}
      - {host: auto.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: off.example, ports: [PORT], tls: "off", addresses: 127.0.0.1/32}
      - {host: plain-sight.example, ports: [PORT], tls: require, ech: refuse, addresses: 127.0.0.1/32}
      - {host: expired.example, ports: [PORT], expires: 2020-01-01, addresses: 127.0.0.1/32}
    deny:
      - {host: denied.wild.example}
  - id: spiffe://test.example/wide # everything that a range can open
    allow:
      - {cidr: 0.0.0.0/0, ports: ["1-65535"]}
      - {cidr: "::/0", ports: ["1-65535"]}
  - id: spiffe://test.example/exact # what one address opens
    allow:
      - {cidr: 127.0.0.1/32, ports: [PORT, LISTENER]}
      - {cidr: "::1/128", ports: [PORT]}
  - id: spiffe://test.example/strict # one address, for TLS
    allow:
      - {cidr: 127.0.0.1/32, ports: [PORT], tls: require}
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: elsewhere.example, ports: [1], addresses: 127.0.0.1/32}
  - id: spiffe://test.example/watched # the same, observed
    mode: observe
    observe_until: 9999-01-01
    allow:
      - {cidr: 127.0.0.1/32, ports: [PORT], tls: require}
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: elsewhere.example, ports: [1], addresses: 127.0.0.1/32}
      - {host: strict.example, ports: [PORT], tls: require, addresses: 127.0.0.1/32}
    deny:
      - {host: "**.denied.example"}
  - id: spiffe://test.example/mapped # the same in another spelling
    allow:
      - {cidr: "::ffff:127.0.0.1/128", ports: [PORT]}
  - id: spiffe://test.example/fenced # a name, but not into a range
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
    deny:
      - {cidr: 127.0.0.0/8}
  - id: spiffe://test.example/unopened # a name, but not its address
    allow:
      - {host: allowed.example, ports: [PORT]}
  - id: spiffe://test.example/ns/a
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
  - id: spiffe://test.example/ns/one/*
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
  - id: spiffe://test.example/sidecar
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
  - id: spiffe://test.example/legacy
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
quarantine:
  - id: spiffe://test.example/legacy
    reason: INC-77
`

// at puts the origin's port behind a host.
func (g *gateway) at(host string) string { return fmt.Sprint(host, ":", g.origin.addr.Port()) }
