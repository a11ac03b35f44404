package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
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

// UDP is a listener for datagrams. It is safe for concurrent use.
type UDP struct {
	cfg     UDPConfig
	sockets []*net.UDPConn

	mu      sync.Mutex
	serving bool
	closed  bool
}

// OpenUDP opens the sockets; Serve serves them. The error is one line that says
// what to do.
func OpenUDP(ctx context.Context, cfg UDPConfig) (*UDP, error) {
	switch {
	case (cfg.Fixed == nil) == (cfg.Mapped == nil):
		return nil, fmt.Errorf("listener %s: either a fixed identity or a map of addresses is required", cfg.Name)
	case !cfg.Address.IsValid() || cfg.Address.Addr().IsUnspecified():
		return nil, fmt.Errorf("listener %s: %s is no single address: answers would come from another one", cfg.Name, cfg.Address)
	}
	u := &UDP{cfg: cfg}
	if err := u.open(ctx); err != nil {
		_ = u.closeSockets()
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, explain(cfg.Address.String(), err))
	}
	return u, nil
}

// open opens one socket for itself, so that the address is nobody else's, and
// then lets the others have it too.
func (u *UDP) open(ctx context.Context) error {
	first, err := openSocket(ctx, net.ListenConfig{}, u.cfg.Address)
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
		socket, err := openSocket(ctx, net.ListenConfig{Control: reusePort}, u.Addr())
		if err != nil {
			return err
		}
		u.sockets = append(u.sockets, socket)
	}
	return nil
}

func openSocket(ctx context.Context, lc net.ListenConfig, address netip.AddrPort) (*net.UDPConn, error) {
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

// Close stops reading; Serve then returns once its calls have.
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

// Serve calls serve for every socket, each in a goroutine of its own, and closes
// the sockets when the last call has returned. It returns at once if the listener
// is closed already.
//
// Close makes reading fail with os.ErrDeadlineExceeded, which is when serve should
// return; what was asked before can still be answered.
func (u *UDP) Serve(serve func(socket *net.UDPConn)) error {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return nil
	}
	u.serving = true
	u.mu.Unlock()
	var serving sync.WaitGroup
	for _, socket := range u.sockets {
		serving.Go(func() { serve(socket) })
	}
	serving.Wait()
	return u.closeSockets()
}

// Caller says who is behind the address that a datagram came from.
func (u *UDP) Caller(peer netip.AddrPort) Caller {
	c := Caller{Addr: netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())}
	c.assume(u.cfg.Fixed, u.cfg.Mapped)
	return c
}
