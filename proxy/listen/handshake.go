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

// What a client may send before and after the end of its ClientHello, and how much
// of that without one of the permits for long handshakes: an SVID of an elliptic
// curve with an intermediate takes 2 KiB, one of RSA with two takes 6.
const (
	maxHandshake  = 16 << 10
	freeHandshake = 4 << 10
)

// shakeHands makes the handshake of a connection that was admitted, and finds out
// who the caller is. It reports whether there is a caller to be answered, with an
// identity or without; if not, somebody has been told.
func (l *Listener) shakeHands(ctx context.Context, conn *Conn) bool {
	secure := tls.Server(conn.Conn, l.cfg.TLS)
	displaced, err := l.handshake(ctx, secure, conn)
	switch {
	case err != nil && (displaced || errors.Is(err, errNoPermit)) && !conn.GaveWay():
		l.cfg.Refused(ctx, conn.Caller.Addr, allowlist.RateLimited, "too many long handshakes are under way, of this address or of all")
		return false
	case err != nil:
		conn.handshakeFailed(ctx, err)
		return false
	}
	conn.Conn, conn.verifier = secure, l.cfg.Verifier
	conn.generation = l.cfg.Verifier.Generation() // before asking: a change in between is asked about again
	within := true
	conn.identify(func(state tls.ConnectionState) (peer identity.Peer) {
		peer, within = l.cfg.Verifier.PeerWithin(state, conn.source)
		return peer
	})
	if !within {
		l.cfg.Refused(ctx, conn.Caller.Addr, allowlist.RateLimited, "too many handshakes from this address with certificates that do not verify")
		return false
	}
	conn.shaken, conn.why, conn.detail, conn.handshaken = true, conn.Caller.Reason, conn.Caller.Detail, l.cfg.Handshaken
	conn.place()
	return true
}

// handshake makes the handshake, and says whether its place was taken away. It is
// bounded in bytes, and by a deadline, which costs no goroutine, unlike a context.
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
		err = whoLeft(secure.HandshakeContext(context.WithoutCancel(ctx)), greeting.Said(), secure.ConnectionState())
	}
	if err != nil {
		return false, err
	}
	return false, secure.SetDeadline(time.Time{})
}

// errLeft is the error of a handshake that its client has ended, without a word why,
// before it showed a certificate.
var errLeft = errors.New("the client left within the handshake")

// whoLeft returns the error of a handshake: io.EOF if the connection ended before the
// client had said anything, and errLeft. What it has shown by then is in state.
func whoLeft(err error, said bool, state tls.ConnectionState) error {
	greeted := state.Version != 0 // the hello was read
	switch {
	case !said && isGone(err), !greeted && errors.Is(err, net.ErrClosed): // the latter by us
		return io.EOF
	case greeted && isGone(err) && len(state.PeerCertificates) == 0:
		return errLeft
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// isGone reports whether an error says that the other end has closed the connection, in
// order or with a reset.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNABORTED)
}

// longHandshake is a handshake that may need a place.
type longHandshake struct {
	listener *Listener
	conn     *Conn
	until    time.Time
	permit   *limit.Permit
}

var errNoPermit = errors.New("no permit for a long handshake")

// begin takes a place, in the time that is left for the handshake.
func (h *longHandshake) begin(ctx context.Context) error {
	raw := h.conn.raw
	waiting, cancel := context.WithDeadline(ctx, h.until)
	defer cancel()
	if h.conn.unwait.Store(&cancel); h.conn.GaveWay() { // before the connection could be told
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

// end gives the place back, and reports whether it had been taken away before.
func (h *longHandshake) end() (displaced bool) {
	return h.permit != nil && h.permit.Close()
}
