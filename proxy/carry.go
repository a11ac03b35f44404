package proxy

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// carry carries a plain request to its origin and the answer back.
func carry(ctx context.Context, x *request) front.Answer {
	var record *audit.Tunnel
	for {
		f := &forwarding{request: x, start: time.Now(), record: record}
		res := f.carry(ctx)
		x.sent = res.Sent
		switch {
		case res.Switched != nil:
			x.afterRefusal = func() { f.close(ctx, res) } // then it became no tunnel
			return open(ctx, x, opening{
				conn: res.Switched.Conn, to: reached{res.Switched.Dialed.Addr, res.Switched.Dialed.Way},
				status: http.StatusSwitchingProtocols, switched: res.Switched.Head, up: res.Up,
			})
		case res.Reason == allowlist.NoReason:
			if res.Limited {
				x.cut = allowlist.UploadLimit
			}
			x.place.leave()
			f.close(ctx, res)
			return front.Answer{Kind: front.Forwarded, End: endOf(res)}
		}
		again, reason := f.failed(ctx, res)
		if reason == res.Reason {
			f.blame(&res)
		}
		if again {
			if x.open.Committed() { // as allowed, which has an end whatever comes of the next try
				record = f.record
			}
			continue
		}
		x.afterRefusal = func() { f.close(ctx, res) }
		answer := x.refuse(ctx, reason)
		answer.MayRest = true
		return answer
	}
}

// blame notes why there is no answer.
func (f *forwarding) blame(res *forward.Result) {
	if res.Reason == allowlist.UploadLimit {
		f.cause = f.spent.String()
		return
	}
	blame(f.request, res.Err)
}

// endOf says what is left to do with the connection of the client. Behind a whole
// answer on which no request may follow it may still be sending, as where the
// origin did not wait for the body.
func endOf(res forward.Result) front.End {
	switch {
	case res.Reusable:
		return front.Keep
	case res.Cut:
		return front.Abort
	case res.Complete:
		return front.Linger
	}
	return front.Close
}

// forwarding is one try to carry a plain request.
type forwarding struct {
	*request

	start    time.Time
	held     *place           // of this try; the request's own until that becomes a tunnel
	record   *audit.Tunnel    // nil until it goes out, or a try before was about to
	spent    limit.Key        // which limit of bytes it met, if it met one
	retry    allowlist.Reason // why this try was given up for another one; NoReason if it was not
	up, down atomic.Int64     // bytes so far
}

func (f *forwarding) carry(ctx context.Context) forward.Result {
	x := f.request
	under := register(ctx, x, f.counts)
	f.held = x.place
	upgrade := x.read.Protocols
	if x.decision.Upgrade == allowlist.NoUpgrade {
		upgrade = ""
	}
	panics := true
	defer func() {
		if panics {
			f.close(ctx, forward.Result{})
		}
	}()
	res := x.proxy.forwarder.Forward(under, &forward.Exchange{
		Decision: x.decision, Head: x.read.Head, URL: x.read.URL, Body: x.read.Body, Reader: x.read.Reader, Client: x.read.Client,
		Logins:    &x.logins,
		Spend:     x.lease.Spend,
		Upgrade:   upgrade,
		Last:      x.proxy.h1.IsDraining,
		Connected: func(u forward.Upstream) error { return f.connected(ctx, u) },
		Answer:    func(status int, write func() error) error { return f.answered(ctx, status, write) },
		Progress:  f.progress,
	})
	panics = false
	f.spent = x.lease.Over()
	return res
}

func (f *forwarding) counts() (up, down int64) { return f.up.Load(), f.down.Load() }

func (f *forwarding) progress(up, down int64) {
	f.up.Store(up)
	f.down.Store(down)
	if f.record != nil {
		f.record.Progress(up, down)
	}
}

// connected looks at a connection that the request is about to go out on: its
// address must be one that the decision lets through, by the state of now.
func (f *forwarding) connected(ctx context.Context, u forward.Upstream) error {
	x := f.request
	x.dialed(ctx, f.start, u.Dialed, nil)
	to := reached{u.Dialed.Addr, u.Dialed.Way}
	f.held.at(to)
	// The transport takes a connection that is ready also when the exchange has
	// been ended.
	if why := f.why(); why != allowlist.NoReason {
		return &allowlist.ReasonError{Reason: why}
	}
	if reason := x.confirm(to); reason != allowlist.NoReason {
		if reason == allowlist.UpgradeNotAllowed {
			f.retry = reason // a client that need not upgrade is asked for again, without
		}
		return &allowlist.ReasonError{Reason: reason}
	}
	// What must be recorded is recorded before anything of it goes out, at the
	// price of the status, which nobody knows yet.
	if x.proxy.cfg.Recorder.Required() {
		if err := x.open.Commit(context.WithoutCancel(ctx)); err != nil {
			return &allowlist.ReasonError{Reason: allowlist.AuditUnavailable, Err: err}
		}
	}
	if f.record == nil {
		f.record = x.open.Tunnel()
	}
	return nil
}

// answered records the decision with the status of the answer, and has it sent.
func (f *forwarding) answered(ctx context.Context, status int, write func() error) error {
	x := f.request
	if why := f.why(); why != allowlist.NoReason {
		return &allowlist.ReasonError{Reason: why}
	}
	x.open.Status = status
	if err := x.open.Commit(context.WithoutCancel(ctx)); err != nil {
		return &allowlist.ReasonError{Reason: allowlist.AuditUnavailable, Err: err}
	}
	err := write()
	if err != nil {
		x.sent = true
		x.cause = unwritten(err)
		x.unanswered(f.why())
	}
	x.open.End()
	return err
}

// why returns by which reason a state has ended the exchange, or for which it is
// to be tried again.
func (f *forwarding) why() allowlist.Reason {
	if why := f.held.why(); why != allowlist.NoReason {
		return why
	}
	return f.retry
}

// failed reports whether the request is to be tried again: when a state has ended
// this try before anything went out, and the state of now allows the request again.
// The record then tells of one state, the last. Otherwise it returns the reason for
// a refusal.
func (f *forwarding) failed(ctx context.Context, res forward.Result) (again bool, reason allowlist.Reason) {
	x, why := f.request, f.why()
	switch {
	case why == allowlist.Draining, why != allowlist.NoReason && res.Sent:
		return false, why
	case why != allowlist.NoReason:
		if reason = x.again(); reason != allowlist.NoReason {
			return false, reason
		}
		if x.read.Body != 0 && f.record != nil { // some of it may have been read, which nobody can read again
			return false, why
		}
		return true, allowlist.NoReason
	case !res.Sent && res.Reason == allowlist.ResolvedAddressDenied && x.asked.Upgrade == allowlist.MayUpgrade:
		// The rule for upgrades opens other addresses than the one for the rest.
		x.asked.Upgrade = allowlist.NoUpgrade
		reason = x.again()
		return reason == allowlist.NoReason, reason
	}
	if res.Dialed != nil {
		return false, x.dialed(ctx, f.start, *res.Dialed, res.Err)
	}
	return false, res.Reason
}

// close records the end of an exchange that had a connection. One that was ended
// before anything was sent is refused, and has a record of its end only if its
// decision was recorded as allowed before.
func (f *forwarding) close(ctx context.Context, res forward.Result) {
	reason, why := tunnel.Upstream, f.why()
	if f.record == nil || why != allowlist.NoReason && !res.Sent && !f.open.Committed() {
		return
	}
	if why == allowlist.NoReason {
		why = f.cut
	}
	switch {
	case res.Complete: // what ends it now comes too late
		why = allowlist.NoReason
	case why != allowlist.NoReason:
		reason, why = ending(why)
	case res.Reason == allowlist.ClientGone:
		reason = tunnel.Client
	default:
		reason = tunnel.Error
	}
	switch {
	case reason == tunnel.Limit:
		f.record.Blame(f.spent.String())
	case reason == tunnel.Error && res.Err != nil, reason == tunnel.Client && res.Err != nil:
		f.record.Blame(allowlist.DetailOf(res.Err))
	}
	f.record.Close(ctx, res.Up, res.Down, reason, why)
}
