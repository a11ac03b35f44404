// Package dial connects to an allowed destination: it resolves the name, keeps
// the addresses that the decision lets through, races them (RFC 8305), and
// asks the decision again about the address that the socket really connects
// to.
//
// It refuses to connect without a decision: an address that no decision let
// through is never dialled.
package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// The defaults of a zero Config.
const (
	DefaultTimeout = 10 * time.Second
	defaultStagger = 250 * time.Millisecond // RFC 8305 section 5, Connection Attempt Delay
)

// maxAddresses bounds how many addresses of one name are looked at, maxNamed how many
// a result names.
const (
	maxAddresses = 64
	maxNamed     = 8
)

// Config says how to resolve and connect.
type Config struct {
	// Resolve returns the addresses of a decision's destination, which it may
	// look up because the decision allows, each with a way that it allows as well.
	// An error that is an *allowlist.ReasonError keeps its reason; any other is
	// resolve-failed, or resolve-timeout if it is one. Required.
	Resolve func(ctx context.Context, dec *allowlist.Decision) ([]allowlist.Resolved, error)
	// Timeout bounds resolving and connecting together; zero means
	// DefaultTimeout.
	Timeout time.Duration
	// Stagger is the time after which the next address is tried beside the one
	// that has not answered; zero means a quarter of a second.
	Stagger time.Duration
	// Descriptors are where each connection takes one, for as long as it is open;
	// nil is any number.
	Descriptors *limit.Descriptors
}

// Dialer connects. It is safe for concurrent use.
type Dialer struct {
	cfg     Config
	connect connectFunc // connects to one address; tests replace it
	give    func()      // gives the descriptor of a connection back
}

// New returns a dialer.
func New(cfg Config) (*Dialer, error) {
	if cfg.Resolve == nil {
		return nil, errors.New("dial: a resolver is required")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Stagger <= 0 {
		cfg.Stagger = defaultStagger
	}
	return &Dialer{cfg: cfg, connect: connect, give: func() { cfg.Descriptors.Give(1) }}, nil
}

// Result is what came of a dial, also of one that failed.
type Result struct {
	Conn    net.Conn       // nil after an error
	Addr    netip.AddrPort // the address connected to; after a failed connect, the first tried
	Way     allowlist.Way  // how the look-up led to the address connected to
	Dropped int            // addresses that the decision refused
	Refused []netip.Addr   // the first of them, at most maxNamed
	Class   allowlist.Class
	Resolve time.Duration // time spent on each part
	Dial    time.Duration
}

// Dial connects to the destination of a decision that allows it. Every error
// is an *allowlist.ReasonError.
func (d *Dialer) Dial(ctx context.Context, dec *allowlist.Decision) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	var res Result
	if !dec.Allowed() { // not even a lookup
		return res, &allowlist.ReasonError{Reason: allowlist.InternalError, Err: errors.New("dial: the decision does not allow")}
	}
	start := time.Now()
	addrs, err := d.cfg.Resolve(ctx, dec)
	res.Resolve = time.Since(start)
	if err == nil && len(addrs) == 0 {
		err = errors.New("the name has no address")
	}
	if err != nil {
		return res, &allowlist.ReasonError{Reason: resolveReason(err), Err: err}
	}
	return d.dial(ctx, dec, addrs, res)
}

// DialAddr connects to an address that the destination of a decision was the
// name for when the caller asked, without looking it up again. The decision is
// asked about the address as it is by Dial. Every error is an
// *allowlist.ReasonError.
func (d *Dialer) DialAddr(ctx context.Context, dec *allowlist.Decision, addr netip.Addr) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	return d.dial(ctx, dec, []allowlist.Resolved{{Addr: addr}}, Result{})
}

// dial connects to one of the addresses that the decision lets through.
func (d *Dialer) dial(ctx context.Context, dec *allowlist.Decision, addrs []allowlist.Resolved, res Result) (Result, error) {
	allowed, refusals := res.keep(dec, addrs)
	if len(allowed) == 0 {
		return res, &allowlist.ReasonError{Reason: allowlist.ResolvedAddressDenied, Err: &attemptsError{errs: refusals}}
	}
	start := time.Now()
	allowed = interleave(allowed)
	res.Addr = allowed[0]
	conn, err := d.race(ctx, dec, allowed)
	res.Dial = time.Since(start)
	if err != nil {
		if refused, ok := errors.AsType[*allowlist.AddrError](err); ok {
			res.refuse(refused)
			res.Addr = netip.AddrPort{}
		}
		reason := dialReason(err)
		if reason == allowlist.Busy {
			res.Addr = netip.AddrPort{} // there was no socket to try it with
		}
		return res, &allowlist.ReasonError{Reason: reason, Cause: causeOf(reason, err), Err: err}
	}
	res.Conn, res.Addr = conn, peer(conn)
	for _, a := range addrs {
		if a.Addr.Unmap() == res.Addr.Addr() {
			res.Way = a.Way
			break
		}
	}
	return res, nil
}

// keep returns the addresses that the decision lets through, and counts the
// others, of which it returns the errors.
func (r *Result) keep(dec *allowlist.Decision, addrs []allowlist.Resolved) (allowed []netip.AddrPort, refusals []error) {
	allowed = make([]netip.AddrPort, 0, min(len(addrs), maxAddresses))
	for _, a := range addrs[:min(len(addrs), maxAddresses)] {
		ap := netip.AddrPortFrom(a.Addr.Unmap(), dec.Dest.Port)
		err := dec.CheckAddr(ap)
		if err == nil {
			if !slices.Contains(allowed, ap) { // nobody is tried twice
				allowed = append(allowed, ap)
			}
			continue
		}
		if refused, ok := errors.AsType[*allowlist.AddrError](err); ok {
			r.refuse(refused)
		}
		refusals = append(refusals, err)
		r.Dropped++
	}
	return allowed, refusals
}

// refuse notes an address that the decision refused.
func (r *Result) refuse(err *allowlist.AddrError) {
	r.Class = err.Class
	if addr := err.Addr.Addr(); len(r.Refused) < maxNamed && !slices.Contains(r.Refused, addr) {
		r.Refused = append(r.Refused, addr)
	}
}

// peer returns the address of the other end as the socket knows it.
func peer(conn net.Conn) netip.AddrPort {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

func resolveReason(err error) allowlist.Reason {
	if _, ok := errors.AsType[*allowlist.ReasonError](err); ok {
		return allowlist.ReasonOf(err)
	}
	switch {
	case limit.NoDescriptor(err):
		return allowlist.Busy
	case isTimeout(err):
		return allowlist.ResolveTimeout
	}
	return allowlist.ResolveFailed
}

// dialReason classifies the errors of a race: what was refused by the decision
// counts first, then that the gateway had no descriptor to try an address with,
// which says nothing about the destination; a time-out only if nothing else is
// known.
func dialReason(err error) allowlist.Reason {
	_, refused := errors.AsType[*allowlist.AddrError](err)
	switch {
	case refused:
		return allowlist.ResolvedAddressDenied
	case limit.NoDescriptor(err):
		return allowlist.Busy
	case errors.Is(err, syscall.ECONNREFUSED):
		return allowlist.DialRefused
	case isTimeout(err), errors.Is(err, syscall.ETIMEDOUT):
		return allowlist.DialTimeout
	}
	return allowlist.DialFailed
}

// causeOf returns the cause of a race without a winner, if it has one.
func causeOf(reason allowlist.Reason, err error) allowlist.Cause {
	if reason == allowlist.DialFailed && (errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH)) {
		return allowlist.CauseUnroutable
	}
	return allowlist.NoCause
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}
