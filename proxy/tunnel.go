package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// connect dials the destination that was decided. If a state ends the dial and the state
// after it allows the request, it dials again. The record then describes the last state
// only.
func connect(ctx context.Context, x *request) (dial.Result, allowlist.Reason) {
	for {
		if ctx.Err() != nil { // the client has left before anything was looked up
			return dial.Result{}, noteGone(ctx, x)
		}
		dialling, start := register(ctx, x, nil), time.Now()
		var res dial.Result
		var err error
		if x.bound.addr.IsValid() {
			res, err = x.proxy.cfg.Dialer.DialAddr(dialling, &x.decision, x.bound.addr)
			res.Way = x.bound.way
		} else {
			res, err = x.proxy.cfg.Dialer.Dial(dialling, &x.decision)
		}
		if err != nil && ctx.Err() != nil {
			err = &allowlist.ReasonError{Reason: noteGone(ctx, x), Err: context.Cause(ctx)}
		}
		reason, why := x.dialed(dialling, start, res, err), x.registration.endReason()
		if why == allowlist.NoReason {
			return res, reason
		}
		if err == nil {
			_ = res.Conn.Close()
			res.Conn = nil
		}
		if why == allowlist.Draining {
			return res, why
		}
		if reason = x.decideAgain(); reason != allowlist.NoReason {
			return res, reason
		}
	}
}

// noteGone notes why the client of a request has left, and returns the reason.
func noteGone(ctx context.Context, x *request) allowlist.Reason {
	x.cause = context.Cause(ctx).Error()
	return front.GoneReason(ctx)
}

// opening is a connection to the origin that is about to become a tunnel.
type opening struct {
	conn     net.Conn
	upstream resolvedAddr
	status   int
	switched []byte // the origin's answer to an upgrade; nil for a CONNECT
	up       int64  // number of bytes of the request that have gone out; 0 for a CONNECT
}

// relay is a tunnel that is about to open or is open. It is one value with all that stays
// for as long as the tunnel is idle, as far as possible: small values would stand between
// those of requests that have ended, and keep the memory of these from being used for
// anything else.
type relay struct {
	tunnel.Tunnel
	record            audit.Tunnel // zero until the client was answered
	proxy             *Proxy
	conn              net.Conn // the connection to the origin
	lease             *limit.Lease
	registration      *registration
	place             *place           // slots of the request, which ends with the tunnel; nil if they end with the connection
	early             []byte           // bytes that the client has sent behind its request
	denied            allowlist.Reason // why the first bytes were refused; NoReason if they were not
	stopCloseOnCancel func() bool      // stops the AfterFunc that closes the tunnel when the connection's context ends; nil for a stream
}

// open turns the request into a tunnel and returns the answer. The registration becomes
// that of the tunnel, and the state in force must still allow the request.
func open(ctx context.Context, x *request, o opening) front.Answer {
	r := newRelay(x, &o)
	handed := false
	defer func() {
		if !handed {
			r.release()
		}
	}()
	// A reload between the decision and the promotion has found no tunnel to end. The
	// state is checked after the promotion, so that such a reload is not missed.
	if reason := r.confirm(x, o.upstream); reason != allowlist.NoReason {
		r.release() // before the answer is written, which may take long
		return x.refuse(ctx, reason)
	}
	x.pending.Status = o.status
	if text := x.bound.text(); text != "" {
		x.pending.SetDetail(text)
	}
	if x.pending.Commit(context.WithoutCancel(ctx)) != nil {
		r.release()
		return x.refuse(ctx, allowlist.AuditUnavailable)
	}
	handed = true
	lasting := x.ctx
	if x.read.Stream {
		r.place = x.place
	}
	return front.Answer{
		Kind: front.Opened, Note: noteOf(x), Switched: o.switched,
		Done: func(err error) { r.answered(lasting, x, &o, err) }, // a tunnel keeps nothing of the context of its request
		Run:  func() { r.run(lasting) },
	}
}

// newRelay returns the tunnel, which takes over the lease and the registration of the
// request.
func newRelay(x *request, o *opening) *relay {
	r := &relay{proxy: x.proxy, conn: o.conn, lease: x.lease, registration: x.registration}
	cfg := x.proxy.cfg.Tunnel
	cfg.Progress = func(up, down int64) { r.record.Progress(up, down) }
	cfg.Spend = x.lease.Spend
	r.Init(x.read.Client, o.conn, cfg)
	x.registration.promote(o.upstream, &r.Tunnel)
	x.lease, x.registration = nil, nil
	return r
}

// confirm checks the tunnel against the state in force. A new state may allow the address
// by another name than before, or by the same name over another way. The registration
// then gets that name and way, so that later states decide about them, and is checked
// again, because a state may have come into force before the registration was changed.
func (r *relay) confirm(x *request, to resolvedAddr) allowlist.Reason {
	known := x.decision.Dest
	for {
		state := x.state
		reason := x.confirm(to)
		if reason == allowlist.NoReason { // a shutdown ends what every state allows
			if reason = r.registration.endReason(); reason != allowlist.NoReason {
				decideAsEnded(x, r.registration)
			}
		}
		dest := x.decision.Dest
		if reason != allowlist.NoReason || dest == known && (x.state == state || !x.bound.addr.IsValid()) {
			return reason
		}
		known, to.way = dest, x.bound.way
		r.registration.entry.Change(func(d *live.Decided) { d.Request.Dest, d.Way = dest, to.way })
	}
}

// decideAsEnded decides the request by the state that has told its registration to end, if
// there is one, for a request that is refused for that although a later state allows it.
// The record then names the state that has refused.
func decideAsEnded(x *request, r *registration) {
	if by := r.entry.EndedBy(); by != nil && by != x.state {
		x.state = by
		x.decide(time.Now())
	}
}

// answered begins the record of the tunnel after its client was answered. If the answer
// could not be written (err), it ends the tunnel.
func (r *relay) answered(ctx context.Context, x *request, o *opening, err error) {
	began := false
	defer func() {
		if !began {
			r.release()
			r.place.leave()
		}
	}()
	if err != nil {
		why := r.registration.endReason()
		x.cause = writeErrorText(err)
		x.noteUnanswered(why)
		x.pending.End()
		if x.pending.Committed() || x.sent { // the decision was recorded as allowed, or the request has gone out
			reason := tunnel.Client
			if why != allowlist.NoReason {
				reason, why = closeReasons(why)
			}
			x.pending.InitTunnel(&r.record)
			r.record.Close(ctx, o.up, 0, reason, why)
		}
		return
	}
	x.pending.End()
	x.pending.InitTunnel(&r.record)
	r.early = x.read.Early()
	r.Guard(newFirstBytes(x, r, o.upstream.addr).gate(ctx, x.proxy.cfg.HelloTimeout))
	if x.read.Client.SetDeadline(time.Time{}) != nil {
		r.Close(tunnel.Error)
	}
	if !x.read.Stream { // a stream ends with its connection
		r.stopCloseOnCancel = context.AfterFunc(ctx, func() { r.Close(tunnel.Drain) })
	}
	began = true
}

// closeReasons returns the close reason of a tunnel or exchange that was ended for why, and
// the reason for its record. After a shutdown the record has NoReason, because a shutdown
// is no denial by policy.
func closeReasons(why allowlist.Reason) (tunnel.Reason, allowlist.Reason) {
	reason := live.EndedBy(why)
	if reason == tunnel.Drain {
		why = allowlist.NoReason
	}
	return reason, why
}

// run relays until the tunnel ends, and ends its record.
func (r *relay) run(ctx context.Context) {
	var result tunnel.Result
	defer func() { r.end(ctx, result, recover()) }()
	early := r.early
	r.early = nil // free its memory while the tunnel lasts
	result = r.Run(early)
}

// end ends the record of the tunnel, also after a panic with a cause, and releases what the
// tunnel used.
func (r *relay) end(ctx context.Context, result tunnel.Result, cause any) {
	defer r.place.leave()
	defer r.release()
	if cause != nil {
		result.Reason, result.Err = tunnel.Error, errPanicked
		r.proxy.Panicked(ctx, cause, debug.Stack())
	}
	if r.stopCloseOnCancel != nil {
		r.stopCloseOnCancel()
	} else if result.Reason == tunnel.Error && ctx.Err() != nil {
		result.Reason, result.Err = tunnel.Drain, nil
	}
	switch {
	case result.Err != nil:
		r.record.SetDetail(result.Err.Error())
	case result.Reason == tunnel.Limit:
		r.record.SetDetail(r.lease.Over().String())
	}
	up, down := r.Counts()
	r.record.Close(ctx, up, down, result.Reason, r.endReason(result.Reason))
}

// endReason returns the reason for which the tunnel was refused or ended; NoReason if it
// ended by itself.
func (r *relay) endReason(ended tunnel.Reason) allowlist.Reason {
	switch ended { //nolint:exhaustive // the others are no refusals
	case tunnel.Revoked, tunnel.Quarantined:
		return r.registration.endReason()
	case tunnel.Denied:
		return r.denied
	case tunnel.Limit:
		return allowlist.UploadLimit
	}
	return allowlist.NoReason
}

// errPanicked is the text of a panic in records.
var errPanicked = errors.New("the gateway panicked: its log has the stack")

// release closes the connection to the origin, gives the lease back and removes the
// registration. A second call does nothing.
func (r *relay) release() {
	_ = r.conn.Close()
	if r.lease != nil {
		r.lease.Close()
		r.lease = nil
	}
	r.registration.remove()
}

// confirm checks the decision and the address against the state in force. It decides again
// if another state has come into force since the decision, or a date has passed. A request
// that has asked the origin for an upgrade must still be allowed as an upgrade.
func (x *request) confirm(to resolvedAddr) allowlist.Reason {
	upgrade := x.decision.Upgrade
	if x.proxy.cfg.Current.Load() == x.state {
		req := x.decision.Request
		req.Time = time.Now() // a date in the same state may have passed since the decision
		if d := x.state.Decide(req); d.Verdict == x.decision.Verdict && d.CheckAddr(to.addr) == nil && d.CheckWay(to.way) == allowlist.NoReason {
			return allowlist.NoReason
		}
	}
	if reason := x.decideAgain(); reason != allowlist.NoReason {
		return reason
	}
	if x.decision.Upgrade != upgrade {
		x.decision.Upgrade = upgrade
		return allowlist.UpgradeNotAllowed
	}
	if x.asked.Dest.Host.IsAddr() { // the address may be allowed by another name than before, or by none
		to.way = x.bound.way
	}
	if err := x.decision.CheckAddr(to.addr); err != nil {
		if refused, ok := errors.AsType[*allowlist.AddrError](err); ok {
			x.pending.Class, x.pending.Refused = refused.Class, []netip.Addr{refused.Addr.Addr()}
		}
		x.cause = err.Error()
		return allowlist.ResolvedAddressDenied
	}
	return x.decision.CheckWay(to.way)
}
