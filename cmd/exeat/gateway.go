package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy"
	"github.com/exeat-dev/exeat/proxy/admin"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/file"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// flushTimeout bounds how long the end of the process waits for records to be
// written, and then for spans and metrics.
const flushTimeout = 5 * time.Second

// gateway is a configuration made real: every file read, every port open,
// nothing served yet.
type gateway struct {
	cfg      config.Config
	log      *slog.Logger
	identity *living // nil without an identity
	policy   *policyReloader
	current  live.Current
	registry live.Registry
	enforcer *live.Enforcer

	quarantined []string // patterns, by the state in force; belongs to enforced

	telemetry   *telemetry.Telemetry
	recorder    *audit.Recorder
	recordFiles []*file.File

	resolver  *resolve.Resolver
	sources   *limit.Sources
	budgets   *limit.Budgets
	proxy     *proxy.Proxy
	dns       *dns.Server // nil without a DNS listener
	listeners []door
	datagrams []*listen.UDP
	watchers  []*watch.Watcher
	webs      []webCertificate

	policyWatcher *watch.Watcher // one of watchers
	addresses     []netip.Addr   // of the host, sorted; see followAddresses

	admin      *admin.Server                       // nil without an address
	logFailing func() (since time.Time, err error) // why lines of the log are lost; nil means that nobody knows
	stopping   atomic.Bool
}

// newGateway reads what the configuration names and opens the listeners. After
// an error nothing is left open.
func newGateway(ctx context.Context, cfg config.Config, records io.Writer, getenv func(string) string, log *slog.Logger) (*gateway, error) {
	g := &gateway{cfg: cfg, log: log, sources: limit.NewSources(cfg.Limits), budgets: limit.NewBudgets(cfg.Limits)}
	if err := g.build(ctx, records, getenv); err != nil {
		g.closeListeners()
		g.closeAdmin()
		if g.identity != nil {
			g.identity.close()
		}
		if g.resolver != nil {
			g.resolver.Close()
		}
		g.flush(ctx)
		return nil, err
	}
	return g, nil
}

// read reads the environment, identity and policy.
func (g *gateway) read(ctx context.Context, getenv func(string) string) error {
	err := checkExports(ctx, &g.cfg, getenv, http.ProxyFromEnvironment)
	if err != nil {
		return err
	}
	if g.identity, err = openIdentity(ctx, g.cfg, g.log, g.identityChanged); err != nil {
		return err
	}
	g.policy = g.newPolicyReloader()
	return g.policy.first(ctx)
}

func (g *gateway) build(ctx context.Context, records io.Writer, getenv func(string) string) error {
	if err := g.read(ctx, getenv); err != nil {
		return err
	}
	if err := g.openEvidence(ctx, records, getenv); err != nil {
		return err
	}
	if err := g.openListeners(ctx); err != nil {
		return err
	}
	if err := g.buildDNS(); err != nil {
		return err
	}
	if err := g.openAdmin(ctx); err != nil {
		return err
	}
	if err := g.buildProxy(); err != nil {
		return err
	}
	return g.watch()
}

// openEvidence sets up traces, metrics and records.
func (g *gateway) openEvidence(ctx context.Context, stdout io.Writer, getenv func(string) string) error {
	var err error
	g.telemetry, err = telemetry.New(ctx, telemetry.Config{
		Version: version(), Getenv: getenv, IdentityCap: g.cfg.MetricIdentities, Failing: g.exportError,
	})
	if err != nil {
		return err
	}
	sinks, err := g.openRecords(ctx, stdout)
	if err != nil {
		return err
	}
	g.recorder, err = audit.New(ctx, audit.Config{
		Sinks: sinks, Tracer: g.telemetry.Tracer(), Measure: g.telemetry.Instruments().Measure, SinkError: g.sinkError,
		Required: g.cfg.RecordsRequired, Collapse: g.cfg.Collapse,
	})
	return err
}

func (g *gateway) buildProxy() error {
	local, err := g.local()
	if err != nil {
		return err
	}
	g.addresses = local.Addresses
	g.policy.classifier.Store(allowlist.NewClassifier(local))
	g.enforcer, err = live.NewEnforcer(live.EnforcerConfig{
		Current: &g.current, Registry: &g.registry, Trusts: g.identity.trusts,
		CloseAtExpiry: g.cfg.CloseAtExpiry, MaxRevoke: g.cfg.MaxRevoke, Enforced: g.enforced,
	})
	if err != nil {
		return err
	}
	dialer, err := dial.New(dial.Config{Resolve: g.resolver.Resolve, Timeout: g.cfg.DialTimeout})
	if err != nil {
		return err
	}
	g.proxy, err = proxy.New(proxy.Config{
		Current: &g.current, Registry: &g.registry, Dialer: dialer, Recorder: g.recorder, Log: g.log,
		HeadTimeout: g.cfg.HeadTimeout, HeadLimit: g.cfg.HeadLimit, HelloTimeout: g.cfg.HelloTimeout,
		Disclosure: g.cfg.Disclosure, Budgets: g.budgets, Bound: g.resolver.Bound,
		Tunnel:    tunnel.Config{Idle: g.cfg.TunnelIdle, Max: g.cfg.TunnelMax},
		KeepAlive: g.cfg.KeepAlive,
		Forward: forward.Config{
			Body: g.cfg.BodyTimeout, Response: g.cfg.ResponseTimeout,
			NoVia: g.cfg.NoVia, PassForwarded: g.cfg.PassForwarded,
		},
	})
	return err
}

func (g *gateway) openListeners(ctx context.Context) error {
	slots, dnsSlots := listen.NewSlots(g.cfg.MaxConnections), listen.NewSlots(g.cfg.DNSConnections)
	for _, lc := range g.cfg.Listeners {
		cfg := listen.Config{
			Name: lc.Name, Address: lc.Address, SocketMode: lc.SocketMode, AcceptTrace: lc.AcceptTrace,
			HandshakeTimeout: g.cfg.HandshakeTimeout, Slots: slots, Log: g.log, Panicked: g.panicked,
			Proxies: lc.Proxies, Sources: g.sources, Refused: g.refused(lc.Name),
		}
		if lc.Protocol != config.Connect {
			cfg.Slots, cfg.Greeting = dnsSlots, max(1, g.cfg.DNSConnections/4)
			cfg.HandshakeTimeout = min(cfg.HandshakeTimeout, dns.HandshakeTimeout)
		}
		if err := g.identify(&cfg, lc); err != nil {
			return fmt.Errorf("listener %s: %w", lc.Name, err)
		}
		l, err := listen.Listen(ctx, cfg)
		if err != nil {
			return err
		}
		g.listeners = append(g.listeners, door{l, lc.Protocol})
		if lc.Protocol == config.DNS {
			if err := g.openDatagrams(ctx, l, cfg); err != nil {
				return err
			}
		}
	}
	return nil
}

// identify sets where the callers of a listener get their identity from.
func (g *gateway) identify(cfg *listen.Config, lc config.Listener) error {
	switch lc.Identity {
	case config.Self:
		cfg.Fixed = func() spiffeid.ID { return g.identity.source.Snapshot().ID() }
		return nil
	case config.Fixed:
		cfg.Fixed = func() spiffeid.ID { return lc.ID }
		return nil
	case config.SourceMap:
		cfg.Mapped = listen.NewAddressMap(lc.Sources).Find
		return nil
	case config.MTLS:
	}
	server := identity.ServerConfig{
		Source: g.identity.source, Verifier: g.identity.verifier, Protocols: applicationProtocols(lc.Protocol),
	}
	if lc.WebCertificate != "" {
		var err error
		if server.Web, err = g.loadWeb(lc.WebCertificate, lc.WebKey); err != nil {
			return err
		}
	}
	var err error
	cfg.TLS, err = server.TLS()
	cfg.Verifier = g.identity.verifier
	cfg.Realm = g.identity.source.Snapshot().TrustDomain().Name()
	cfg.HandshakeFailed = g.handshakeFailed(lc.Name)
	cfg.Handshaken = func(why allowlist.Reason) { g.telemetry.Instruments().Handshake(why) }
	return err
}

// handshakeFailed records a handshake that died inside the TLS library. A
// connection that closed without a byte, as health checks do, was none.
func (g *gateway) handshakeFailed(listener string) func(context.Context, netip.AddrPort, error) {
	return func(_ context.Context, client netip.AddrPort, err error) {
		if errors.Is(err, io.EOF) {
			return
		}
		g.recorder.Event(audit.Record{
			Event: audit.EventHandshake, Listener: listener, Client: client,
			Reason: allowlist.TLSHandshakeFailed, Detail: err.Error(),
		})
	}
}

// refused records a connection that was closed without an answer.
func (g *gateway) refused(listener string) func(context.Context, netip.AddrPort, allowlist.Reason, string) {
	return func(_ context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
		g.recorder.Event(audit.Record{Event: audit.EventHandshake, Listener: listener, Client: client, Reason: why, Detail: detail})
	}
}

// panicked is called only while connections are served, by when the proxy is
// built.
func (g *gateway) panicked(ctx context.Context, cause any, stack []byte) {
	g.proxy.Panicked(ctx, cause, stack)
}

func (g *gateway) sinkError(sink string, err error) {
	if err != nil {
		g.log.Error("records cannot be written; they are counted as lost", slog.String("sink", sink), slog.Any("error", err))
		return
	}
	g.log.Info("records can be written again", slog.String("sink", sink))
}

func (g *gateway) exportError(signal string, err error) {
	if err != nil {
		g.log.Warn("telemetry cannot be exported; what is lost is counted", slog.String("signal", signal), slog.Any("error", err))
		return
	}
	g.log.Info("telemetry can be exported again", slog.String("signal", signal))
}

// serve serves until ctx is done, then stops in this order: go on for the
// drain delay, so that load balancers notice; answer 503; stop accepting; let
// tunnels finish; cut what is left; flush records and spans. New policies and
// identities are obeyed until the last tunnel has ended.
// A signal on hangup, which may be nil, reads everything again.
func (g *gateway) serve(ctx context.Context, hangup <-chan os.Signal) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var watching, serving sync.WaitGroup
	g.policy.enforce(background)
	watching.Go(func() { g.enforcer.Run(background) })
	watching.Go(func() { giveBack(background, debug.FreeOSMemory) })
	watching.Go(func() { g.reloadOn(background, hangup) })
	watching.Go(func() { g.serveAdmin(background) })
	watching.Go(func() { g.followAddresses(background) })
	if g.identity != nil {
		g.identity.start(background)
	}
	for _, w := range g.watchers {
		watching.Go(func() { w.Run(background) })
	}
	connections, cut := context.WithCancel(background)
	defer cut()
	for _, l := range g.listeners {
		serving.Go(func() {
			if err := l.Serve(connections, g.handler(l.protocol)); err != nil {
				g.log.ErrorContext(ctx, "listener stopped", slog.String("listener", l.Name()), slog.Any("error", err))
			}
		})
	}
	for _, u := range g.datagrams {
		serving.Go(func() {
			if err := g.dns.ServeUDP(connections, u); err != nil {
				g.log.ErrorContext(ctx, "listener stopped", slog.String("listener", u.Name()), slog.Any("error", err))
			}
		})
	}
	<-ctx.Done()
	g.stopping.Store(true)
	g.log.InfoContext(ctx, "draining", slog.Int("tunnels", g.registry.Tunnels()))
	time.Sleep(g.cfg.DrainDelay) //nolint:forbidigo // nothing may cut the delay short but a second signal, which ends the process
	g.drain()
	g.closeListeners()
	g.registry.Drain(g.cfg.DrainTimeout)
	cut()
	serving.Wait()
	g.resolver.Close()
	g.closeAdmin()
	stop()
	watching.Wait()
	if g.identity != nil {
		g.identity.close()
	}
	g.flush(context.WithoutCancel(ctx))
	stats := g.recorder.Stats()
	g.log.InfoContext(ctx, "stopped", slog.Uint64("records", stats.Made),
		slog.Uint64("records_lost", stats.Lost()), slog.Uint64("panics", g.panics()))
	return nil
}

func (g *gateway) reloadOn(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			g.reload()
		}
	}
}

func (g *gateway) closeListeners() {
	for _, l := range g.listeners {
		_ = l.Close()
	}
	for _, u := range g.datagrams {
		_ = u.Close()
	}
}

// flush ends records and telemetry, the last things of all: each has its time,
// so that a sink that is dead takes nothing from the spans.
func (g *gateway) flush(ctx context.Context) {
	g.flushRecords(ctx)
	if g.telemetry == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := g.telemetry.Shutdown(ctx); err != nil {
		g.log.ErrorContext(ctx, "telemetry was still waiting to be exported", slog.Any("error", err))
	}
}

func (g *gateway) flushRecords(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if g.recorder != nil {
		if err := g.recorder.Close(ctx); err != nil {
			g.log.ErrorContext(ctx, "records were still waiting to be written", slog.Any("error", err))
			return // somebody may be writing to a file, for ever
		}
	}
	for _, f := range g.recordFiles {
		if err := f.Close(); err != nil {
			g.log.ErrorContext(ctx, "closing a record file", slog.Any("error", err))
		}
	}
}
