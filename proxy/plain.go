package proxy

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// isPlain reports whether the request is for the gateway to forward and not for
// a tunnel. A CONNECT in another case is neither, and refused as such.
func (x *exchange) isPlain() bool { return x.head != nil && !isConnect(x.head.Method) }

func isConnect(method string) bool { return strings.EqualFold(method, http.MethodConnect) }

// parsePlain makes the one canonical destination of a plain request, and finds
// out where it ends. The Host field has no say: the target names the origin
// (RFC 9112 section 3.2.2).
func (x *exchange) parsePlain() allowlist.Reason {
	url, err := allowlist.ParseURL(x.head.Target)
	if err != nil {
		return x.malformed(err)
	}
	if url.NoPath && x.head.Method == http.MethodOptions {
		url.Path = allowlist.Asterisk
	}
	x.url = url
	x.ask(allowlist.Request{Dest: url.Dest, Method: x.head.Method, Path: url.Path})
	if x.body, err = x.head.Body(); err != nil {
		x.detail = err.Error()
		return allowlist.MalformedHeader
	}
	forwards, bounded, err := x.head.MaxForwards()
	if err != nil {
		x.detail = err.Error()
		return allowlist.MalformedHeader
	}
	x.stopsHere = bounded && forwards == 0
	if x.request.Upgrade = x.wantsUpgrade(); url.WebSocket && x.request.Upgrade != allowlist.MustUpgrade {
		x.detail = "malformed target: a ws URL asks for an upgrade, which neither HTTP/1.0 nor a request with a body has"
		return allowlist.MalformedTarget
	}
	return allowlist.NoReason
}

// wantsUpgrade notes which protocols the request asks for, and returns whether
// it may or must become a tunnel (RFC 9110 section 7.8). A request of HTTP/1.0
// does not ask, nor does one with a body: the field is left out of it, which a
// proxy may do. A ws URL asks by itself.
func (x *exchange) wantsUpgrade() allowlist.Upgrade {
	if x.head.Minor == 0 || x.body != 0 || !x.url.WebSocket && !x.head.Lists("Connection", "upgrade") {
		return allowlist.NoUpgrade
	}
	protocols, demanded := forward.Protocols(x.head)
	if x.url.WebSocket && !demanded {
		protocols, demanded = "websocket", true
	}
	x.upgrade = protocols
	switch {
	case demanded:
		return allowlist.MustUpgrade
	case protocols != "":
		return allowlist.MayUpgrade
	}
	return allowlist.NoUpgrade
}

// forward carries a plain request to its origin and the answer back. It reports
// whether another request may follow on the connection.
func (x *exchange) forward(ctx context.Context) bool {
	var record *audit.Tunnel
	for {
		f := &forwarding{exchange: x, start: time.Now(), record: record}
		res := f.carry(ctx)
		x.sent = res.Sent
		switch {
		case res.Switched != nil:
			x.after = func() { f.close(ctx, res) } // it became no tunnel
			return x.relay(ctx, opening{
				conn: res.Switched.Conn, addr: res.Switched.Dialed.Addr,
				status: http.StatusSwitchingProtocols, answer: res.Switched.Head, up: res.Up,
			})
		case res.Reason == allowlist.NoReason:
			if res.Limited {
				x.cut = allowlist.UploadLimit
			}
			x.settle()
			f.close(ctx, res)
			f.part(res)
			x.rested = res.Reusable
			return res.Reusable
		}
		reason := f.failed(ctx, res)
		if reason == allowlist.NoReason {
			if x.open.Committed() { // as allowed, which has an end whatever comes of the next try
				record = f.record
			}
			continue
		}
		x.after = func() {
			x.settle()
			f.close(ctx, res)
		}
		x.rested = x.refuse(ctx, reason)
		return x.rested
	}
}

// part ends a connection on which no request follows. Behind a whole answer the
// client may still be sending, as where the origin did not wait for the body.
func (f *forwarding) part(res forward.Result) {
	switch {
	case res.Cut:
		f.conn.Abort()
	case res.Complete && !res.Reusable:
		f.release()
		f.linger()
	}
}

// forwarding is one try to carry a plain request.
type forwarding struct {
	*exchange
	start   time.Time
	pending *underway     // in the registry until the request goes out; then
	entry   *underway     // this is, with its address
	record  *audit.Tunnel // nil until it goes out, or a try before was about to
}

func (f *forwarding) carry(ctx context.Context) forward.Result {
	x := f.exchange
	var under context.Context
	f.pending, under = x.pend(ctx)
	under, cancel := context.WithCancel(under)
	settle := x.settled
	x.settled = func() { // the last of them leaves the registry when the answer is sent, or the tunnel is in it
		cancel()
		if f.entry != nil {
			x.proxy.cfg.Registry.Remove(&f.entry.Tunnel)
		}
		settle()
	}
	upgrade := x.upgrade
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
		Decision: x.decision, Head: x.head, URL: x.url, Body: x.body, Reader: x.reader, Client: x.conn,
		Logins:    &x.logins,
		Spend:     x.lease.Spend,
		Upgrade:   upgrade,
		Connected: func(u forward.Upstream) error { return f.connected(ctx, cancel, u) },
		Answer:    func(status int, write func() error) error { return f.answer(ctx, status, write) },
		Progress: func(up, down int64) {
			if f.record != nil {
				f.record.Progress(up, down)
			}
		},
	})
	panics = false
	return res
}

// connected looks at a connection that the request is about to go out on: its
// address must be one that the decision lets through, by the state of now.
func (f *forwarding) connected(ctx context.Context, cancel context.CancelFunc, u forward.Upstream) error {
	x := f.exchange
	x.dialed(ctx, f.start, u.Dialed, nil, f.pending)
	if f.entry != nil { // the transport tries again
		x.proxy.cfg.Registry.Remove(&f.entry.Tunnel)
	}
	ended := f.why()
	entry := x.entry(u.Dialed.Addr)
	entry.End = func(_ tunnel.Reason, why allowlist.Reason) {
		entry.ended(why)
		cancel()
	}
	f.entry = entry
	x.proxy.cfg.Registry.Add(&entry.Tunnel)
	x.proxy.cfg.Registry.Remove(&f.pending.Tunnel) // an exchange counts once
	if ended != allowlist.NoReason {               // while it was dialled, or on the connection before
		entry.ended(ended)
	}
	// The transport takes a connection that is ready also when the exchange has
	// been ended.
	if why := f.why(); why != allowlist.NoReason {
		return &allowlist.ReasonError{Reason: why}
	}
	if reason := x.confirm(u.Dialed.Addr); reason != allowlist.NoReason {
		if reason == allowlist.UpgradeNotAllowed {
			entry.ended(reason) // a client that need not upgrade is asked for again, without
		}
		return &allowlist.ReasonError{Reason: reason}
	}
	// What must be recorded is recorded before anything of it goes out, at the
	// price of the status, which nobody knows yet.
	if x.proxy.cfg.Recorder.Required() && x.open.Commit(context.WithoutCancel(ctx)) != nil {
		return &allowlist.ReasonError{Reason: allowlist.AuditUnavailable}
	}
	if f.record == nil {
		f.record = x.open.Tunnel()
	}
	return nil
}

// answer records the decision with the status of the answer, and has it sent.
func (f *forwarding) answer(ctx context.Context, status int, write func() error) error {
	x := f.exchange
	if why := f.why(); why != allowlist.NoReason {
		return &allowlist.ReasonError{Reason: why}
	}
	x.open.Status = status
	if x.open.Commit(context.WithoutCancel(ctx)) != nil {
		return &allowlist.ReasonError{Reason: allowlist.AuditUnavailable}
	}
	err := write()
	if err != nil {
		x.sent = true
		x.unanswered(f.why())
	}
	x.open.End()
	return err
}

// why returns by which reason a state has ended the exchange.
func (f *forwarding) why() allowlist.Reason {
	if f.entry != nil && f.entry.why() != allowlist.NoReason {
		return f.entry.why()
	}
	return f.pending.why()
}

// failed returns the reason for a refusal, or NoReason for another try: when a
// state has ended this one before anything went out, and the state of now allows
// the request again. The record then tells of one state, the last.
func (f *forwarding) failed(ctx context.Context, res forward.Result) allowlist.Reason {
	x, why := f.exchange, f.why()
	switch {
	case why == allowlist.Draining, why != allowlist.NoReason && res.Sent:
		return why
	case why != allowlist.NoReason:
		if reason := x.again(); reason != allowlist.NoReason {
			return reason
		}
		if x.body != 0 && f.record != nil { // some of it may have been read, which nobody can read again
			return why
		}
		x.settle()
		return allowlist.NoReason
	case !res.Sent && res.Reason == allowlist.ResolvedAddressDenied && x.request.Upgrade == allowlist.MayUpgrade:
		// The rule for upgrades opens other addresses than the one for the rest.
		x.request.Upgrade = allowlist.NoUpgrade
		if reason := x.again(); reason != allowlist.NoReason {
			return reason
		}
		x.settle()
		return allowlist.NoReason
	}
	if res.Dialed != nil {
		return x.dialed(ctx, f.start, *res.Dialed, res.Err, f.pending)
	}
	return res.Reason
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
	f.record.Close(ctx, res.Up, res.Down, reason, why)
}
