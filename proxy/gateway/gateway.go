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

// Gateway is a configuration made real: every port open, nothing served yet. It is
// safe for concurrent use.
type Gateway struct {
	cfg     Config
	inForce *inForce
	doors   *doors
	probes  *probes
	host    *host
	cuts    *cuts
	proxy   *proxy.Proxy
	dns     *dns.Server // nil without a listener for queries

	policyAgain, identityAgain chan struct{} // have these read again
}

// New opens the listeners. After an error nothing is left open.
func New(ctx context.Context, cfg Config) (*Gateway, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Resolver.Resolve == nil || cfg.Recorder == nil {
		return nil, errors.New("gateway: resolver and recorder are required")
	}
	g := &Gateway{cfg: cfg, policyAgain: make(chan struct{}, 1), identityAgain: make(chan struct{}, 1)}
	if err := g.build(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// build makes the parts, what decides last: it must know all own addresses.
func (g *Gateway) build(ctx context.Context) error {
	budgets := limit.NewBudgets(g.cfg.Limits)
	var err error
	if g.inForce, err = newInForce(&g.cfg, budgets); err != nil {
		return err
	}
	g.cuts = newCuts(&g.cfg)
	g.doors = &doors{cfg: &g.cfg, verifier: g.inForce.verifier, panicked: g.panicked, cuts: g.cuts}
	g.probes = &probes{cfg: &g.cfg, state: g.State, held: g.inForce.notes, cuts: g.cuts}
	if err = g.doors.open(ctx); err != nil {
		return err
	}
	if err = g.probes.open(ctx); err != nil {
		return err
	}
	g.host = &host{cfg: &g.cfg, own: append(g.doors.addresses(), g.probes.addresses()...)}
	if err = g.host.look(ctx, g.inForce.apply); err != nil {
		return err
	}
	if err = g.buildDNS(budgets); err != nil {
		return err
	}
	if err = g.buildProxy(budgets); err != nil {
		return err
	}
	g.inForce.changed = g.proxy.CloseIdle
	return nil
}

// buildProxy makes what answers requests.
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
		Front: g.cfg.Front, HelloTimeout: g.cfg.HelloTimeout, Budgets: budgets, Bound: g.cfg.Resolver.Bound,
		Tunnel: g.cfg.Tunnel, Forward: g.cfg.Forward,
	})
	if d := g.cfg.Descriptors.Opened; d != nil && err == nil {
		d.OnWant(g.proxy.CloseIdle)
	}
	return err
}

// buildDNS makes what answers queries, if there is a listener for them.
func (g *Gateway) buildDNS(budgets *limit.Budgets) error {
	if !g.doors.takeQueries() {
		return nil
	}
	var err error
	g.dns, err = dns.New(dns.Config{
		Current: &g.inForce.current, Registry: &g.inForce.registry, Recorder: g.cfg.Recorder, Log: g.cfg.Log,
		Resolver: g.cfg.Resolver.DNS, Budgets: budgets, Limits: g.cfg.DNS, Inspect: g.cfg.Inspect, SpanEvery: uint64(max(0, g.cfg.SpanEvery)),
	})
	return err
}

// handler answers on the connections of a listener.
func (g *Gateway) handler(p Protocol) func(context.Context, *listen.Conn) {
	switch p {
	case DNS, DoT:
		return g.dns.ServeStream
	case DoH:
		return g.dns.ServeDoH
	case Connect:
	}
	return g.proxy.Serve
}

// panicked is called only while connections are served, by when the proxy is
// built.
func (g *Gateway) panicked(ctx context.Context, cause any, stack []byte) {
	g.proxy.Panicked(ctx, cause, stack)
}

// Serve serves until ctx is done, then stops in this order: go on for the drain
// delay, so that load balancers notice, with answers that are the last of their
// connections; answer 503; stop accepting; let tunnels finish; end what is left,
// and cut it once it had its last answers. New policies and identities are obeyed
// until the last tunnel has ended. It must be called once, and closes the gateway.
func (g *Gateway) Serve(ctx context.Context) {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var following, serving sync.WaitGroup
	g.inForce.first(background)
	following.Go(func() { g.inForce.enforcer.Run(background) })
	following.Go(func() { g.host.follow(background, g.inForce.apply) })
	following.Go(func() { g.cfg.Policy.Follow(background, g.policyAgain, g.inForce.loaded) })
	if g.cfg.Identity != nil {
		following.Go(func() {
			g.inForce.rotate(background) // to one that came while the gateway was being built
			g.cfg.Identity.Follow(background, g.identityAgain, g.inForce.rotate)
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
	g.cuts.close()
	stop()
	following.Wait()
}

// serveDoors serves the listeners until they are closed.
func (g *Gateway) serveDoors(ctx context.Context, serving *sync.WaitGroup) {
	stopped := func(name string, err error) {
		if err != nil {
			g.cfg.Log.ErrorContext(ctx, "listener stopped", slog.String("listener", name), slog.Any("error", err))
		}
	}
	for _, l := range g.doors.connections {
		serving.Go(func() { stopped(l.Name(), l.Serve(ctx, g.handler(l.protocol))) })
	}
	for _, u := range g.doors.datagrams {
		serving.Go(func() { stopped(u.Name(), g.dns.ServeUDP(ctx, u)) })
	}
}

// Reload has policy and identity read again, and ends what is held.
func (g *Gateway) Reload() {
	g.inForce.confirmed.Store(true)
	for _, again := range []chan struct{}{g.policyAgain, g.identityAgain} {
		select {
		case again <- struct{}{}:
		default: // it will be read
		}
	}
}

// Close closes the listeners of a gateway that is not served.
func (g *Gateway) Close() {
	if g.doors != nil {
		g.doors.close()
		g.probes.close()
	}
}

// State returns the state in force; nil before the first policy.
func (g *Gateway) State() *live.State { return g.inForce.current.Load() }

// Registry knows everything that is open.
func (g *Gateway) Registry() *live.Registry { return &g.inForce.registry }

// Parts are what a gateway is made of, for tests that stop it between two steps.
type Parts struct {
	Current  *live.Current
	Registry *live.Registry
	Enforcer *live.Enforcer
	Budgets  *limit.Budgets
	Proxy    *proxy.Proxy
}

// Parts returns what the gateway is made of. Whoever puts a state in force by
// them goes around the gateway, which then neither records nor counts it.
func (g *Gateway) Parts() Parts {
	return Parts{
		Current: &g.inForce.current, Registry: &g.inForce.registry, Enforcer: g.inForce.enforcer,
		Budgets: g.inForce.budgets, Proxy: g.proxy,
	}
}

// AnswersQueries reports whether there is a listener for DNS.
func (g *Gateway) AnswersQueries() bool { return g.dns != nil }

// Stats counts what has no record.
type Stats struct {
	DNS dns.Stats
	// Panics is how many connections and queries ended in one.
	Panics uint64
	// Held is what stays open although the policy in force forbids it.
	Held live.Hold
}

// Stats returns the counts so far.
func (g *Gateway) Stats() Stats {
	s := Stats{Panics: g.proxy.Panics(), Held: g.inForce.enforcer.Held()}
	if g.dns != nil {
		s.DNS = g.dns.Stats()
		s.Panics += s.DNS.Panics
	}
	return s
}

// Listening is an address that is listened on.
type Listening struct {
	Name string
	Addr net.Addr
}

// Listening returns every address that is listened on for connections, in the
// order of the configuration, and last that of the admin listener.
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
