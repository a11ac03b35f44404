// Package proxy is the gateway's request, free of any wire: it decides what a
// front has read, dials, registers, confirms and records it, and relays or
// forwards, or refuses with a reason.
//
// The destination was parsed once, and that value is what is decided, resolved,
// dialled and recorded. Each decision makes exactly one record.
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
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Config is what the door needs. Current, Registry, Dialer, Recorder and Log
// are required.
type Config struct {
	Current  *live.Current
	Registry *live.Registry
	Dialer   *dial.Dialer
	Recorder *audit.Recorder
	Log      *slog.Logger

	// Front says how HTTP/1.x is read and written.
	Front front.Config
	// Bound returns the names that an identity was told an address for, by the
	// DNS door; nil is none. See resolve.Resolver.
	Bound func(id spiffeid.ID, addr netip.Addr, now time.Time) []resolve.Binding
	// HelloTimeout bounds the time for the ClientHello that begins a tunnel;
	// zero means DefaultHelloTimeout.
	HelloTimeout time.Duration
	// Budgets bound what each identity may use; nil means the defaults.
	Budgets *limit.Budgets
	// Tunnel bounds every tunnel; its Progress is set by the proxy.
	Tunnel tunnel.Config
	// Forward says how plain requests are carried; Dial, Idle and Max are set
	// by the proxy, from Dialer and Tunnel.
	Forward forward.Config
}

// Proxy serves connections. It is safe for concurrent use.
type Proxy struct {
	cfg       Config
	h1        *front.H1
	forwarder *forward.Forwarder
	draining  atomic.Bool
	panics    atomic.Uint64
}

// New returns a proxy.
func New(cfg Config) (*Proxy, error) {
	if cfg.Current == nil || cfg.Registry == nil || cfg.Dialer == nil || cfg.Recorder == nil || cfg.Log == nil {
		return nil, errors.New("proxy: state, registry, dialer, recorder and log are required")
	}
	if cfg.HelloTimeout <= 0 {
		cfg.HelloTimeout = DefaultHelloTimeout
	}
	if cfg.Budgets == nil {
		cfg.Budgets = limit.NewBudgets(limit.Config{})
	}
	cfg.Forward.Dial, cfg.Forward.Idle, cfg.Forward.Max = cfg.Dialer.Dial, cfg.Tunnel.Idle, cfg.Tunnel.Max
	forwarder, err := forward.New(cfg.Forward)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return &Proxy{cfg: cfg, h1: front.NewH1(cfg.Front), forwarder: forwarder}, nil
}

// BeginDrain makes every answer that would leave its connection open the last one
// of it, and ends connections that rest. Requests are served as before.
func (p *Proxy) BeginDrain() { p.h1.Drain() }

// Drain makes the proxy answer every further request with 503 draining, after what
// BeginDrain does. Tunnels that are open go on.
func (p *Proxy) Drain() {
	p.h1.Drain()
	p.draining.Store(true)
	p.forwarder.CloseIdle()
}

// EndDrain ends every connection on which no request has begun.
func (p *Proxy) EndDrain() { p.h1.Stop() }

// CloseIdle closes the connections to origins that rest between two plain requests.
// Call it after a state came into force, since another one let them be made, and when
// there are no descriptors.
func (p *Proxy) CloseIdle() { p.forwarder.CloseIdle() }

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
	s := &session{proxy: p, conn: conn, wire: audit.WireH1}
	defer s.logins.Close()
	defer func() {
		if cause := recover(); cause != nil {
			p.Panicked(ctx, cause, debug.Stack())
		}
	}()
	conn.Rest = p.h1.Serve(ctx, front.Conn{Conn: conn.Conn, Cut: conn.Cut, Abort: conn.Abort}, s)
	s.unasked(ctx)
}
