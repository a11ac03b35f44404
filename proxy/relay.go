package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// underway is a request or tunnel that the registry may end.
type underway struct {
	live.Tunnel
	reason atomic.Uint32 // why it was ended; NoReason if it was not
}

// ended notes the first reason; ending without one is the shutdown.
func (u *underway) ended(why allowlist.Reason) {
	if why == allowlist.NoReason {
		why = allowlist.Draining
	}
	u.reason.CompareAndSwap(uint32(allowlist.NoReason), uint32(why))
}

func (u *underway) why() allowlist.Reason {
	return allowlist.Reason(u.reason.Load()) //nolint:gosec // G115: stored from a Reason
}

// pend registers the request while it is dialled: a shutdown waits for it, and
// a state that forbids it cancels the dial. settle ends it.
func (x *exchange) pend(ctx context.Context) (u *underway, dialling context.Context) {
	dialling, cancel := context.WithCancel(ctx)
	u = &underway{Tunnel: live.Tunnel{Request: x.decision.Request}}
	u.End = func(_ tunnel.Reason, why allowlist.Reason) {
		u.ended(why)
		cancel()
	}
	x.proxy.cfg.Registry.Add(&u.Tunnel)
	x.settled = func() {
		cancel()
		x.proxy.cfg.Registry.Remove(&u.Tunnel)
	}
	return u, dialling
}

// entry is what the registry knows of a request that goes to that address.
func (x *exchange) entry(addr netip.AddrPort) *underway {
	u := &underway{Tunnel: live.Tunnel{Request: x.decision.Request, Addr: addr, NotAfter: x.conn.Caller.NotAfter}}
	if x.conn.Caller.Source == allowlist.SourceX509SVID {
		u.Certificates = x.conn.Certificates
	}
	return u
}

// opening is a connection to the origin that is about to become a tunnel.
type opening struct {
	conn   net.Conn
	addr   netip.AddrPort
	status int
	answer []byte // for the client, when all else is done
}

// relaying is a tunnel on its way.
type relaying struct {
	*tunnel.Tunnel
	entry  *underway
	record *audit.Tunnel // nil until it was answered
	check  *firstBytes   // as record
}

// relay registers the tunnel, makes sure that the state in force still allows
// it, answers and relays until the tunnel ends. It reports whether another
// request may follow on the connection.
//
// Its frame and those of its callers lie on the stack for as long, which is
// most of what an idle tunnel costs: what needs much room is called, and over.
func (x *exchange) relay(ctx context.Context, o opening) bool {
	defer func() { _ = o.conn.Close() }()
	r := x.newRelaying(&o)
	x.proxy.cfg.Registry.Add(&r.entry.Tunnel)
	defer x.proxy.cfg.Registry.Remove(&r.entry.Tunnel)
	x.settle() // now that the tunnel is in the registry

	// A reload between the decision and Add found nothing to end: whoever
	// registers first and looks at the state afterwards cannot miss it.
	if reason := x.confirm(o.addr); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	if again, ok := x.answer(ctx, &o, r); !ok {
		return again
	}
	early := slices.Clone(x.reader.Buffered())
	x.reader.Release()
	if err := x.conn.SetDeadline(time.Time{}); err != nil {
		r.Close(tunnel.Error)
	}
	// A tunnel may last for hours: it must not keep the policy that let it in.
	x.forget()
	r.run(ctx, early)
	return false
}

// newRelaying makes the tunnel and its entry for the registry.
func (x *exchange) newRelaying(o *opening) *relaying {
	r := &relaying{entry: x.entry(o.addr)}
	cfg := x.proxy.cfg.Tunnel
	cfg.Progress = func(up, down int64) { r.record.Progress(up, down) }
	cfg.Spend = x.lease.Spend
	r.Tunnel = tunnel.New(x.conn.Conn, o.conn, cfg)
	r.entry.End = func(reason tunnel.Reason, why allowlist.Reason) {
		r.entry.ended(why)
		r.Close(reason)
	}
	return r
}

// answer tells the client that the tunnel is open, and begins its record. If it
// could not, it reports whether another request may follow.
func (x *exchange) answer(ctx context.Context, o *opening, r *relaying) (again, ok bool) {
	x.open.Status = o.status
	if x.open.Commit(context.WithoutCancel(ctx)) != nil {
		return x.refuse(ctx, allowlist.AuditUnavailable), false
	}
	if err := x.write(o.answer); err != nil {
		x.open.Status, x.open.Verdict, x.open.Reason = 0, allowlist.Fail, allowlist.ClientGone
		if why := r.entry.why(); why != allowlist.NoReason { // it was ended while it was answered
			x.open.Verdict, x.open.Reason = allowlist.Deny, why
		}
		x.open.End()
		if x.open.Committed() { // it had to be recorded before the answer, as allowed
			x.open.Tunnel().Close(ctx, 0, 0, tunnel.Client.String(), allowlist.NoReason)
		}
		return false, false
	}
	x.open.End()
	r.record = x.open.Tunnel()
	r.check = x.check(r.record)
	r.Guard(r.check.gate(ctx, x.proxy.cfg.HelloTimeout))
	return false, true
}

// run relays until the tunnel ends, and ends its record.
func (r *relaying) run(ctx context.Context, early []byte) {
	reason := tunnel.Error // if Run panics
	defer func() {
		up, down := r.Counts()
		r.record.Close(ctx, up, down, reason.String(), r.check.why(reason, r.entry))
	}()
	stop := context.AfterFunc(ctx, func() { r.Close(tunnel.Drain) })
	defer stop()
	reason = r.Run(early).Reason
}

// confirm decides again if another state has come into force since.
func (x *exchange) confirm(addr netip.AddrPort) allowlist.Reason {
	if x.proxy.cfg.Current.Load() == x.state {
		req := x.decision.Request
		req.Time = time.Now() // a date of this very state may have passed since
		if d := x.state.Decide(req); d.Allowed() && d.CheckAddr(addr) == nil {
			return allowlist.NoReason
		}
	}
	if reason := x.again(); reason != allowlist.NoReason {
		return reason
	}
	if err := x.decision.CheckAddr(addr); err != nil {
		if refused, ok := errors.AsType[*allowlist.AddrError](err); ok {
			x.open.Class = refused.Class
		}
		return allowlist.ResolvedAddressDenied
	}
	return allowlist.NoReason
}

// again makes the decision on the state and by the trust of now.
func (x *exchange) again() allowlist.Reason {
	now := time.Now()
	x.renew()
	if reason := x.identify(now); reason != allowlist.NoReason {
		return reason
	}
	x.decide(now)
	return x.decision.Reason
}
