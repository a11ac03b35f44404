// Package proxy handles requests independently of their wire protocol. It decides each
// request that a front has read, registers it, dials, and checks the decision once more.
// It then relays a tunnel, forwards the request, or refuses it with a reason, and records
// the result.
//
// The destination is parsed once, and the parsed value is decided, resolved, dialled and
// recorded. Each decision makes exactly one record.
package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
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

// Config holds what a Proxy needs. Current, Registry, Dialer, Recorder and Log are
// required.
type Config struct {
	Current  *live.Current
	Registry *live.Registry
	Dialer   *dial.Dialer
	Recorder *audit.Recorder
	Log      *slog.Logger

	// Front says how requests are read and answers are written. The proxy sets Max from
	// Tunnel.
	Front front.Config
	// Query answers the requests that may contain a DNS query; required for ServeWithDoH.
	Query AnswerQuery
	// Bound returns the names for which the DNS door has answered an identity with an
	// address; nil means that there are none. See resolve.Resolver.
	Bound func(id spiffeid.ID, addr netip.Addr, now time.Time) []resolve.Binding
	// HelloTimeout is how long a client may take to send the ClientHello that begins
	// a tunnel; zero means DefaultHelloTimeout.
	HelloTimeout time.Duration
	// Budgets limits what each identity may use; nil means the default limits.
	Budgets *limit.Budgets
	// Tunnel configures every tunnel. The proxy sets Progress and Spend.
	Tunnel tunnel.Config
	// Forward says how plain requests are forwarded. The proxy sets Dial, Idle and
	// Max from Dialer and Tunnel.
	Forward forward.Config
}

// Proxy serves connections. It is safe for concurrent use.
type Proxy struct {
	cfg       Config
	h1        *front.H1
	socks5    *front.SOCKS5
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
	if cfg.Front.Max <= 0 {
		cfg.Front.Max = cmp.Or(cfg.Tunnel.Max, tunnel.DefaultMax)
	}
	return &Proxy{cfg: cfg, h1: front.NewH1(cfg.Front), socks5: front.NewSOCKS5(cfg.Front), forwarder: forwarder}, nil
}

// BeginDrain makes every answer from now on the last one of its connection, and ends idle
// connections within a second. Requests are served as before.
func (p *Proxy) BeginDrain() {
	p.h1.Drain()
	p.socks5.Drain()
}

// Drain does what BeginDrain does, and then makes the proxy answer every further request
// with 503 draining. Open tunnels go on.
func (p *Proxy) Drain() {
	p.BeginDrain()
	p.draining.Store(true)
	p.forwarder.CloseIdle()
}

// EndDrain ends every connection that waits for a request.
func (p *Proxy) EndDrain() {
	p.h1.Stop()
	p.socks5.Stop()
}

// CloseIdle closes the idle connections to origins. Call it after a new state has come into
// force, since an earlier state allowed them, and when descriptors are missing.
func (p *Proxy) CloseIdle() { p.forwarder.CloseIdle() }

// Panicked counts and logs a panic that ended a connection.
func (p *Proxy) Panicked(ctx context.Context, cause any, stack []byte) {
	p.panics.Add(1)
	p.cfg.Log.LogAttrs(ctx, slog.LevelError, "panic in a connection",
		slog.Any("cause", cause), slog.String("stack", string(stack)))
}

// Panics returns how many connections ended in a panic.
func (p *Proxy) Panics() uint64 { return p.panics.Load() }

// Serve answers the requests of one connection until it ends or a tunnel opens. It stores
// the function that relays the tunnel in conn.Continue, which listen.Listener calls after
// Serve has returned. A panic ends this connection only.
func (p *Proxy) Serve(ctx context.Context, conn *listen.Conn) { p.ServeWithDoH(ctx, conn, nil) }

// ServeWithDoH serves a connection as Serve does, and passes the requests that may contain
// a DNS query over HTTPS to Config.Query: those that name an authority for which
// isQueryAuthority returns true. With nil there are no such requests.
func (p *Proxy) ServeWithDoH(ctx context.Context, conn *listen.Conn, isQueryAuthority func(authority string) bool) {
	serve(ctx, &session{ctx: ctx, proxy: p, conn: conn}, p.h1, isQueryAuthority)
}

// ServeSOCKS5 serves a connection as Serve does, whose client speaks SOCKS5.
func (p *Proxy) ServeSOCKS5(ctx context.Context, conn *listen.Conn) {
	serve(ctx, &session{ctx: ctx, proxy: p, conn: conn, socks5: true}, p.socks5, nil)
}

// server is a front that serves connections.
type server interface {
	Serve(ctx context.Context, conn front.Conn, handler front.Handler) (run func())
}

// serve serves the connection of a session with a front.
func serve(ctx context.Context, s *session, by server, isQueryAuthority func(authority string) bool) {
	p, conn := s.proxy, s.conn
	defer s.logins.Close()
	defer func() {
		if cause := recover(); cause != nil {
			p.Panicked(ctx, cause, debug.Stack())
		}
	}()
	conn.Continue = by.Serve(ctx, front.Conn{
		Conn: conn.Conn, Cut: conn.Cut, Abort: conn.Abort, Broken: s.broken, IsQueryAuthority: isQueryAuthority,
		Panicked: func(cause any, stack []byte) { p.Panicked(ctx, cause, stack) },
	}, s)
	s.refuseSilent(ctx)
}

// broken records that a connection of HTTP/2 was ended for what its client has sent, once
// for all of it.
func (s *session) broken(flood bool, detail string) {
	reason := allowlist.MalformedHeader
	if flood {
		reason = allowlist.RateLimited
	}
	caller := s.verify().Caller
	s.proxy.cfg.Recorder.Event(audit.Record{
		Event: audit.EventHandshake, Listener: s.conn.Listener, Client: caller.Addr, Identity: caller.ID, Proof: caller.Proof,
		Wire: audit.WireH2, Reason: reason, Detail: detail,
	})
}
