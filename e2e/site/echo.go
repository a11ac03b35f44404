package site

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
)

// Echo is an origin on loopback that sends back what it receives, and ends its
// side of a connection when the other one has ended.
type Echo struct {
	// Address is where it listens, on 127.0.0.1.
	Address netip.AddrPort

	listener net.Listener
	serving  sync.WaitGroup
}

// NewEcho starts an origin.
func NewEcho(ctx context.Context) (*Echo, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e := &Echo{listener: l}
	if e.Address, err = netip.ParseAddrPort(l.Addr().String()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	e.serving.Go(e.serve)
	return e, nil
}

func (e *Echo) serve() {
	for {
		conn, err := e.listener.Accept()
		if err != nil {
			return
		}
		e.serving.Go(func() {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		})
	}
}

// At returns HOST:PORT for a host that stands for 127.0.0.1.
func (e *Echo) At(host string) string {
	return net.JoinHostPort(host, strconv.Itoa(int(e.Address.Port())))
}

// Close returns when every connection has ended, for which it waits: whoever
// holds one closes it first.
func (e *Echo) Close() {
	_ = e.listener.Close()
	e.serving.Wait()
}

// FreeAddresses returns addresses on 127.0.0.1 on which nobody listened a moment
// ago, for programs that are told where to listen.
func FreeAddresses(ctx context.Context, n int) ([]netip.AddrPort, error) {
	free := make([]netip.AddrPort, n)
	for i := range free {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // at the end, so that all differ
		if free[i], err = netip.ParseAddrPort(l.Addr().String()); err != nil {
			return nil, err
		}
	}
	return free, nil
}
