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

// UDPConfig describes a listener for datagrams. Exactly one of Fixed and Mapped is set;
// it identifies the callers.
type UDPConfig struct {
	Name string
	// Address is a single IP address and a port, because an answer must come from the
	// address that the query was sent to.
	Address netip.AddrPort
	// Fixed returns the identity of every caller.
	Fixed func() spiffeid.ID
	// Mapped returns the identity of an address, or false if the address has none.
	Mapped func(netip.Addr) (spiffeid.ID, bool)
	// Loops is how many calls of Serve's function read the socket at the same time,
	// preferably one per processor; zero means one.
	Loops int
}

// receiveBuffer is the requested size of the socket's receive buffer in bytes; the
// system may grant less. One queue holds the datagrams of all senders.
const receiveBuffer = 1 << 20

// UDP is a listener for datagrams. Its socket does not share its port, so that no other
// process can bind beside it: with SO_REUSEPORT, every process of the same user could
// get a part of the queries. It is safe for concurrent use.
type UDP struct {
	cfg UDPConfig
	// handles holds the socket once for each loop. Each handle has a copy of the
	// descriptor, because the runtime lets only one goroutine at a time write to a
	// descriptor.
	handles []*net.UDPConn

	mu      sync.Mutex
	serving bool
	closed  bool
}

// OpenUDP opens the socket; Serve serves it. The error is one line that says what to
// do.
func OpenUDP(ctx context.Context, cfg UDPConfig) (*UDP, error) {
	switch {
	case (cfg.Fixed == nil) == (cfg.Mapped == nil):
		return nil, fmt.Errorf("listener %s: either a fixed identity or a map of addresses is required", cfg.Name)
	case !cfg.Address.IsValid() || cfg.Address.Addr().IsUnspecified():
		return nil, fmt.Errorf("listener %s: %s is no single address: answers would come from another one", cfg.Name, cfg.Address)
	}
	u := &UDP{cfg: cfg}
	if err := u.open(ctx); err != nil {
		_ = u.closeHandles()
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, explain(cfg.Address.String(), err))
	}
	return u, nil
}

// open binds the socket and copies its descriptor for each further loop.
func (u *UDP) open(ctx context.Context) error {
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp", u.cfg.Address.String())
	if err != nil {
		return err
	}
	if err := u.add(conn); err != nil {
		return err
	}
	if err := u.handles[0].SetReadBuffer(receiveBuffer); err != nil {
		return err
	}
	for len(u.handles) < u.cfg.Loops {
		if err := u.copy(); err != nil {
			return fmt.Errorf("copying the descriptor of %s: %w", u.cfg.Address, err)
		}
	}
	return nil
}

// copy adds another handle of the socket.
func (u *UDP) copy() error {
	file, err := u.handles[0].File()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // FilePacketConn has a descriptor of its own
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return err
	}
	return u.add(conn)
}

func (u *UDP) add(conn net.PacketConn) error {
	handle, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return fmt.Errorf("%s is no datagram socket", u.cfg.Address)
	}
	u.handles = append(u.handles, handle)
	return nil
}

// Addr returns the address of the listener, with the actual port if port 0 was
// configured.
func (u *UDP) Addr() netip.AddrPort {
	if addr, ok := u.handles[0].LocalAddr().(*net.UDPAddr); ok {
		ap := addr.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// Name returns the name of the listener.
func (u *UDP) Name() string { return u.cfg.Name }

// Close stops reading. Serve then returns when its calls have returned.
func (u *UDP) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if !u.serving {
		return u.closeHandles()
	}
	for _, handle := range u.handles {
		if err := handle.SetReadDeadline(time.Unix(1, 0)); err != nil {
			return err
		}
	}
	return nil
}

func (u *UDP) closeHandles() error {
	var err error
	for _, handle := range u.handles {
		err = errors.Join(err, handle.Close())
	}
	return err
}

// Serve calls serve once for each loop, in a goroutine and with a handle of its own,
// and closes the socket when all calls have returned. It returns at once if the
// listener is closed already.
//
// Close makes reading fail with os.ErrDeadlineExceeded; serve should then return.
// Earlier queries can still be answered.
func (u *UDP) Serve(serve func(socket *net.UDPConn)) error {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return nil
	}
	u.serving = true
	u.mu.Unlock()
	var serving sync.WaitGroup
	for _, handle := range u.handles {
		serving.Go(func() { serve(handle) })
	}
	serving.Wait()
	return u.closeHandles()
}

// Caller returns the caller at the address that a datagram came from.
func (u *UDP) Caller(peer netip.AddrPort) Caller {
	c := Caller{Addr: netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())}
	c.assignIdentity(u.cfg.Fixed, u.cfg.Mapped)
	return c
}
