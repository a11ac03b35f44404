package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// resolver returns a resolver with everything that a listener for queries needs. It is
// not called.
func resolver() dns.Resolver {
	return dns.Resolver{
		Cached: new(resolve.Resolver).Cached, Lookup: new(resolve.Resolver).Lookup, Bind: new(resolve.Resolver).Bind,
	}
}

// isServed reports whether an address is in use by a listener.
func isServed(network, address string) bool {
	conn, err := net.Dial(network, address)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// TestMissingPartIsAnError checks that a missing part of the configuration is an error
// of New.
func TestMissingPartIsAnError(t *testing.T) {
	for _, row := range []struct {
		name    string
		without func(*Config)
		checks  bool // Check works without this part
	}{
		{"the policy provider", func(c *Config) { c.Policy = nil }, false},
		{"the log", func(c *Config) { c.Log = nil }, false},
		{"the addresses of the host", func(c *Config) { c.HostAddresses = nil }, false},
		{"listeners", func(c *Config) { c.Listeners = nil }, false},
		{"the identity provider of a listener with certificates", func(c *Config) { c.Listeners[0].Identity = MTLS }, false},
		{"the identity provider of a listener whose callers have the gateway's identity", func(c *Config) { c.Listeners[0].Identity = Self }, false},
		{"the identity of a listener's callers", func(c *Config) { c.Listeners[0].Identity, c.Listeners[0].ID = Fixed, spiffeid.ID{} }, false},
		{"a map of addresses", func(c *Config) { c.Listeners[0].Identity = SourceMap }, false},
		{"an identity in a map of addresses", func(c *Config) {
			c.Listeners[0].Identity, c.Listeners[0].Sources = SourceMap, map[netip.Prefix]spiffeid.ID{netip.MustParsePrefix("10.0.0.0/8"): {}}
		}, false},
		{"a kind of identity", func(c *Config) { c.Listeners[0].Identity = SourceMap + 1 }, false},
		{"a protocol", func(c *Config) { c.Listeners[0].Protocol = DoH + 1 }, false},
		{"an identity that SOCKS5 can have", func(c *Config) { c.Listeners[0].Protocol, c.Listeners[0].Identity = SOCKS5, MTLS }, false},
		{"an identity of no address, for SOCKS5", func(c *Config) {
			c.Listeners[0].Protocol, c.Listeners[0].Identity = SOCKS5, SourceMap
			c.Listeners[0].Sources = map[netip.Prefix]spiffeid.ID{netip.MustParsePrefix("10.0.0.0/8"): id("sidecar")}
		}, false},
		{"a protocol that carries traces", func(c *Config) { c.Listeners[0].Protocol, c.Listeners[0].AcceptTrace = SOCKS5, true }, false},
		{"TLS, for DNS over TLS", func(c *Config) { c.Listeners[0].Protocol = DoT }, false},
		{"the resolver", func(c *Config) { c.Resolver.Resolve = nil }, true},
		{"the recorder", func(c *Config) { c.Recorder = nil }, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := &rig{policies: gatewaytest.NewPolicy(allowing("one"))}
			cfg := r.config(t)
			row.without(&cfg)
			if g, err := New(t.Context(), cfg); err == nil || g != nil || !strings.HasPrefix(err.Error(), "gateway: ") {
				t.Errorf("New returned %v, %v", g, err)
			}
			if got, err := Check(cfg); (err == nil) != row.checks || (got.Version == "one") != row.checks {
				t.Errorf("Check returned %+v, %v", got, err)
			}
		})
	}
}

// TestAfterAnErrorNothingIsOpen checks that New has no listener open after an error.
// Each row fails after the first listener was opened.
func TestAfterAnErrorNothingIsOpen(t *testing.T) {
	errAddresses := errors.New("no addresses today")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	also := func(c *Config, l Listener) {
		l.Name, l.Identity, l.ID = "second", Fixed, id("sidecar")
		c.Listeners = append(c.Listeners, l)
	}
	for _, row := range []struct {
		name   string
		change func(*Config)
		want   string // text in the error
	}{
		{"a listener at an address that is taken", func(c *Config) { also(c, Listener{Address: taken.Addr().String()}) }, "is taken"},
		{"the admin listener at an address that is taken", func(c *Config) { c.Admin = Admin{Address: taken.Addr().String(), Metrics: http.NotFoundHandler()} }, "admin: "},
		{"an admin listener without metrics", func(c *Config) { c.Admin.Address = "127.0.0.1:0" }, "admin: "},
		{"a listener for queries without a resolver for them", func(c *Config) { also(c, Listener{Address: "127.0.0.1:0", Protocol: DNS}) }, "resolver"},
		{"a listener for queries without a port", func(c *Config) {
			also(c, Listener{Address: "unix:" + filepath.Join(t.TempDir(), "q"), Protocol: DNS})
		}, "listener second: DNS needs an IP address"},
		{"the addresses of the host cannot be read", func(c *Config) {
			c.HostAddresses = func() ([]netip.Addr, error) { return nil, errAddresses }
		}, errAddresses.Error()},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := &rig{policies: gatewaytest.NewPolicy(allowing("one"))}
			cfg := r.config(t)
			row.change(&cfg)
			if g, err := New(t.Context(), cfg); err == nil || g != nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("New returned %v, %v; want an error with %q", g, err, row.want)
			}
			for _, l := range cfg.Listeners {
				if path, ok := strings.CutPrefix(l.Address, "unix:"); ok && isServed("unix", path) {
					t.Errorf("listener %s is open", l.Name)
				}
			}
		})
	}
}

// everyListener adds a listener of each further kind, and the admin listener.
func everyListener(t *testing.T, c *Config) {
	t.Helper()
	c.Identity = gatewaytest.NewIdentity(snapshot(t, 1, newAuthority(t)))
	c.Resolver.DNS = resolver()
	c.Admin = Admin{Address: "127.0.0.1:0", Metrics: http.NotFoundHandler()}
	c.Listeners = append(c.Listeners,
		Listener{Name: "dns", Address: "127.0.0.1:0", Protocol: DNS, Identity: SourceMap, Sources: map[netip.Prefix]spiffeid.ID{
			netip.MustParsePrefix("127.0.0.0/8"): id("mapped"),
		}},
		Listener{Name: "dot", Address: "127.0.0.1:0", Protocol: DoT},
		Listener{Name: "doh", Address: "127.0.0.1:0", Protocol: DoH},
		Listener{Name: "self", Address: "127.0.0.1:0", Identity: Self},
		Listener{Name: "main", Address: "127.0.0.1:0"},
	)
}

// open opens a gateway with every listener. It tries again, because a port that is free
// for TCP may be in use for UDP.
func open(t *testing.T, cfg Config) *Gateway {
	t.Helper()
	for range 100 {
		g, err := New(t.Context(), cfg)
		if err == nil {
			return g
		}
		if !strings.Contains(err.Error(), "is taken") {
			t.Fatal(err)
		}
	}
	t.Fatal("no port is free for both")
	return nil
}

// TestListening checks that Listening returns the open addresses in the order of the
// configuration, and that Close closes them all if the gateway is not served.
func TestListening(t *testing.T) {
	r := &rig{policies: gatewaytest.NewPolicy(nil)}
	cfg := r.config(t)
	everyListener(t, &cfg)
	g := open(t, cfg)
	var names []string
	listening := g.Listening()
	for _, l := range listening {
		names = append(names, l.Name)
		if !isServed(l.Addr.Network(), l.Addr.String()) {
			t.Errorf("nobody listens at %s", l.Addr)
		}
	}
	if diff := cmp.Diff([]string{"own", "dns", "dot", "doh", "self", "main", "admin"}, names); diff != "" {
		t.Errorf("listening (-want +got):\n%s", diff)
	}
	if !g.AnswersQueries() || g.State() != nil || g.Stats() != (Stats{}) {
		t.Errorf("answers queries: %v, in force %+v, counted %+v", g.AnswersQueries(), g.State(), g.Stats())
	}
	queries := listening[1].Addr.String()
	if socket, err := net.ListenPacket("udp", queries); err == nil {
		_ = socket.Close()
		t.Errorf("nobody takes datagrams at %s", queries)
	}
	g.Close()
	for _, l := range listening {
		if isServed(l.Addr.Network(), l.Addr.String()) {
			t.Errorf("%s is open after Close", l.Addr)
		}
	}
	socket, err := net.ListenPacket("udp", queries)
	if err != nil {
		t.Fatalf("the datagrams' socket is open after Close: %v", err)
	}
	_ = socket.Close()
	g.Close() // a second call does nothing
}

// TestTheGatewayIsNoDestination checks that the gateway's own listeners cannot be
// reached, even if a rule names their address.
func TestTheGatewayIsNoDestination(t *testing.T) {
	r := &rig{policies: gatewaytest.NewPolicy(allowing("one", to("a.example")))}
	cfg := r.config(t)
	everyListener(t, &cfg)
	g := open(t, cfg)
	defer g.Close()
	g.inForce.first(t.Context())
	reach := func(at netip.AddrPort) error {
		req := asked("a.example")
		req.Dest.Port = at.Port()
		d := g.State().Decide(req)
		if !d.Allowed() {
			t.Fatalf("port %d is refused as %q", at.Port(), d.Reason)
		}
		return d.CheckAddr(at)
	}
	for _, l := range g.Listening()[1:] {
		if reach(netip.MustParseAddrPort(l.Addr.String())) == nil {
			t.Errorf("listener %s can be reached", l.Name)
		}
	}
	if err := reach(netip.MustParseAddrPort("127.0.0.1:1")); err != nil {
		t.Errorf("another port: %v", err)
	}
}

// TestCheck checks that Check warns of identities that listeners give their callers if
// the policy refuses every request of theirs, and that it opens nothing.
func TestCheck(t *testing.T) {
	pattern := func(path string) allowlist.IdentityPattern {
		return must(allowlist.ParseIdentityPattern("spiffe://test.example/" + path))
	}
	known := must(allowlist.Compile(allowlist.Spec{
		Version: "one",
		Entries: []allowlist.Entry{
			{Pattern: pattern("known")},
			{Pattern: pattern("cut")},
			{Pattern: pattern("mapped/*"), Accept: allowlist.ProofsOf(allowlist.ProofSourceMap)},
		},
		Quarantine: []allowlist.Quarantined{{Pattern: pattern("cut")}},
	}))
	const (
		strange, unaccepted = ": no entry of the policy matches spiffe://test.example/", ": no entry of spiffe://test.example/"
		unknown, source     = ", so whatever it asks for is refused as identity-unknown", ", so whatever it asks for is refused as identity-source-not-accepted"
	)
	sources := map[netip.Prefix]spiffeid.ID{}
	for prefix, name := range map[string]string{"10.1.0.0/16": "other", "10.2.0.0/16": "other", "10.3.0.0/16": "mapped/a", "10.4.0.0/16": "known"} {
		sources[netip.MustParsePrefix(prefix)] = id(name)
	}
	for _, row := range []struct {
		name      string
		listeners []Listener
		want      []string
	}{
		{"callers with certificates", []Listener{{Name: "main"}}, nil},
		{"an identity that the policy knows", []Listener{{Name: "main", Identity: Fixed, ID: id("known")}}, nil},
		{"an identity in quarantine, which is no mistake", []Listener{{Name: "main", Identity: Fixed, ID: id("cut")}}, nil},
		{"an identity that the policy does not know", []Listener{{Name: "main", Identity: Fixed, ID: id("other")}}, []string{"main" + strange + "other" + unknown}},
		{"an unknown identity of a listener for queries", []Listener{{Name: "q", Protocol: DNS, Identity: Fixed, ID: id("other")}}, []string{"q" + strange + "other" + unknown}},
		{"an identity for which the policy accepts another proof", []Listener{{Name: "main", Identity: Fixed, ID: id("mapped/a")}}, []string{"main" + unaccepted + "mapped/a accepts listener" + source}},
		{"the gateway's own identity", []Listener{{Name: "main", Identity: Self}}, []string{"main" + strange + "gateway" + unknown}},
		{"identities by address, each of which is named once", []Listener{{Name: "main", Identity: SourceMap, Sources: sources}}, []string{
			"main" + unaccepted + "known accepts source-map" + source, "main" + strange + "other" + unknown,
		}},
		{"warnings in the order of the listeners", []Listener{{Name: "b", Identity: Self}, {Name: "a", Identity: Fixed, ID: id("other")}}, []string{
			"b" + strange + "gateway" + unknown, "a" + strange + "other" + unknown,
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = taken.Close() }()
			r := &rig{policies: gatewaytest.NewPolicy(known)}
			cfg := r.config(t)
			cfg.Identity = gatewaytest.NewIdentity(snapshot(t, 1, newAuthority(t)))
			cfg.Admin.Address = taken.Addr().String()
			cfg.Listeners = row.listeners
			for i := range cfg.Listeners {
				cfg.Listeners[i].Address = taken.Addr().String()
			}
			var want []string
			for _, warning := range row.want {
				want = append(want, "listener "+warning)
			}
			got, err := Check(cfg)
			if diff := cmp.Diff(Checked{Version: "one", Quarantine: known.QuarantineVersion(), Warnings: want}, got); err != nil || diff != "" {
				t.Errorf("checked %v (-want +got):\n%s", err, diff)
			}
			if told, left := r.told(), r.rest(t); len(told) > 0 || len(left) > 0 {
				t.Errorf("a check has loaded %v, and made the records %+v", told, left)
			}
		})
	}
}

// TestCheckWithoutAPolicy checks that Check has no warnings without a policy.
func TestCheckWithoutAPolicy(t *testing.T) {
	r := &rig{policies: gatewaytest.NewPolicy(nil)}
	got, err := Check(r.config(t))
	if diff := cmp.Diff(Checked{}, got); err != nil || diff != "" {
		t.Errorf("checked %v (-want +got):\n%s", err, diff)
	}
}

// TestGatewayOutlivesTheContextOfNew checks that the end of New's context does not end
// the gateway.
func TestGatewayOutlivesTheContextOfNew(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := &rig{policies: gatewaytest.NewPolicy(allowing("one", to("a.example")))}
	g, err := New(ctx, r.config(t))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	r.Gateway = g
	port := newOrigin(t)
	r.serve(t)
	if got := r.call(t).ask(t, http.MethodGet, "a.example:"+port); got != http.StatusOK {
		t.Errorf("answered %d", got)
	}
}
