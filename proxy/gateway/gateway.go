package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"

	"github.com/exeat-dev/exeat/proxy"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Gateway is a gateway whose ports are open. It serves nothing until Serve is called.
// It is safe for concurrent use.
type Gateway struct {
	cfg     Config
	inForce *inForce
	doors   *doors
	probes  *probes
	host    *host
	shed    *shedReporter
	proxy   *proxy.Proxy
	dns     *dns.Server // nil without a listener for queries

	rereadPolicy, rereadIdentity chan struct{} // a value makes the provider load again
}

// New opens the listeners. After an error nothing stays open.
func New(ctx context.Context, cfg Config) (*Gateway, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Resolver.Resolve == nil || cfg.Recorder == nil {
		return nil, errors.New("gateway: resolver and recorder are required")
	}
	g := &Gateway{cfg: cfg, rereadPolicy: make(chan struct{}, 1), rereadIdentity: make(chan struct{}, 1)}
	if err := g.build(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// build makes the parts. The proxy and the DNS server come last: decisions need all
// addresses of the gateway.
func (g *Gateway) build(ctx context.Context) error {
	budgets := limit.NewBudgets(g.cfg.Limits)
	var err error
	if g.inForce, err = newInForce(&g.cfg, budgets); err != nil {
		return err
	}
	g.shed = newShedReporter(&g.cfg)
	g.doors = &doors{cfg: &g.cfg, verifier: g.inForce.verifier, panicked: g.panicked, shed: g.shed}
	g.probes = &probes{cfg: &g.cfg, state: g.State, heldNotes: g.inForce.notes, shed: g.shed}
	if err = g.doors.open(ctx); err != nil {
		return err
	}
	if err = g.probes.open(ctx); err != nil {
		return err
	}
	g.host = &host{cfg: &g.cfg, listeners: append(g.doors.addresses(), g.probes.addresses()...)}
	if err = g.host.refresh(ctx, g.inForce.apply); err != nil {
		return err
	}
	if err = g.buildDNS(budgets); err != nil {
		return err
	}
	if err = g.buildProxy(budgets); err != nil {
		return err
	}
	g.inForce.closeIdle = g.proxy.CloseIdle
	return nil
}

// buildProxy makes the proxy, which answers requests.
func (g *Gateway) buildProxy(budgets *limit.Budgets) error {
	dialer, err := dial.New(dial.Config{Resolve: g.cfg.Resolver.Resolve, Timeout: g.cfg.DialTimeout, Descriptors: g.cfg.Descriptors.Opened})
	if err != nil {
		return err
	}
	if d := g.cfg.Descriptors.Opened; d != nil {
		g.cfg.Forward.Scarce = d.Scarce
		g.cfg.Tunnel.Pipes = tunnel.NewPipes(tunnel.PipesConfig{Take: d.TakeSpare, Scarce: d.Scarce, Give: d.Give})
	}
	g.proxy, err = proxy.New(proxy.Config{
		Current: &g.inForce.current, Registry: &g.inForce.registry, Dialer: dialer, Recorder: g.cfg.Recorder, Log: g.cfg.Log,
		Front: g.cfg.Front, HelloTimeout: g.cfg.HelloTimeout, Budgets: budgets, Bound: g.cfg.Resolver.Bound, Query: queryAnswerer(g.dns),
		Tunnel: g.cfg.Tunnel, Forward: g.cfg.Forward,
	})
	if d := g.cfg.Descriptors.Opened; d != nil && err == nil {
		d.OnWant(g.proxy.CloseIdle)
	}
	return err
}

// buildDNS makes the DNS server, if there is a listener for queries.
func (g *Gateway) buildDNS(budgets *limit.Budgets) error {
	if !g.doors.hasDNSListener() {
		return nil
	}
	var err error
	g.dns, err = dns.New(dns.Config{
		Current: &g.inForce.current, Registry: &g.inForce.registry, Recorder: g.cfg.Recorder, Log: g.cfg.Log,
		Resolver: g.cfg.Resolver.DNS, Budgets: budgets, Limits: g.cfg.DNS, Inspect: g.cfg.Inspect, SpanEvery: uint64(max(0, g.cfg.SpanEvery)),
	})
	return err
}

// handler returns the function that serves a listener's connections.
func (g *Gateway) handler(l door) func(context.Context, *listen.Conn) {
	switch l.protocol {
	case DNS, DoT:
		return g.dns.ServeStream
	case DoH:
		return g.dns.ServeDoH
	case ConnectAndDoH:
		isQueryAuthority := func(authority string) bool { return g.doors.isQueryAuthority(l, authority) }
		return func(ctx context.Context, conn *listen.Conn) { g.proxy.ServeWithDoH(ctx, conn, isQueryAuthority) }
	case SOCKS5:
		return g.proxy.ServeSOCKS5
	case Connect:
	}
	return g.proxy.Serve
}

// panicked counts and logs a panic. It is called only while connections are served, when
// the proxy exists.
func (g *Gateway) panicked(ctx context.Context, cause any, stack []byte) {
	g.proxy.Panicked(ctx, cause, stack)
}

// Serve serves until ctx is done, then stops in this order: it serves for the drain
// delay, so that load balancers notice, and makes each answer the last one of its
// connection; it answers new requests with 503 and stops accepting; it lets tunnels
// finish for the drain timeout, and then ends those that are left; it waits for the last
// answers, and closes the remaining connections. New policies and
// identities are obeyed until the last tunnel has ended. Serve must be called once, and
// closes the gateway.
func (g *Gateway) Serve(ctx context.Context) {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var following, serving sync.WaitGroup
	g.inForce.first(background)
	following.Go(func() { g.inForce.enforcer.Run(background) })
	following.Go(func() { g.host.follow(background, g.inForce.apply) })
	following.Go(func() { g.cfg.Policy.Follow(background, g.rereadPolicy, g.inForce.loaded) })
	if g.cfg.Identity != nil {
		following.Go(func() {
			g.inForce.rotate(background) // a snapshot may have come since New
			g.cfg.Identity.Follow(background, g.rereadIdentity, g.inForce.rotate)
		})
	}
	following.Go(func() { g.probes.serve(background) })
	connections, cut := context.WithCancel(background)
	defer cut()
	g.serveDoors(connections, &serving)

	<-ctx.Done()
	drain(ctx, g)
	g.proxy.EndDrain()
	awaitLastAnswers(&serving)
	cut()
	serving.Wait()
	g.probes.close()
	g.shed.close()
	stop()
	following.Wait()
}

// serveDoors starts serving the listeners. They are served until they are closed.
func (g *Gateway) serveDoors(ctx context.Context, serving *sync.WaitGroup) {
	stopped := func(name string, err error) {
		if err != nil {
			g.cfg.Log.ErrorContext(ctx, "listener stopped", slog.String("listener", name), slog.Any("error", err))
		}
	}
	for _, l := range g.doors.connections {
		serving.Go(func() { stopped(l.Name(), l.Serve(ctx, g.handler(l))) })
	}
	for _, u := range g.doors.datagrams {
		serving.Go(func() { stopped(u.Name(), g.dns.ServeUDP(ctx, u)) })
	}
}

// Reload makes the providers read policy and identity again. Unless the policy files have
// an error, it also ends the entries whose end is held.
func (g *Gateway) Reload() {
	g.inForce.confirmed.Store(true)
	for _, reread := range []chan struct{}{g.rereadPolicy, g.rereadIdentity} {
		select {
		case reread <- struct{}{}:
		default: // a reload is already requested
		}
	}
}

// Close closes the listeners of a gateway that is not being served.
func (g *Gateway) Close() {
	if g.doors != nil {
		g.doors.close()
		g.probes.close()
	}
}

// State returns the state in force, or nil before the first policy.
func (g *Gateway) State() *live.State { return g.inForce.current.Load() }

// Registry returns the registry of everything that is open.
func (g *Gateway) Registry() *live.Registry { return &g.inForce.registry }

// Parts holds the parts of a gateway, for tests that stop it between two steps.
type Parts struct {
	Current  *live.Current
	Registry *live.Registry
	Enforcer *live.Enforcer
	Budgets  *limit.Budgets
	Proxy    *proxy.Proxy
}

// Parts returns the parts of the gateway. A state that is put in force through them is
// neither recorded nor counted.
func (g *Gateway) Parts() Parts {
	return Parts{
		Current: &g.inForce.current, Registry: &g.inForce.registry, Enforcer: g.inForce.enforcer,
		Budgets: g.inForce.budgets, Proxy: g.proxy,
	}
}

// AnswersQueries reports whether there is a listener for DNS.
func (g *Gateway) AnswersQueries() bool { return g.dns != nil }

// Stats counts events that have no record.
type Stats struct {
	DNS dns.Stats
	// Panics is the number of connections and queries that ended in a panic.
	Panics uint64
	// Held counts the entries that stay open although the policy in force forbids them.
	Held live.Hold
	// PolicyRefused says that the last reading of policy and quarantine list had an
	// error.
	PolicyRefused bool
}

// Stats returns the counts so far.
func (g *Gateway) Stats() Stats {
	s := Stats{Panics: g.proxy.Panics(), Held: g.inForce.enforcer.Held(), PolicyRefused: g.inForce.filesError.Load() != nil}
	if g.dns != nil {
		s.DNS = g.dns.Stats()
		s.Panics += s.DNS.Panics
	}
	return s
}

// Listening is an address on which the gateway listens.
type Listening struct {
	Name string
	Addr net.Addr
}

// Address returns Addr in the form of the configuration.
func (l Listening) Address() string {
	if l.Addr.Network() == "unix" {
		return "unix:" + l.Addr.String()
	}
	return l.Addr.String()
}

// Listening returns every address on which the gateway listens for connections, in the
// order of the configuration, and then that of the admin listener.
func (g *Gateway) Listening() []Listening {
	var all []Listening
	for _, d := range g.doors.connections {
		all = append(all, Listening{d.Name(), d.Addr()})
	}
	if g.probes.admin != nil {
		all = append(all, Listening{AdminName, g.probes.admin.Addr()})
	}
	return all
}
