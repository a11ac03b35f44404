package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// A client may send maxHandshake bytes up to the end of its ClientHello, and as many after
// it. Of the latter it may send freeHandshake without a permit for a long handshake. An
// SVID with an elliptic curve and one intermediate takes 2 KiB, an RSA SVID with two
// intermediates 6 KiB.
const (
	maxHandshake  = 16 << 10
	freeHandshake = 4 << 10
)

// shakeHands makes the TLS handshake of an admitted connection and identifies the
// caller. It reports whether the caller, with or without an identity, can be answered.
// If not, it has reported that to a function of the Config, unless the loss of the slot
// was reported before.
func (l *Listener) shakeHands(ctx context.Context, conn *Conn) bool {
	secure := tls.Server(conn.Conn, l.cfg.TLS)
	displaced, err := l.handshake(ctx, secure, conn)
	switch {
	case err != nil && (displaced || errors.Is(err, errNoPermit)) && !conn.LostSlot():
		l.cfg.Refused(ctx, conn.Caller.Addr, allowlist.RateLimited, "too many long handshakes are under way, of this address or of all")
		return false
	case err != nil:
		conn.handshakeFailed(ctx, err)
		return false
	}
	conn.Conn, conn.verifier = secure, l.cfg.Verifier
	conn.generation = l.cfg.Verifier.Generation() // read before the verification: if the bundles change in between, Renew identifies the caller again
	within := true
	conn.identify(func(state tls.ConnectionState) (peer identity.Peer) {
		peer, within = l.cfg.Verifier.PeerWithin(state, conn.source)
		return peer
	})
	if !within {
		l.cfg.Refused(ctx, conn.Caller.Addr, allowlist.RateLimited, "too many handshakes from this address with certificates that do not verify")
		return false
	}
	conn.handshakeDone, conn.reason, conn.detail, conn.handshaken = true, conn.Caller.Reason, conn.Caller.Detail, l.cfg.Handshaken
	conn.assignSlot()
	return true
}

// handshake makes the TLS handshake, and reports whether its permit was taken away. The
// handshake is bounded in bytes, and in time by a deadline, which unlike a context
// costs no goroutine.
func (l *Listener) handshake(ctx context.Context, secure *tls.Conn, conn *Conn) (displaced bool, err error) {
	long := &longHandshake{listener: l, conn: conn, until: time.Now().Add(l.cfg.HandshakeTimeout)}
	defer func() { displaced = long.end() }()
	err = secure.SetDeadline(long.until)
	if err == nil {
		greeting := &tunnel.Greeting{
			Free: freeHandshake, Most: maxHandshake,
			Enter: func() error { return long.begin(ctx) },
		}
		conn.raw.Greet(greeting)
		defer conn.raw.Greet(nil)
		err = classifyHandshakeError(secure.HandshakeContext(context.WithoutCancel(ctx)), greeting.HasRead(), secure.ConnectionState())
	}
	if err != nil {
		return false, err
	}
	return false, secure.SetDeadline(time.Time{})
}

// errLeft is the error of a handshake whose client closed the connection, without an
// alert, before it had shown a certificate.
var errLeft = errors.New("the client left within the handshake")

// classifyHandshakeError maps the error of a handshake: to io.EOF if the connection ended
// before the client had sent anything (said is false) or was closed by this process
// before the ClientHello was read, and to errLeft if the client left. state is the state
// of the handshake when it ended.
func classifyHandshakeError(err error, said bool, state tls.ConnectionState) error {
	greeted := state.Version != 0 // the ClientHello was read
	switch {
	case !said && isGone(err), !greeted && errors.Is(err, net.ErrClosed): // the latter if this process closed the connection
		return io.EOF
	case greeted && isGone(err) && len(state.PeerCertificates) == 0:
		return errLeft
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// isGone reports whether an error means that the peer has closed the connection,
// properly or with a reset.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNABORTED)
}

// longHandshake is a handshake that may need a permit.
type longHandshake struct {
	listener *Listener
	conn     *Conn
	until    time.Time
	permit   *limit.Permit
}

var errNoPermit = errors.New("no permit for a long handshake")

// begin takes a permit, in the time that is left for the handshake.
func (h *longHandshake) begin(ctx context.Context) error {
	raw := h.conn.raw
	waiting, cancel := context.WithDeadline(ctx, h.until)
	defer cancel()
	if h.conn.cancelPermitWait.Store(&cancel); h.conn.LostSlot() { // the slot was lost before loseSlot could find cancelPermitWait
		cancel()
	}
	var err error
	h.permit, err = h.listener.cfg.Permits.Take(waiting, h.conn.source, func() { _ = raw.Close() })
	if ctx.Err() != nil {
		return net.ErrClosed // the end of Serve's context closes every connection
	}
	if err != nil {
		return errNoPermit
	}
	return nil
}

// end gives the permit back, and reports whether it had been taken away.
func (h *longHandshake) end() (displaced bool) {
	return h.permit != nil && h.permit.Close()
}
