// Package proxy is the door for CONNECT and plain http:// requests: it reads a
// request head, decides, dials and relays or forwards, and refuses with a
// reason.
//
// Every head is read by the strict parser of package head; the destination is
// parsed once, and that value is what is decided, resolved, dialled and
// recorded. Each decision makes exactly one record.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/head"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// DefaultHeadTimeout is what a zero Config.HeadTimeout means.
const DefaultHeadTimeout = 10 * time.Second

// DefaultKeepAlive is what a zero Config.KeepAlive means.
const DefaultKeepAlive = time.Minute

// Config is what the door needs. Current, Registry, Dialer, Recorder and Log
// are required.
type Config struct {
	Current  *live.Current
	Registry *live.Registry
	Dialer   *dial.Dialer
	Recorder *audit.Recorder
	Log      *slog.Logger

	// HeadTimeout bounds the time for one request head; zero means
	// DefaultHeadTimeout.
	HeadTimeout time.Duration
	// KeepAlive is how long a connection may rest between two plain requests;
	// zero means DefaultKeepAlive.
	KeepAlive time.Duration
	// HeadLimit bounds a head in bytes; zero means head.DefaultLimit.
	HeadLimit int
	// Bound returns the names that an identity was told an address for, by the
	// DNS door; nil is none. See resolve.Resolver.
	Bound func(id spiffeid.ID, addr netip.Addr, now time.Time) []resolve.Binding
	// HelloTimeout bounds the time for the ClientHello that begins a tunnel;
	// zero means DefaultHelloTimeout.
	HelloTimeout time.Duration
	// Budgets bound what each identity may use; nil means the defaults.
	Budgets *limit.Budgets
	// Disclosure is how much a refused caller is told.
	Disclosure refusal.Disclosure
	// Tunnel bounds every tunnel; its Progress is set by the proxy.
	Tunnel tunnel.Config
	// Forward says how plain requests are carried; Dial, Idle and Max are set
	// by the proxy, from Dialer and Tunnel.
	Forward forward.Config
}

// Proxy serves connections. It is safe for concurrent use.
type Proxy struct {
	cfg       Config
	forwarder *forward.Forwarder
	draining  atomic.Bool
	panics    atomic.Uint64
}

// New returns a proxy.
func New(cfg Config) (*Proxy, error) {
	if cfg.Current == nil || cfg.Registry == nil || cfg.Dialer == nil || cfg.Recorder == nil || cfg.Log == nil {
		return nil, errors.New("proxy: state, registry, dialer, recorder and log are required")
	}
	if cfg.HeadTimeout <= 0 {
		cfg.HeadTimeout = DefaultHeadTimeout
	}
	if cfg.HelloTimeout <= 0 {
		cfg.HelloTimeout = DefaultHelloTimeout
	}
	if cfg.Budgets == nil {
		cfg.Budgets = limit.NewBudgets(limit.Config{})
	}
	if cfg.KeepAlive <= 0 {
		cfg.KeepAlive = DefaultKeepAlive
	}
	cfg.Forward.Dial, cfg.Forward.Idle, cfg.Forward.Max = cfg.Dialer.Dial, cfg.Tunnel.Idle, cfg.Tunnel.Max
	forwarder, err := forward.New(cfg.Forward)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return &Proxy{cfg: cfg, forwarder: forwarder}, nil
}

// Drain makes the proxy answer every further request with 503 draining.
// Tunnels that are open go on.
func (p *Proxy) Drain() {
	p.draining.Store(true)
	p.forwarder.CloseIdle()
}

// StateChanged closes the connections to origins that rest between two plain
// requests. Call it after a state came into force: another one let them be made.
func (p *Proxy) StateChanged() { p.forwarder.CloseIdle() }

// Panicked counts and logs a panic that ended a connection.
func (p *Proxy) Panicked(ctx context.Context, cause any, stack []byte) {
	p.panics.Add(1)
	p.cfg.Log.LogAttrs(ctx, slog.LevelError, "panic in a connection",
		slog.Any("cause", cause), slog.String("stack", string(stack)))
}

// Panics returns how many connections ended in a panic.
func (p *Proxy) Panics() uint64 { return p.panics.Load() }

// Serve answers the requests of one connection until it ends or a tunnel opens,
// which it leaves in conn.Rest. A panic ends this connection only.
func (p *Proxy) Serve(ctx context.Context, conn *listen.Conn) {
	reader := head.NewReader(conn, p.cfg.HeadLimit)
	defer reader.Release()
	x := &exchange{proxy: p, conn: conn, reader: reader}
	defer x.logins.Close()
	defer func() {
		if cause := recover(); cause != nil {
			p.Panicked(ctx, cause, debug.Stack())
			x.abandon(ctx)
		}
	}()
	for x.next(ctx) {
	}
}
