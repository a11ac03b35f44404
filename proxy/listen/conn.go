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

// notMapped is the detail for a caller whose address is not in the address map.
const notMapped = "no identity for this address"

// Caller describes the client of a connection, or the sender of a datagram.
type Caller struct {
	ID    spiffeid.ID // zero unless Reason is NoReason
	Proof allowlist.Proof
	// Reason says why there is no identity. Detail is its detail for the caller.
	Reason allowlist.Reason
	Detail string
	// NotAfter is when the identity expires; zero if it does not.
	NotAfter time.Time
	// Addr is the address that the caller connected from; zero on a unix socket.
	Addr  netip.AddrPort
	Realm string
	// Busy says that there is no slot for another connection of the caller, and that
	// its requests must be refused as busy. Crowded says that the caller's own share is
	// used up.
	Busy, Crowded bool
	// Limited says that the caller's address has more connections open than it may.
	Limited bool
	// Excess says that the caller presented more certificates, or larger ones, than
	// the gateway reads. Its connection must close after the first
	// answer.
	Excess bool

	mapped bool // says that the listener identifies callers by their address alone
}

// Holder returns the holder of the caller's budgets and shares, also if the caller has
// no identity.
func (c *Caller) Holder() allowlist.Holder {
	if c.mapped {
		return allowlist.HolderOf(c.ID, allowlist.ProofSourceMap)
	}
	return allowlist.HolderOf(c.ID, c.Proof)
}

// Conn is a connection with its caller, after the handshake.
type Conn struct {
	net.Conn // *tls.Conn over *tunnel.Conn, or *tunnel.Conn
	Use

	Caller   Caller
	Listener string // name of the listener
	// AcceptTrace is Config.AcceptTrace of the listener.
	AcceptTrace bool
	// Certificates is the chain that led to an authority when the caller was
	// identified, the leaf first; nil if the caller was not identified by certificates.
	Certificates []*x509.Certificate
	// Continue, if not nil, is called after the handler has returned and before the
	// connection closes. A handler sets it to run something that lasts long, on a stack
	// that the handler's frames have left.
	Continue func()

	raw               *tunnel.Conn // the accepted connection
	parent            *Listener    // the listener that accepted the connection
	peer              string       // the user at the other end of a unix socket; "" if unknown
	slot              limit.Slot
	source            *limit.Source                      // nil until the connection is admitted
	cancelPermitWait  atomic.Pointer[context.CancelFunc] // ends the wait for a permit for a long handshake; nil before it
	stopCloseOnCancel func() bool                        // stops the AfterFunc that closes the connection when Serve's context ends; nil before it is set
	verifier          *identity.Verifier                 // nil without TLS
	generation        uint64                             // generation of the trust bundles that the caller was identified with
}

// Verified is a connection with its caller as verified at one moment.
type Verified struct {
	*Conn

	Caller       Caller
	Certificates []*x509.Certificate
}

// VerifiedOf returns a connection with its caller as last verified. It must not be called
// while Renew is called.
func VerifiedOf(c *Conn) Verified { return Verified{c, c.Caller, c.Certificates} }

// Renew identifies the caller again if the trust bundles have changed since it was
// identified: neither a later request on the connection nor a running one may rely on
// an authority that has been removed.
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
	c.assignSlot() // if no slot is free for the new caller, the connection keeps its present one
}

// identify identifies the caller with ask. Of the presented certificates it keeps the
// verified chain only; crypto/tls keeps the rest.
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

// Cut closes the connection at once. Over TLS it sends no close_notify, which might
// wait for a peer that does not read.
func (c *Conn) Cut() { _ = c.belowTLS().Close() }

// Abort closes the connection with a reset, and over TLS without a close_notify, so
// that the peer does not take it for a proper end. Sent data may be lost.
func (c *Conn) Abort() {
	raw := c.belowTLS()
	bare := raw
	if wrapped, ok := raw.(*tunnel.Conn); ok {
		bare = wrapped.Conn
	}
	if tcp, ok := bare.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // if it fails, the end looks proper
	}
	_ = raw.Close()
}

// belowTLS returns the connection below TLS, or the connection itself without TLS.
func (c *Conn) belowTLS() net.Conn {
	if secure, ok := c.Conn.(*tls.Conn); ok {
		return secure.NetConn()
	}
	return c.Conn
}

// assignIdentity gives a caller on a listener without TLS the identity that fixed
// returns, or the one that mapped returns for its address. Exactly one of the two is not
// nil.
func (c *Caller) assignIdentity(fixed func() spiffeid.ID, mapped func(netip.Addr) (spiffeid.ID, bool)) {
	if fixed != nil {
		c.ID, c.Proof = fixed(), allowlist.ProofListener
		return
	}
	c.mapped = true
	id, ok := mapped(c.Addr.Addr())
	if !ok {
		c.Reason, c.Detail = allowlist.IdentityMissing, notMapped
		return
	}
	c.ID, c.Proof = id, allowlist.ProofSourceMap
}

// identify sets the fields of the caller from a verified certificate, or from the
// reason why verification failed.
func (c *Caller) identify(peer identity.Peer) {
	*c = Caller{
		Addr: c.Addr, Realm: c.Realm, Busy: c.Busy, Crowded: c.Crowded, Limited: c.Limited, Excess: peer.Excess, Detail: peer.Detail,
	}
	switch peer.Cause {
	case identity.Verified:
		c.ID, c.Proof, c.NotAfter = peer.ID, allowlist.ProofX509SVID, peer.NotAfter
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

// clientAddr returns the address that a connection comes from; zero on a unix socket.
func clientAddr(conn net.Conn) netip.AddrPort {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
