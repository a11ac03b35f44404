package site

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
)

// Echo is an origin that sends back what it receives. It closes a connection
// when the client has closed its side.
type Echo struct {
	// Address is the address of the listener.
	Address netip.AddrPort

	listener net.Listener
	serving  sync.WaitGroup
}

// NewEcho starts an Echo on a free port of 127.0.0.1.
func NewEcho(ctx context.Context) (*Echo, error) { return NewEchoAt(ctx, "127.0.0.1:0") }

// NewEchoAt starts an Echo at an address.
func NewEchoAt(ctx context.Context, address string) (*Echo, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
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

// At returns HOST:PORT for a host that resolves to 127.0.0.1.
func (e *Echo) At(host string) string {
	return net.JoinHostPort(host, strconv.Itoa(int(e.Address.Port())))
}

// Close closes the listener and waits until every connection has ended. The caller closes
// its connections first.
func (e *Echo) Close() {
	_ = e.listener.Close()
	e.serving.Wait()
}

// The ports of FreeAddresses, from firstPort to below endPort. Linux and macOS give no port
// below endPort to a socket that asks for any port.
const (
	firstPort = 20000
	endPort   = 32768
)

// FreeAddresses returns addresses on 127.0.0.1 that were free when it was called, for
// programs whose address is configured. Until the program listens, no socket that asks for
// any port gets one of theirs.
func FreeAddresses(ctx context.Context, n int) ([]netip.AddrPort, error) {
	free := make([]netip.AddrPort, n)
	for i := range free {
		l, err := listenAtRandom(ctx)
		if err != nil {
			return nil, err
		}
		defer l.Close() // closed when all are found, so that they differ
		if free[i], err = netip.ParseAddrPort(l.Addr().String()); err != nil {
			return nil, err
		}
	}
	return free, nil
}

// listenAtRandom listens at a random port that is free.
func listenAtRandom(ctx context.Context) (l net.Listener, err error) {
	for range 100 { // a few of the ports may be taken
		port := firstPort + rand.IntN(endPort-firstPort)
		if l, err = new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return l, nil
		}
	}
	return nil, err
}
