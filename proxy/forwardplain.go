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

// forwardPlain forwards a plain request to its origin and the answer to the client. It
// tries again if a state has ended a try and the state after it allows the request.
func forwardPlain(ctx context.Context, x *request) front.Answer {
	var record *audit.Tunnel
	for {
		f := &forwardAttempt{request: x, start: time.Now(), record: record}
		res := f.try(ctx)
		if ctx.Err() != nil && res.Reason != allowlist.NoReason {
			res.Reason, res.Dialed, res.Err = front.GoneReason(ctx), nil, context.Cause(ctx)
		}
		x.sent = res.Sent
		switch {
		case res.Switched != nil:
			x.afterRefusal = func() { f.close(ctx, res) } // if the tunnel is refused after all
			return open(ctx, x, opening{
				conn: res.Switched.Conn, upstream: resolvedAddr{res.Switched.Dialed.Addr, res.Switched.Dialed.Way},
				status: http.StatusSwitchingProtocols, switched: res.Switched.Head, up: res.Up,
			})
		case res.Reason == allowlist.NoReason:
			if res.Limited {
				x.cutReason = allowlist.UploadLimit
			}
			x.registration.remove()
			f.close(ctx, res)
			return front.Answer{Kind: front.Forwarded, End: endOf(res)}
		}
		again, reason := f.failed(ctx, res)
		if reason == res.Reason {
			f.noteFailure(&res)
		}
		if again {
			if x.pending.Committed() { // recorded as allowed, so that its end must be recorded too
				record = f.record
			}
			continue
		}
		x.afterRefusal = func() { f.close(ctx, res) }
		answer := x.refuse(ctx, reason)
		answer.WasAllowed = true
		return answer
	}
}

// noteFailure notes why there is no answer, for the record.
func (f *forwardAttempt) noteFailure(res *forward.Result) {
	if res.Reason == allowlist.UploadLimit {
		f.cause = f.spentLimit.String()
		return
	}
	noteError(f.request, res.Err)
}

// endOf returns what to do with the connection of the client after an answer. After a
// complete answer that no request may follow, the client may still be sending, for example
// because the origin has not waited for the body.
func endOf(res forward.Result) front.End {
	switch {
	case res.Reusable:
		return front.Keep
	case res.Cut:
		return front.Abort
	case res.Linger:
		return front.Linger
	}
	return front.Close
}

// forwardAttempt is one attempt to forward a plain request.
type forwardAttempt struct {
	*request

	start           time.Time
	tryRegistration *registration    // registration of this attempt; request.registration too, until the request becomes a tunnel
	record          *audit.Tunnel    // record of the exchange; nil until this or an earlier try is about to go out
	spentLimit      limit.Key        // limit of uploaded bytes that was reached, if the attempt ended for that reason
	retryReason     allowlist.Reason // why another try must follow; NoReason if none must
	up, down        atomic.Int64     // bytes so far
}

// try carries out the attempt.
func (f *forwardAttempt) try(ctx context.Context) forward.Result {
	x := f.request
	attempt := register(ctx, x, f.counts) // ends if a state forbids the request
	f.tryRegistration = x.registration
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
	res := x.proxy.forwarder.Forward(attempt, &forward.Exchange{
		Decision: x.decision, Head: x.read.Head, URL: x.read.URL, Body: x.read.Body, Reader: x.read.Reader, Client: x.read.Client,
		Logins:    &x.logins,
		Spend:     x.lease.Spend,
		Upgrade:   upgrade,
		Note:      func() string { return noteOf(x) },
		Last:      x.proxy.h1.IsDraining,
		Connected: func(u forward.Upstream) error { return f.connected(ctx, u) },
		Answer: func(status int, problem string, write func() error) error {
			return f.answered(ctx, status, problem, write)
		},
		Progress: f.progress,
	})
	panics = false
	f.spentLimit = x.lease.Over()
	return res
}

func (f *forwardAttempt) counts() (up, down int64) { return f.up.Load(), f.down.Load() }

func (f *forwardAttempt) progress(up, down int64) {
	f.up.Store(up)
	f.down.Store(down)
	if f.record != nil {
		f.record.Progress(up, down)
	}
}

// connected checks the address of a connection that the request is about to go out on. The
// state in force must allow the request with this address.
func (f *forwardAttempt) connected(ctx context.Context, u forward.Upstream) error {
	x := f.request
	x.dialed(ctx, f.start, u.Dialed, nil)
	to := resolvedAddr{u.Dialed.Addr, u.Dialed.Way}
	f.tryRegistration.setAddr(to)
	// The transport may use a connection that is ready even after the exchange has
	// been ended.
	if why := f.endReason(); why != allowlist.NoReason {
		return &allowlist.ReasonError{Reason: why}
	}
	if reason := x.confirm(to); reason != allowlist.NoReason {
		if reason == allowlist.UpgradeNotAllowed {
			f.retryReason = reason // the upgrade is optional: the request is tried again without it
		}
		return &allowlist.ReasonError{Reason: reason}
	}
	// If records are required, the decision is recorded before a byte of the request
	// goes out. The record then lacks the status, which is not known yet.
	if x.proxy.cfg.Recorder.Required() {
		if err := x.pending.Commit(context.WithoutCancel(ctx)); err != nil {
			return &allowlist.ReasonError{Reason: allowlist.AuditUnavailable, Err: err}
		}
	}
	if f.record == nil {
		f.record = x.pending.Tunnel()
	}
	return nil
}

// answered records the decision with the status of the answer, and with what the client
// cannot do with it. Then it calls write, which sends the head of the answer.
func (f *forwardAttempt) answered(ctx context.Context, status int, problem string, write func() error) error {
	x := f.request
	if why := f.endReason(); why != allowlist.NoReason {
		return &allowlist.ReasonError{Reason: why}
	}
	x.pending.Status = status
	if problem != "" {
		x.pending.SetDetail(problem)
	}
	if err := x.pending.Commit(context.WithoutCancel(ctx)); err != nil {
		return &allowlist.ReasonError{Reason: allowlist.AuditUnavailable, Err: err}
	}
	err := write()
	if err != nil {
		x.sent = true
		x.cause = writeErrorText(err)
		x.noteUnanswered(f.endReason())
	}
	x.pending.End()
	return err
}

// endReason returns the reason for which a state has ended the try, or for which another
// try must follow; NoReason if neither is so.
func (f *forwardAttempt) endReason() allowlist.Reason {
	if why := f.tryRegistration.endReason(); why != allowlist.NoReason {
		return why
	}
	return f.retryReason
}

// failed reports whether the request is to be tried again after a try without an answer:
// if a state has ended the try before anything went out, and the state in force allows the
// request. The record then describes the last state only. Otherwise failed returns the
// reason for a refusal.
func (f *forwardAttempt) failed(ctx context.Context, res forward.Result) (again bool, reason allowlist.Reason) {
	x, why := f.request, f.endReason()
	switch {
	case why == allowlist.Draining, why != allowlist.NoReason && res.Sent:
		return false, why
	case why != allowlist.NoReason:
		if reason = x.decideAgain(); reason != allowlist.NoReason {
			return false, reason
		}
		if x.read.Body != 0 && f.record != nil { // a part of the body may have been read, and cannot be read again
			decideAsEnded(x, f.tryRegistration)
			return false, why
		}
		return true, allowlist.NoReason
	case !res.Sent && res.Reason == allowlist.ResolvedAddressDenied && x.asked.Upgrade == allowlist.MayUpgrade:
		// Without the upgrade, another rule may allow other addresses.
		x.asked.Upgrade = allowlist.NoUpgrade
		reason = x.decideAgain()
		return reason == allowlist.NoReason, reason
	}
	if res.Dialed != nil {
		return false, x.dialed(ctx, f.start, *res.Dialed, res.Err)
	}
	return false, res.Reason
}

// close records the end of an exchange that had a connection. An exchange that a state has
// ended before anything was sent is refused. Its end is recorded only if its decision has
// already been recorded as allowed.
func (f *forwardAttempt) close(ctx context.Context, res forward.Result) {
	reason, why := tunnel.Upstream, f.endReason()
	if f.record == nil || why != allowlist.NoReason && !res.Sent && !f.pending.Committed() {
		return
	}
	if why == allowlist.NoReason {
		why = f.cutReason
	}
	switch {
	case res.Complete: // a reason to end it comes too late
		why = allowlist.NoReason
	case why != allowlist.NoReason:
		reason, why = closeReasons(why)
	case res.Reason == allowlist.ClientGone:
		reason = tunnel.Client
	default:
		reason = tunnel.Error
	}
	switch {
	case reason == tunnel.Limit:
		f.record.SetDetail(f.spentLimit.String())
	case reason == tunnel.Error && res.Err != nil, reason == tunnel.Client && res.Err != nil:
		f.record.SetDetail(allowlist.DetailOf(res.Err))
	}
	f.record.Close(ctx, res.Up, res.Down, reason, why)
}
