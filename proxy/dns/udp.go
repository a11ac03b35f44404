package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/proxy/listen"
)

// ServeUDP answers queries until the listener is closed, and returns when the last of
// them is answered. The end of ctx does not stop reading, but ends look-ups that wait
// for a server.
func (s *Server) ServeUDP(ctx context.Context, u *listen.UDP) error {
	return u.Serve(func(socket *net.UDPConn) { (&udpLoop{server: s, udp: u, socket: socket}).run(ctx) })
}

// udpLoop reads the socket of a listener, which other loops may read, too.
type udpLoop struct {
	server  *Server
	udp     *listen.UDP
	socket  *net.UDPConn
	lookups sync.WaitGroup
}

func (l *udpLoop) run(ctx context.Context) {
	defer l.lookups.Wait()
	var buf [keptQuery]byte
	for {
		n, peer, err := l.socket.ReadFromUDPAddrPort(buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // the listener was closed
			return
		case err != nil: // such as a lack of memory; errors of earlier answers do not show here
			l.server.cfg.Log.LogAttrs(ctx, slog.LevelError, "reading a datagram",
				slog.String("listener", l.udp.Name()), slog.Any("error", err))
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			continue
		}
		l.serve(ctx, buf[:n], peer)
	}
}

func (l *udpLoop) serve(ctx context.Context, msg []byte, peer netip.AddrPort) {
	caller := l.udp.Caller(peer)
	x := l.server.getExchange(transport{listener: l.udp.Name(), wire: wireUDP}, l, &caller)
	x.peer = peer
	l.server.handle(ctx, &l.lookups, x, msg)
}

// reply sends a datagram. The client is not informed if it cannot be reached.
func (l *udpLoop) reply(ctx context.Context, x *exchange) {
	var err error
	if !x.response.silent {
		_, err = l.socket.WriteToUDPAddrPort(x.response.buf, x.peer)
	}
	x.done(ctx, err)
}
