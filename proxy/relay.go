package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
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
	// It may outlive the head, which is not to be kept for a part of it.
	u.Request.Method, u.Request.Path = strings.Clone(u.Request.Method), strings.Clone(u.Request.Path)
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
	up     int64  // bytes of the request that have gone out; 0 for a CONNECT
}

// relaying is a tunnel on its way.
type relaying struct {
	*tunnel.Tunnel
	proxy  *Proxy
	conn   net.Conn // to the origin
	lease  *limit.Lease
	entry  *underway
	known  *live.Tunnel  // what the registry knows: entry, or what became of it
	record *audit.Tunnel // nil until it was answered
	check  *firstBytes   // as record
	early  []byte        // what the client sent behind its request
	result tunnel.Result
	unwind func() bool // lets the end of the connection's context pass
}

// relay registers the tunnel, makes sure that the state in force still allows
// it, and answers. The tunnel then runs as what is left to do on the
// connection: the stack that all this needed is most of what it would cost
// while idle. It reports whether another request may follow.
func (x *exchange) relay(ctx context.Context, o opening) bool {
	r := x.newRelaying(&o)
	x.proxy.cfg.Registry.Add(&r.entry.Tunnel)
	defer func() {
		if x.conn.Rest == nil {
			r.leave()
		}
	}()
	x.settle() // now that the tunnel is in the registry

	// A reload between the decision and Add found nothing to end: whoever
	// registers first and looks at the state afterwards cannot miss it.
	if reason := x.confirmed(r); reason != allowlist.NoReason {
		r.leave() // the answer may take its time
		return x.refuse(ctx, reason)
	}
	if again, ok := x.answer(ctx, &o, r); !ok {
		return again
	}
	r.early = slices.Clone(x.reader.Buffered())
	if err := x.conn.SetDeadline(time.Time{}); err != nil {
		r.Close(tunnel.Error)
	}
	r.lease, x.lease = x.lease, nil
	r.unwind = context.AfterFunc(ctx, func() { r.Close(tunnel.Drain) })
	x.conn.Rest = func() { r.run(ctx) }
	return false
}

// newRelaying makes the tunnel and its entry for the registry.
func (x *exchange) newRelaying(o *opening) *relaying {
	r := &relaying{proxy: x.proxy, conn: o.conn, entry: x.entry(o.addr)}
	r.known = &r.entry.Tunnel
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
		r.leave()
		return x.refuse(ctx, allowlist.AuditUnavailable), false
	}
	if err := x.write(o.answer); err != nil {
		x.unanswered(r.entry.why())
		x.open.End()
		if x.open.Committed() || x.sent { // it had to be recorded before the answer, as allowed, or has gone out
			reason, why := tunnel.Client, r.entry.why()
			if why != allowlist.NoReason {
				reason, why = ending(why)
			}
			x.open.Tunnel().Close(ctx, o.up, 0, reason, why)
		}
		return false, false
	}
	x.open.End()
	r.record = x.open.Tunnel()
	r.check = x.check(r)
	r.Guard(r.check.gate(ctx, x.proxy.cfg.HelloTimeout))
	return false, true
}

// ending returns what ends something under way that is forbidden by a reason, and
// that reason as its record gives it: no policy forbids what a shutdown ends.
func ending(why allowlist.Reason) (tunnel.Reason, allowlist.Reason) {
	reason := live.EndedBy(why)
	if reason == tunnel.Drain {
		why = allowlist.NoReason
	}
	return reason, why
}

// run relays until the tunnel ends, and ends its record.
func (r *relaying) run(ctx context.Context) {
	defer r.end(ctx)
	early := r.early
	r.early = nil // it is not needed for as long as the tunnel lasts
	r.result = r.Run(early)
}

func (r *relaying) end(ctx context.Context) {
	if cause := recover(); cause != nil {
		r.result.Reason = tunnel.Error
		r.proxy.Panicked(ctx, cause, debug.Stack())
	}
	r.unwind()
	up, down := r.Counts()
	r.record.Close(ctx, up, down, r.result.Reason, r.check.why(r.result.Reason, r.entry))
	r.leave()
}

// become changes what the registry knows of the tunnel, which is not without it
// for a moment.
func (r *relaying) become(change func(*live.Tunnel)) {
	next := *r.known
	change(&next)
	r.proxy.cfg.Registry.Add(&next)
	r.proxy.cfg.Registry.Remove(r.known)
	r.known = &next
}

// leave gives back what the tunnel held: what is no longer in the registry
// counts nowhere.
func (r *relaying) leave() {
	_ = r.conn.Close()
	if r.lease != nil {
		r.lease.Close()
	}
	r.proxy.cfg.Registry.Remove(r.known)
}

// confirmed confirms what the registry knows of the tunnel. Another state may let
// an address through for another name: then that is what every new state decides.
func (x *exchange) confirmed(r *relaying) allowlist.Reason {
	for {
		reason := x.confirm(r.entry.Addr)
		if reason == allowlist.NoReason { // a shutdown ends what every state allows
			reason = r.entry.why()
		}
		dest := x.decision.Dest
		if reason != allowlist.NoReason || dest == r.known.Request.Dest {
			return reason
		}
		r.become(func(t *live.Tunnel) { t.Request.Dest = dest })
	}
}

// confirm decides again if another state has come into force since. What was
// asked of the origin as an upgrade is allowed only as one.
func (x *exchange) confirm(addr netip.AddrPort) allowlist.Reason {
	upgrade := x.decision.Upgrade
	if x.proxy.cfg.Current.Load() == x.state {
		req := x.decision.Request
		req.Time = time.Now() // a date of this very state may have passed since
		if d := x.state.Decide(req); d.Verdict == x.decision.Verdict && d.CheckAddr(addr) == nil {
			return allowlist.NoReason
		}
	}
	if reason := x.again(); reason != allowlist.NoReason {
		return reason
	}
	if x.decision.Upgrade != upgrade {
		x.decision.Upgrade = upgrade
		return allowlist.UpgradeNotAllowed
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
