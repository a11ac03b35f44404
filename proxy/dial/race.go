package dial

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

type connectFunc func(context.Context, *allowlist.Decision, netip.AddrPort) (net.Conn, error)

// connect dials one address. The decision is asked again on the numeric
// address that the socket is given.
func connect(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
	dialer := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true},
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			actual, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			return dec.CheckAddr(actual)
		},
	}
	return dialer.DialContext(ctx, "tcp", addr.String())
}

// open connects to one address with a descriptor that the connection gives back
// when it is closed. It is a *tunnel.Conn, as which a tunnel takes it.
func (d *Dialer) open(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
	if !d.cfg.Descriptors.Take(1) {
		return nil, limit.ErrNoDescriptor
	}
	return d.taken(ctx, dec, addr)
}

// taken is open with a descriptor that was taken.
func (d *Dialer) taken(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
	opened := false
	defer func() {
		if !opened {
			d.give()
		}
	}()
	conn, err := d.connect(ctx, dec, addr)
	if err != nil {
		d.cfg.Descriptors.Missing(err)
		return nil, &attemptError{addr: addr, err: err}
	}
	opened = true
	return tunnel.Holding(conn, d.give), nil
}

// interleave alternates the families, IPv6 first (RFC 8305 section 4).
func interleave(addrs []netip.AddrPort) []netip.AddrPort {
	var six, four []netip.AddrPort
	for _, a := range addrs {
		if a.Addr().Is6() {
			six = append(six, a)
		} else {
			four = append(four, a)
		}
	}
	mixed := make([]netip.AddrPort, 0, len(addrs))
	for i := range max(len(six), len(four)) {
		if i < len(six) {
			mixed = append(mixed, six[i])
		}
		if i < len(four) {
			mixed = append(mixed, four[i])
		}
	}
	return mixed
}

// attempt is what came of one address.
type attempt struct {
	conn     net.Conn
	err      error
	panicked string
}

// try connects, with a descriptor that was taken, in a goroutine of its own; a panic there would end the process
// if it were not carried over to the goroutine that waits.
func (d *Dialer) try(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (a attempt) {
	defer func() {
		if cause := recover(); cause != nil {
			a = attempt{panicked: fmt.Sprintf("%v\n\n%s", cause, debug.Stack())}
		}
	}()
	a.conn, a.err = d.taken(ctx, dec, addr)
	return a
}

// race connects to the addresses in turn, the next one when the last has
// failed or not answered for a while; the first connection wins and the others
// are closed. It returns after every attempt it began has ended.
//
// A request counts on one descriptor. An attempt beside others takes one that can be
// done without, and waits for the others to end if there is none: names with many
// addresses that never answer cost nobody a connection.
func (d *Dialer) race(ctx context.Context, dec *allowlist.Decision, addrs []netip.AddrPort) (net.Conn, error) {
	if len(addrs) == 1 { // the usual case needs no second goroutine
		return d.open(ctx, dec, addrs[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stagger := time.NewTicker(d.cfg.Stagger)
	defer stagger.Stop()
	results := make(chan attempt)
	running := 0
	var errs []error
	begin := func() {
		take := d.cfg.Descriptors.TakeSpare
		if running == 0 {
			take = d.cfg.Descriptors.Take
		}
		stagger.Reset(d.cfg.Stagger)
		if !take(1) {
			if running == 0 {
				errs = append(errs, limit.ErrNoDescriptor)
			}
			return
		}
		addr := addrs[0]
		addrs = addrs[1:]
		running++
		go func() { results <- d.try(ctx, dec, addr) }()
	}
	var won net.Conn
	var panicked string
	for begin(); running > 0; {
		select {
		case <-stagger.C:
		case a := <-results:
			running--
			switch {
			case a.panicked != "":
				panicked = a.panicked
				cancel()
			case a.err != nil:
				errs = append(errs, a.err)
			case won == nil:
				won = a.conn
				cancel() // ends the other attempts
			default:
				_ = a.conn.Close()
			}
		}
		if len(addrs) > 0 && ctx.Err() == nil {
			begin()
		}
	}
	if panicked != "" {
		if won != nil {
			_ = won.Close()
		}
		panic(panicked)
	}
	if won != nil {
		return won, nil
	}
	return nil, &attemptsError{errs: errs, untried: len(addrs)}
}
