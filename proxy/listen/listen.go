// Package listen accepts connections and says who is at the other end: it
// gives every door a connection that is ready to be read and a [Caller]. For
// datagrams it gives a door the socket, and a Caller for each sender.
//
// A TLS listener asks for a client certificate and never demands one: a caller
// without an accepted identity gets through to the door, which answers it over
// HTTP. The package does not decide, and does not read past the handshake.
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

// DefaultHandshakeTimeout is what a zero Config.HandshakeTimeout means.
const DefaultHandshakeTimeout = 10 * time.Second

// DefaultSocketMode is the permissions of a unix socket: its owner only.
const DefaultSocketMode fs.FileMode = 0o600

// Config describes one listener. Exactly one of TLS (with Verifier), Fixed and
// Mapped says who the callers are.
type Config struct {
	Name string
	// Address is HOST:PORT, or unix: and a path.
	Address string
	// SocketMode of a unix socket; zero means DefaultSocketMode.
	SocketMode fs.FileMode
	// TLS, if not nil, is spoken on every connection; see identity.ServerConfig.
	TLS *tls.Config
	// Verifier tells the identity of a TLS client.
	Verifier *identity.Verifier
	// Realm names the trust domain in a 407.
	Realm string
	// Fixed returns the identity of every caller of a listener without TLS; it
	// is asked once for each connection.
	Fixed func() spiffeid.ID
	// Mapped returns the identity that an address stands for, on a listener
	// without TLS; false if it stands for none.
	Mapped func(netip.Addr) (spiffeid.ID, bool)
	// Proxies are the peers whose connections must begin with a PROXY protocol
	// header, version 1 or 2, which says where the caller is. From any other
	// peer such a header is what it seems: garbage.
	Proxies []netip.Prefix
	// HandshakeTimeout bounds the TLS handshake, and before it the PROXY
	// protocol header; zero means the default.
	HandshakeTimeout time.Duration
	// Slots bound the connections of all listeners that share them, and divide them
	// among callers. Required.
	Slots *limit.Slots
	// Descriptors are where each connection takes one, for as long as it is open;
	// nil is any number. A connection that finds none is closed.
	Descriptors *limit.Descriptors
	// Cut is told of every connection that is closed for want of a slot or a
	// descriptor, unless it only waited for its last answer to be read; nil is
	// nobody. It is called from any goroutine and must not wait.
	Cut func(limit.Cause)
	// Sources bounds what each source address may use, over all listeners that
	// share it; nil means the defaults, for this listener alone.
	Sources *limit.Sources
	// Permits bounds the handshakes that are long; nil means the default, for this
	// listener alone.
	Permits *limit.Permits
	// Refused is told of connections that are closed without an answer: their
	// source is over a budget (connections, handshakes, certificates that do not
	// verify), there is no place for a long handshake, or the PROXY protocol header
	// is bad. nil is nobody.
	Refused func(ctx context.Context, client netip.AddrPort, why allowlist.Reason, detail string)
	// HandshakeFailed is told of handshakes that die inside the TLS library,
	// after which nothing can be answered. io.EOF is a connection that ended,
	// by either end, before the client had said anything. Required with TLS.
	HandshakeFailed func(ctx context.Context, client netip.AddrPort, err error)
	// Handshaken is told of every handshake that did not die once something is asked
	// (Conn.Ask), and why there is no identity if there is none; nil is nobody.
	Handshaken func(allowlist.Reason)
	// Unused is told of every other handshake when its connection has ended, as those
	// of health checks do, and why it gave no identity; also of one that the client
	// left before it had shown a certificate. nil is nobody.
	Unused func(ctx context.Context, client netip.AddrPort, why allowlist.Reason, detail string)
	// AcceptTrace makes the traces of this listener's callers our own: their
	// traceparent is a parent and no link.
	AcceptTrace bool
	// Panicked is told of a panic in the handshake or in what Serve calls; it
	// ends that connection only. nil means that it goes to Log.
	Panicked func(ctx context.Context, cause any, stack []byte)
	// Log is told what no caller can be: that accepting fails. Required.
	Log *slog.Logger
}

// Listener accepts connections of one address.
type Listener struct {
	cfg Config
	net net.Listener
}

// Listen opens the listener; Serve serves it. The error is one line that says
// what to do.
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
	if cfg.Cut == nil {
		cfg.Cut = func(limit.Cause) {}
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

// Addr returns the address that the listener has, with the port it was given
// if it asked for port 0.
func (l *Listener) Addr() net.Addr { return l.net.Addr() }

// Name returns the name of the listener.
func (l *Listener) Name() string { return l.cfg.Name }

// Close stops accepting; Serve then returns once its connections have ended.
func (l *Listener) Close() error { return l.net.Close() }

// Serve accepts until Close and calls handle for every connection that has a
// caller, each in a goroutine of its own; it closes the connection when handle
// has returned, and then Conn.Rest. It returns when the last of them has. The
// end of ctx does not stop accepting; it cuts every connection that is still
// open.
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
			if c.Rest != nil {
				c.Rest()
			}
		})
	}
}

func (l *Listener) serve(ctx context.Context, conn *Conn, handle func(context.Context, *Conn)) {
	raw := conn.raw
	conn.uncut = context.AfterFunc(ctx, func() { _ = raw.Close() })
	if l.admit(ctx, conn) && (l.cfg.TLS == nil || l.shakeHands(ctx, conn)) {
		handle(ctx, conn)
	}
}

// end gives back what a connection held, and keeps a panic inside it.
func (l *Listener) end(ctx context.Context, conn *Conn) {
	l.contain(ctx, recover())
	defer func() { l.contain(ctx, recover()) }() // a panic in what follows
	defer conn.slot.Leave()
	defer l.cfg.Descriptors.Give(1)
	conn.source.Close()
	if conn.uncut != nil {
		conn.uncut()
	}
	_ = conn.Close()
	if conn.shaken && !conn.Asked() {
		l.cfg.Unused(ctx, conn.Caller.Addr, conn.why, conn.detail)
	}
}

// wrap makes the connection of one that was accepted.
func (l *Listener) wrap(raw net.Conn) *Conn {
	wrapped := tunnel.Wrap(raw) // below TLS, so that an idle tunnel holds no buffer
	return &Conn{
		Conn:     wrapped,
		Caller:   Caller{Addr: clientAddr(raw), Realm: l.cfg.Realm},
		Listener: l.cfg.Name, AcceptTrace: l.cfg.AcceptTrace,
		raw: wrapped, home: l,
	}
}

// admit finds out where the caller is and whether its address may have this
// connection.
func (l *Listener) admit(ctx context.Context, conn *Conn) bool {
	caller := &conn.Caller
	if l.behindProxy(caller.Addr.Addr()) {
		addr, err := l.proxied(conn)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed): // a look at the port, or the end of ours
			return false
		case err != nil:
			l.cfg.Refused(ctx, caller.Addr, allowlist.MalformedHeader, err.Error())
			return false
		case addr.IsValid():
			caller.Addr = addr
		}
		if !conn.placeProxied() {
			return false
		}
	}
	var standing limit.Standing
	conn.source, standing = l.cfg.Sources.Open(caller.Addr.Addr())
	if standing == limit.Refused {
		l.cfg.Refused(ctx, caller.Addr, allowlist.RateLimited, limit.KeyConnectionsPerSource.Says(manyOfSource))
		return false
	}
	caller.Limited = standing == limit.Over
	if l.cfg.TLS != nil && !conn.source.Handshake() {
		l.cfg.Refused(ctx, caller.Addr, allowlist.RateLimited, limit.KeyHandshakesPerSource.Says("too many handshakes from this address"))
		return false
	}
	return true
}

func (l *Listener) behindProxy(peer netip.Addr) bool {
	peer = peer.WithZone("") // no range has one
	return slices.ContainsFunc(l.cfg.Proxies, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// proxied reads the header in the time that there is for it.
func (l *Listener) proxied(conn *Conn) (netip.AddrPort, error) {
	if err := conn.SetReadDeadline(time.Now().Add(l.cfg.HandshakeTimeout)); err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := proxied(conn)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addr, conn.SetReadDeadline(time.Time{})
}

// contain tells of a panic, if there was one.
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
