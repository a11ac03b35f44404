package listen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// notMapped says why a caller has no identity whose address stands for none.
const notMapped = "no identity for this address"

// Caller is who is at the other end of a connection.
type Caller struct {
	ID     spiffeid.ID // zero unless Reason is NoReason
	Source allowlist.Source
	// Reason says why there is no identity, and Detail says it to the caller.
	Reason allowlist.Reason
	Detail string
	// NotAfter is when the identity expires; zero if it does not.
	NotAfter time.Time
	// Addr is where the caller connected from; zero on a unix socket.
	Addr  netip.AddrPort
	Realm string
	// Busy means that there is no slot for another connection of the caller, which
	// is to be told so; Crowded, that this is because its own share is used up.
	Busy, Crowded bool
	// Limited means that its address has more connections open than it may.
	Limited bool
	// Excess means that it presented more certificates, or more in one, than are
	// read: its connection must close with the first answer.
	Excess bool

	mapped bool // its address is all that could show an identity
}

// Holder returns for whom the budgets and shares of what the caller does are
// kept, also if it has no identity.
func (c *Caller) Holder() allowlist.Holder {
	if c.mapped {
		return allowlist.HolderOf(c.ID, allowlist.SourceMap)
	}
	return allowlist.HolderOf(c.ID, c.Source)
}

// Conn is a connection with its caller, after the handshake.
type Conn struct {
	net.Conn // *tls.Conn over *tunnel.Conn, or *tunnel.Conn
	Use

	Caller   Caller
	Listener string // its name
	// AcceptTrace is that of the listener's Config.
	AcceptTrace bool
	// Certificates are those of the caller that led to an authority when it was
	// identified, the leaf first; nil if it was not by certificates.
	Certificates []*x509.Certificate
	// Rest is what is left to do when the handler returns, nil if nothing is.
	// The handler may set it to something that lasts: it is called on a stack
	// that the frames of the handler have left, before the connection closes.
	Rest func()

	raw        *tunnel.Conn // what was accepted
	home       *Listener
	peer       string // the user at the other end of a unix socket; "" if it is not known
	slot       limit.Slot
	source     *limit.Source                      // nil until it was admitted
	unwait     atomic.Pointer[context.CancelFunc] // ends the wait for a place of a long handshake; nil at first
	uncut      func() bool                        // ends the wait for the end of Serve's context, which closes the connection; nil at first
	verifier   *identity.Verifier                 // nil without TLS
	generation uint64                             // of the trust that the caller was identified by
}

// Renew asks again who the caller is, if the trust in identities has changed
// since it was asked last: a request that follows on the connection, or was
// under way, must not rest on an authority that has gone.
func (c *Conn) Renew() {
	if c.verifier == nil {
		return
	}
	now := c.verifier.Generation()
	if now == c.generation {
		return
	}
	c.generation = now
	c.identify(c.verifier.Peer)
	c.place() // if there is no place elsewhere it keeps the one that it has
}

// identify asks who the caller is. What it presented in whole is kept by
// crypto/tls alone.
func (c *Conn) identify(ask func(tls.ConnectionState) identity.Peer) {
	secure, ok := c.Conn.(*tls.Conn)
	if !ok {
		return
	}
	state := secure.ConnectionState()
	peer := ask(state)
	c.Certificates = peer.Chain(state.PeerCertificates)
	c.Caller.identify(peer)
}

// Cut closes the connection at once: over TLS without a close_notify, which might
// wait for a peer that does not read.
func (c *Conn) Cut() { _ = c.below().Close() }

// Abort closes the connection with a reset, and over TLS without a close_notify,
// so that nobody takes that for a proper end. What was sent before may be lost.
func (c *Conn) Abort() {
	raw := c.below()
	bare := raw
	if wrapped, ok := raw.(*tunnel.Conn); ok {
		bare = wrapped.Conn
	}
	if tcp, ok := bare.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // at worst the end looks proper
	}
	_ = raw.Close()
}

// below returns what carries the connection: what is below TLS, if TLS is spoken.
func (c *Conn) below() net.Conn {
	if secure, ok := c.Conn.(*tls.Conn); ok {
		return secure.NetConn()
	}
	return c.Conn
}

// assume gives a caller that proves nothing the identity of its listener, or
// the one that its address stands for. Exactly one of the two is given.
func (c *Caller) assume(fixed func() spiffeid.ID, mapped func(netip.Addr) (spiffeid.ID, bool)) {
	if fixed != nil {
		c.ID, c.Source = fixed(), allowlist.SourceListener
		return
	}
	c.mapped = true
	id, ok := mapped(c.Addr.Addr())
	if !ok {
		c.Reason, c.Detail = allowlist.IdentityMissing, notMapped
		return
	}
	c.ID, c.Source = id, allowlist.SourceMap
}

// identify takes over what the verification of the certificate came to.
func (c *Caller) identify(peer identity.Peer) {
	*c = Caller{
		Addr: c.Addr, Realm: c.Realm, Busy: c.Busy, Crowded: c.Crowded, Limited: c.Limited, Excess: peer.Excess, Detail: peer.Detail,
	}
	switch peer.Cause {
	case identity.Verified:
		c.ID, c.Source, c.NotAfter = peer.ID, allowlist.SourceX509SVID, peer.NotAfter
	case identity.Missing:
		c.Reason = allowlist.IdentityMissing
	case identity.Expired:
		c.Reason = allowlist.IdentityExpired
	case identity.Untrusted:
		c.Reason = allowlist.IdentityUntrusted
	case identity.Invalid:
		c.Reason = allowlist.IdentityInvalid
	default:
		c.Reason = allowlist.IdentityInvalid
	}
}

func clientAddr(conn net.Conn) netip.AddrPort {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
