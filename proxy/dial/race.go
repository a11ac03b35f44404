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

// connect dials one address. It checks the numeric address that the socket is about to
// connect to against the decision.
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

// open takes a descriptor and connects to one address. The connection gives the
// descriptor back when it is closed. It is a *tunnel.Conn, which a tunnel uses as it is.
func (d *Dialer) open(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
	if !d.cfg.Descriptors.Take(1) {
		return nil, limit.ErrNoDescriptor
	}
	return d.openWithDescriptor(ctx, dec, addr)
}

// openWithDescriptor connects to one address with a descriptor that is already taken.
func (d *Dialer) openWithDescriptor(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
	opened := false
	defer func() {
		if !opened {
			d.giveDescriptor()
		}
	}()
	conn, err := d.connect(ctx, dec, addr)
	if err != nil {
		d.cfg.Descriptors.Missing(err)
		return nil, &attemptError{addr: addr, err: err}
	}
	opened = true
	return tunnel.WrapWithRelease(conn, d.giveDescriptor), nil
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

// attempt is the result of connecting to one address.
type attempt struct {
	conn     net.Conn
	err      error
	panicked string // text and stack of a panic; "" if there was none
}

// try connects as openWithDescriptor does. It runs in a goroutine of its own, where a
// panic would end the process, and therefore returns a panic to the goroutine that waits.
func (d *Dialer) try(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (a attempt) {
	defer func() {
		if cause := recover(); cause != nil {
			a = attempt{panicked: fmt.Sprintf("%v\n\n%s", cause, debug.Stack())}
		}
	}()
	a.conn, a.err = d.openWithDescriptor(ctx, dec, addr)
	return a
}

// race connects to the addresses in turn. It begins with the next address when an
// attempt has failed or has not succeeded within the stagger. The first connection is
// returned and later ones are closed. race returns after all its attempts have ended.
//
// An attempt takes its descriptor with Take while no other attempt runs. Beside others it
// takes a spare one, and waits while there is none, so that names with many addresses
// that never answer do not use up the descriptors of other callers.
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
