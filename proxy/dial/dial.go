// Package dial connects to an allowed destination: it resolves the name, keeps
// the addresses that the decision allows, tries them as RFC 8305 says, and checks
// the address that the socket really connects to against the decision once more.
//
// It refuses to connect without a decision: an address that no decision has
// allowed is never dialled.
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

// maxAddresses is the number of addresses of one name that are considered; the rest are
// ignored. maxRefused is the number of refused addresses that a result lists.
const (
	maxAddresses = 64
	maxRefused   = 8
)

// Config says how to resolve and connect.
type Config struct {
	// Resolve returns the addresses of the destination of a decision, each with the
	// way by which the look-up led there. It is called only with a decision that
	// allows, and returns only ways that the decision allows. An
	// *allowlist.ReasonError keeps its reason; any other error becomes
	// resolve-failed, or resolve-timeout if it is a time-out. Required.
	Resolve func(ctx context.Context, dec *allowlist.Decision) ([]allowlist.Resolved, error)
	// Timeout bounds resolving and connecting together; zero means
	// DefaultTimeout.
	Timeout time.Duration
	// Stagger is the time after which the next address is tried beside the one
	// that has not answered; zero means a quarter of a second.
	Stagger time.Duration
	// Descriptors counts the open connections: each takes a descriptor and gives it
	// back when it is closed. nil means no limit.
	Descriptors *limit.Descriptors
}

// Dialer connects. It is safe for concurrent use.
type Dialer struct {
	cfg            Config
	connect        connectFunc // connects to one address; tests replace it
	giveDescriptor func()      // gives one descriptor back
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
	return &Dialer{cfg: cfg, connect: connect, giveDescriptor: func() { cfg.Descriptors.Give(1) }}, nil
}

// Result describes a dial, also one that failed.
type Result struct {
	Conn    net.Conn        // nil after an error
	Addr    netip.AddrPort  // the address connected to; after a failed connect, the first address tried
	Way     allowlist.Way   // how the look-up led to the address connected to
	Dropped int             // number of addresses that the decision refused
	Refused []netip.Addr    // the first addresses that the decision refused, at most maxRefused
	Class   allowlist.Class // class of the last address that the decision refused
	Resolve time.Duration   // time spent on resolving the name
	Dial    time.Duration   // time spent on connecting
}

// Dial connects to the destination of a decision that allows it. Every error
// is an *allowlist.ReasonError.
func (d *Dialer) Dial(ctx context.Context, dec *allowlist.Decision) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	var res Result
	if !dec.Allowed() { // then the name is not looked up either
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

// DialAddr connects to one address of the destination of a decision without looking the
// name up: the caller has received the address from the DNS door. As in Dial, the
// address is checked against the decision. Every error is an *allowlist.ReasonError.
func (d *Dialer) DialAddr(ctx context.Context, dec *allowlist.Decision, addr netip.Addr) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	return d.dial(ctx, dec, []allowlist.Resolved{{Addr: addr}}, Result{})
}

// dial connects to one of the addresses that the decision allows.
func (d *Dialer) dial(ctx context.Context, dec *allowlist.Decision, addrs []allowlist.Resolved, res Result) (Result, error) {
	allowed, refusals := res.allowedAddrs(dec, addrs)
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
			res.noteRefused(refused)
			res.Addr = netip.AddrPort{}
		}
		reason := dialReason(err)
		if reason == allowlist.Busy {
			res.Addr = netip.AddrPort{} // there was no socket to try it with
		}
		return res, &allowlist.ReasonError{Reason: reason, Cause: causeOf(reason, err), Err: err}
	}
	res.Conn, res.Addr = conn, remoteAddr(conn)
	for _, a := range addrs {
		if a.Addr.Unmap() == res.Addr.Addr() {
			res.Way = a.Way
			break
		}
	}
	return res, nil
}

// allowedAddrs returns the addresses that the decision allows, and the errors of those
// that it refuses. It counts the refused ones in the result.
func (r *Result) allowedAddrs(dec *allowlist.Decision, addrs []allowlist.Resolved) (allowed []netip.AddrPort, refusals []error) {
	allowed = make([]netip.AddrPort, 0, min(len(addrs), maxAddresses))
	for _, a := range addrs[:min(len(addrs), maxAddresses)] {
		ap := netip.AddrPortFrom(a.Addr.Unmap(), dec.Dest.Port)
		err := dec.CheckAddr(ap)
		if err == nil {
			if !slices.Contains(allowed, ap) { // no address is tried twice
				allowed = append(allowed, ap)
			}
			continue
		}
		if refused, ok := errors.AsType[*allowlist.AddrError](err); ok {
			r.noteRefused(refused)
		}
		refusals = append(refusals, err)
		r.Dropped++
	}
	return allowed, refusals
}

// noteRefused notes an address that the decision refused.
func (r *Result) noteRefused(err *allowlist.AddrError) {
	r.Class = err.Class
	if addr := err.Addr.Addr(); len(r.Refused) < maxRefused && !slices.Contains(r.Refused, addr) {
		r.Refused = append(r.Refused, addr)
	}
}

// remoteAddr returns the remote address of a connection.
func remoteAddr(conn net.Conn) netip.AddrPort {
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

// dialReason returns the reason for the errors of a race. An address that the decision
// refused comes first, then a missing descriptor, which says nothing about the
// destination, then a refused connection, and then a time-out.
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

// causeOf returns why no connection of a race succeeded, or NoCause if reason says all.
func causeOf(reason allowlist.Reason, err error) allowlist.Cause {
	if reason == allowlist.DialFailed && (errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH)) {
		return allowlist.CauseUnroutable
	}
	return allowlist.NoCause
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}
