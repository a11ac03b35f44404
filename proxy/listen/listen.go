// Package listen accepts connections and identifies their callers: it passes connections
// that are ready to be read, each with a [Caller], to the function that serves the door.
// For datagrams it passes the socket, and returns a Caller for the address of each
// sender.
//
// A TLS listener asks for a client certificate but does not require one: a caller
// without an accepted identity is passed on, too, and gets its answer over HTTP or DNS. The
// package makes no decisions, and reads nothing after the handshake.
package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// DefaultHandshakeTimeout is used for a zero Config.HandshakeTimeout.
const DefaultHandshakeTimeout = 10 * time.Second

// DefaultSocketMode is the permissions of a unix socket: owner only.
const DefaultSocketMode fs.FileMode = 0o600

// Config describes a listener. Exactly one of TLS (with Verifier), Fixed and Mapped is
// set; it identifies the callers.
type Config struct {
	Name string
	// Address is HOST:PORT, or unix: and a path.
	Address string
	// SocketMode is the permissions of a unix socket; zero means DefaultSocketMode.
	SocketMode fs.FileMode
	// TLS, if not nil, is the configuration for TLS on every connection; see
	// identity.ServerConfig.
	TLS *tls.Config
	// Verifier identifies a TLS client.
	Verifier *identity.Verifier
	// Realm names the trust domain in a response with status 407.
	Realm string
	// Fixed returns the identity of every caller of a listener without TLS. It is
	// called for each connection.
	Fixed func() spiffeid.ID
	// Mapped returns the identity of an address, on a listener without TLS, or false if
	// the address has none.
	Mapped func(netip.Addr) (spiffeid.ID, bool)
	// Proxies are the peers whose connections must begin with a PROXY protocol header,
	// version 1 or 2, which gives the caller's address. Such a header from any other
	// peer is read as data, and is invalid.
	Proxies []netip.Prefix
	// HandshakeTimeout bounds the TLS handshake, and the PROXY protocol header before
	// it; zero means the default.
	HandshakeTimeout time.Duration
	// Slots bounds the connections of all listeners that share it, and divides them
	// among callers. Required.
	Slots *limit.Slots
	// Descriptors is the count from which each connection takes one while it is open;
	// nil means no limit. A connection that finds none is closed.
	Descriptors *limit.Descriptors
	// Shed, if not nil, is called for every connection that is closed for want of a slot
	// or a descriptor, except those that only waited for their last answer to be read.
	// It is called from any goroutine and must not block.
	Shed func(limit.Cause)
	// Sources bounds what each source address may use on all listeners that share it;
	// nil means the defaults, for this listener alone.
	Sources *limit.Sources
	// Permits bounds the long handshakes; nil means the default, for this listener
	// alone.
	Permits *limit.Permits
	// Refused, if not nil, is called for connections that are closed without an answer:
	// their source is over a budget (connections, handshakes, certificates that do not
	// verify), there is no permit for a long handshake, or the PROXY protocol header is
	// invalid.
	Refused func(ctx context.Context, client netip.AddrPort, why allowlist.Reason, detail string)
	// HandshakeFailed is called for handshakes that fail inside the TLS library, after
	// which no answer is possible. io.EOF means that the connection ended, by either
	// end, before the client had sent anything. Required with TLS.
	HandshakeFailed func(ctx context.Context, client netip.AddrPort, err error)
	// Handshaken, if not nil, is called for every completed handshake when the first
	// request follows it (Conn.MarkUsed), with the reason why there is no identity, or
	// NoReason.
	Handshaken func(allowlist.Reason)
	// Unused, if not nil, is called for every other completed handshake, such as that of
	// a health check, when its connection has ended, with the reason why it gave no
	// identity. It is also called for a handshake whose client left before it had shown
	// a certificate.
	Unused func(ctx context.Context, client netip.AddrPort, why allowlist.Reason, detail string)
	// AcceptTrace makes the traceparent of a caller the parent of the gateway's span;
	// it is a link otherwise.
	AcceptTrace bool
	// Panicked is called for a panic in the handshake or in the function that Serve
	// calls. A panic ends its connection only. If Panicked is nil, Log gets the panic.
	Panicked func(ctx context.Context, cause any, stack []byte)
	// Log gets the errors of accepting, which no caller can be told. Required.
	Log *slog.Logger
}

// Listener accepts the connections of one address.
type Listener struct {
	cfg Config
	net net.Listener
}

// Listen opens a listener; Serve serves it. The error is one line that says what to do.
func Listen(ctx context.Context, cfg Config) (*Listener, error) {
	switch {
	case cfg.Slots == nil || cfg.Log == nil:
		return nil, fmt.Errorf("listener %s: slots and a log are required", cfg.Name)
	case cfg.TLS != nil && (cfg.Verifier == nil || cfg.HandshakeFailed == nil):
		return nil, fmt.Errorf("listener %s: TLS needs a verifier and HandshakeFailed", cfg.Name)
	case count(cfg.TLS != nil, cfg.Fixed != nil, cfg.Mapped != nil) != 1:
		return nil, fmt.Errorf("listener %s: either TLS, a fixed identity or a map of addresses is required", cfg.Name)
	}
	if cfg.HandshakeTimeout <= 0 {
		cfg.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if cfg.SocketMode == 0 {
		cfg.SocketMode = DefaultSocketMode
	}
	if cfg.Sources == nil {
		cfg.Sources = limit.NewSources(limit.Config{})
	}
	if cfg.Permits == nil {
		cfg.Permits = limit.NewPermits(0)
	}
	if cfg.Shed == nil {
		cfg.Shed = func(limit.Cause) {}
	}
	if cfg.Refused == nil {
		cfg.Refused = func(context.Context, netip.AddrPort, allowlist.Reason, string) {}
	}
	if cfg.Unused == nil {
		cfg.Unused = func(context.Context, netip.AddrPort, allowlist.Reason, string) {}
	}
	inner, err := open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, err)
	}
	return &Listener{cfg: cfg, net: inner}, nil
}

func count(conditions ...bool) int {
	n := 0
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}

// Addr returns the address of the listener, with the actual port if port 0 was
// configured.
func (l *Listener) Addr() net.Addr { return l.net.Addr() }

// Name returns the name of the listener.
func (l *Listener) Name() string { return l.cfg.Name }

// Close stops accepting. Serve then returns when its connections have ended.
func (l *Listener) Close() error { return l.net.Close() }

// Serve accepts connections until Close. A connection that finds a slot and a descriptor
// (enter) has a goroutine of its own, in which it is admitted and its TLS handshake is
// made; then handle is called. When handle has returned, Serve calls Conn.Continue, if it
// is set, and closes the connection. Serve returns when all connections have ended. The
// end of ctx does not stop accepting, but closes every connection that is open.
func (l *Listener) Serve(ctx context.Context, handle func(context.Context, *Conn)) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for failed := (failing{}); ; {
		conn, err := l.net.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			if err = l.pause(ctx, &failed, err); err != nil {
				return err
			}
			continue
		}
		c := l.wrap(conn)
		if !l.enter(ctx, c) {
			_ = conn.Close()
			continue
		}
		handlers.Go(func() {
			defer l.end(ctx, c)
			l.serve(ctx, c, handle)
			if c.Continue != nil {
				c.Continue()
			}
		})
	}
}

// serve admits a connection, makes its TLS handshake and calls handle. It returns early if
// the connection is refused, or if its handshake fails.
func (l *Listener) serve(ctx context.Context, conn *Conn, handle func(context.Context, *Conn)) {
	raw := conn.raw
	conn.stopCloseOnCancel = context.AfterFunc(ctx, func() { _ = raw.Close() })
	if l.admit(ctx, conn) && (l.cfg.TLS == nil || l.shakeHands(ctx, conn)) {
		handle(ctx, conn)
	}
}

// end gives back what a connection has taken, and handles a panic of its goroutine.
func (l *Listener) end(ctx context.Context, conn *Conn) {
	l.contain(ctx, recover())
	defer func() { l.contain(ctx, recover()) }() // for a panic in the functions below
	defer conn.slot.Leave()
	defer l.cfg.Descriptors.Give(1)
	conn.source.Close()
	if conn.stopCloseOnCancel != nil {
		conn.stopCloseOnCancel()
	}
	_ = conn.Close()
	if conn.handshakeDone && !conn.Used() {
		l.cfg.Unused(ctx, conn.Caller.Addr, conn.reason, conn.detail)
	}
}

// wrap returns the Conn for an accepted connection.
func (l *Listener) wrap(raw net.Conn) *Conn {
	wrapped := tunnel.Wrap(raw) // below TLS, so that an idle tunnel keeps no buffer
	return &Conn{
		Conn:     wrapped,
		Caller:   Caller{Addr: clientAddr(raw), Realm: l.cfg.Realm},
		Listener: l.cfg.Name, AcceptTrace: l.cfg.AcceptTrace,
		raw: wrapped, parent: l,
	}
}

// admit finds the caller's address, and reports whether its source may have this
// connection and, over TLS, another handshake.
func (l *Listener) admit(ctx context.Context, conn *Conn) bool {
	caller := &conn.Caller
	if l.behindProxy(caller.Addr.Addr()) {
		addr, err := l.readProxyHeader(conn)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed): // the peer sent nothing, as a port check does, or the connection was closed here
			return false
		case err != nil:
			l.cfg.Refused(ctx, caller.Addr, allowlist.MalformedHeader, err.Error())
			return false
		case addr.IsValid():
			caller.Addr = addr
		}
		if !conn.assignProxied() {
			return false
		}
	}
	var standing limit.Standing
	conn.source, standing = l.cfg.Sources.Open(caller.Addr.Addr())
	if standing == limit.Refused {
		l.cfg.Refused(ctx, caller.Addr, allowlist.RateLimited, limit.KeyConnectionsPerSource.WithDetail(tooManyOpen))
		return false
	}
	caller.Limited = standing == limit.Over
	if l.cfg.TLS != nil && !conn.source.Handshake() {
		l.cfg.Refused(ctx, caller.Addr, allowlist.RateLimited, limit.KeyHandshakesPerSource.WithDetail("too many handshakes from this address"))
		return false
	}
	return true
}

// behindProxy reports whether a peer is a load balancer, whose connections begin with a
// PROXY protocol header.
func (l *Listener) behindProxy(peer netip.Addr) bool {
	peer = peer.WithZone("") // the prefixes have no zone
	return slices.ContainsFunc(l.cfg.Proxies, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// readProxyHeader reads the PROXY protocol header, within HandshakeTimeout.
func (l *Listener) readProxyHeader(conn *Conn) (netip.AddrPort, error) {
	if err := conn.SetReadDeadline(time.Now().Add(l.cfg.HandshakeTimeout)); err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := readProxyHeader(conn)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addr, conn.SetReadDeadline(time.Time{})
}

// contain reports a panic, if cause is not nil.
func (l *Listener) contain(ctx context.Context, cause any) {
	if cause == nil {
		return
	}
	stack := debug.Stack()
	if l.cfg.Panicked != nil {
		l.cfg.Panicked(ctx, cause, stack)
		return
	}
	l.cfg.Log.LogAttrs(ctx, slog.LevelError, "panic in a connection", slog.String("listener", l.cfg.Name),
		slog.Any("cause", cause), slog.String("stack", string(stack)))
}
