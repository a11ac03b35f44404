package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/proxy/listen"
)

// UDPConfig describes a listener for datagrams. Exactly one of Fixed and Mapped
// says who the callers are.
type UDPConfig struct {
	Name string
	// Address is IP:PORT, of one address: an answer has to come from where the
	// question went.
	Address netip.AddrPort
	// Fixed returns the identity of every caller.
	Fixed func() spiffeid.ID
	// Mapped returns the identity that an address stands for; false if it
	// stands for none.
	Mapped func(netip.Addr) (spiffeid.ID, bool)
	// Sockets is how many sockets share the address where the system can do
	// that, best one for each processor; zero means one.
	Sockets int
}

// UDP is a listener for datagrams.
type UDP struct {
	cfg     UDPConfig
	sockets []*net.UDPConn

	mu      sync.Mutex
	serving bool
	closed  bool
}

// ListenUDP opens the sockets; Server.ServeUDP serves them.
func ListenUDP(ctx context.Context, cfg UDPConfig) (*UDP, error) {
	switch {
	case (cfg.Fixed == nil) == (cfg.Mapped == nil):
		return nil, fmt.Errorf("listener %s: either a fixed identity or a map of addresses is required", cfg.Name)
	case !cfg.Address.IsValid() || cfg.Address.Addr().IsUnspecified():
		return nil, fmt.Errorf("listener %s: %s is no single address: answers would come from another one", cfg.Name, cfg.Address)
	}
	u := &UDP{cfg: cfg}
	if err := u.open(ctx); err != nil {
		_ = u.closeSockets()
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, explain(cfg.Address, err))
	}
	return u, nil
}

// open opens one socket for itself, so that the address is nobody else's, and
// then lets the others have it too.
func (u *UDP) open(ctx context.Context) error {
	first, err := listenUDP(ctx, net.ListenConfig{}, u.cfg.Address)
	if err != nil {
		return err
	}
	u.sockets = []*net.UDPConn{first}
	if u.cfg.Sockets <= 1 || !canShare {
		return nil
	}
	raw, err := first.SyscallConn()
	if err != nil {
		return err
	}
	if err := reusePort("", "", raw); err != nil {
		return err
	}
	for len(u.sockets) < u.cfg.Sockets {
		socket, err := listenUDP(ctx, net.ListenConfig{Control: reusePort}, u.Addr())
		if err != nil {
			return err
		}
		u.sockets = append(u.sockets, socket)
	}
	return nil
}

func listenUDP(ctx context.Context, lc net.ListenConfig, address netip.AddrPort) (*net.UDPConn, error) {
	conn, err := lc.ListenPacket(ctx, "udp", address.String())
	if err != nil {
		return nil, err
	}
	socket, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("%s is no datagram socket", address)
	}
	return socket, nil
}

// explain says what to do.
func explain(address netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is taken by another process: stop it or choose another address", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is no address of this host: listen on one that it has, or on 127.0.0.1", address)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("no permission to listen on %s: choose a port from 1024 on", address)
	}
	return err
}

// Addr returns the address that the listener has, with the port it was given
// if it asked for port 0.
func (u *UDP) Addr() netip.AddrPort {
	if addr, ok := u.sockets[0].LocalAddr().(*net.UDPAddr); ok {
		ap := addr.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// Name returns the name of the listener.
func (u *UDP) Name() string { return u.cfg.Name }

// Close stops reading; ServeUDP then returns once all queries are answered.
func (u *UDP) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if !u.serving {
		return u.closeSockets()
	}
	for _, socket := range u.sockets {
		if err := socket.SetReadDeadline(time.Unix(1, 0)); err != nil {
			return err
		}
	}
	return nil
}

func (u *UDP) closeSockets() error {
	var err error
	for _, socket := range u.sockets {
		err = errors.Join(err, socket.Close())
	}
	return err
}

// ServeUDP answers queries until the listener is closed, and returns when the
// last one is answered. The end of ctx does not stop reading; it ends what waits
// for a server.
func (s *Server) ServeUDP(ctx context.Context, u *UDP) error {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return nil
	}
	u.serving = true
	u.mu.Unlock()
	var loops sync.WaitGroup
	for _, socket := range u.sockets {
		loops.Go(func() { (&udpLoop{server: s, udp: u, socket: socket}).run(ctx) })
	}
	loops.Wait()
	return u.closeSockets()
}

// udpLoop reads from one socket.
type udpLoop struct {
	server  *Server
	udp     *UDP
	socket  *net.UDPConn
	lookups sync.WaitGroup
}

func (l *udpLoop) run(ctx context.Context) {
	defer l.lookups.Wait()
	var buf [keptQuery]byte
	for {
		n, peer, err := l.socket.ReadFromUDPAddrPort(buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // Close has set it
			return
		case err != nil: // such as no memory; an error that an earlier answer met is none of reading
			l.server.cfg.Log.LogAttrs(ctx, slog.LevelError, "reading a datagram",
				slog.String("listener", l.udp.cfg.Name), slog.Any("error", err))
			if !pause(ctx, 50*time.Millisecond) {
				return
			}
			continue
		}
		l.serve(ctx, buf[:n], peer)
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *udpLoop) serve(ctx context.Context, msg []byte, peer netip.AddrPort) {
	caller := l.udp.caller(peer)
	x := l.server.take(origin{listener: l.udp.cfg.Name, wire: wireUDP}, l, &caller)
	x.peer = peer
	l.server.handle(ctx, &l.lookups, x, msg)
}

// caller says who is behind an address.
func (u *UDP) caller(peer netip.AddrPort) listen.Caller {
	c := listen.Caller{Addr: netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())}
	c.Assume(u.cfg.Fixed, u.cfg.Mapped)
	return c
}

// reply sends a datagram. That a client cannot be reached is nothing that it
// would be told.
func (l *udpLoop) reply(ctx context.Context, x *exchange) {
	var err error
	if !x.sent.silent {
		_, err = l.socket.WriteToUDPAddrPort(x.out, x.peer)
	}
	x.done(ctx, err)
}
