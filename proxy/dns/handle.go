package dns

import (
	"context"
	"sync"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// door sends responses back to where their queries came in.
type door interface {
	// reply sends the response of an exchange, if it has one, and then calls
	// its done. It must not wait for the client for long.
	reply(ctx context.Context, x *exchange)
}

// handle answers a query: at once, or from a goroutine of the group if a server
// has to be asked, or the record to be waited for. The packet is not kept.
func (s *Server) handle(ctx context.Context, lookups *sync.WaitGroup, x *exchange, msg []byte) {
	defer x.rescue(ctx)
	answered := x.receive(msg)
	if answered && (!s.cfg.Recorder.Required() || x.kind == noQuery) {
		x.complete(ctx)
		return
	}
	id := x.caller.ID
	switch all, own := s.usage.look(id); {
	case !all:
		x.reason = allowlist.Busy
		x.complete(ctx)
	case !own:
		x.reason = allowlist.RateLimited
		x.complete(ctx)
	default:
		lookups.Go(func() {
			defer s.usage.landed(id)
			defer x.rescue(ctx)
			if !answered {
				x.look(ctx)
			}
			x.complete(ctx)
		})
	}
}

// complete gives the response to the door.
func (x *exchange) complete(ctx context.Context) {
	x.settle(ctx)
	if x.sent.silent && x.kind != noQuery {
		x.server.counts.shed.Add(1)
	}
	x.replied = true
	x.door.reply(ctx, x)
}

// settle writes the response of a query that is refused, and the record of one
// that may not be answered before it is recorded.
func (x *exchange) settle(ctx context.Context) {
	refusal := x.reason != allowlist.NoReason || !x.decision.Allowed()
	if x.kind == noQuery || !refusal && !x.server.cfg.Recorder.Required() {
		return
	}
	x.begin(ctx, x.thin())
	id := x.open.ID
	if refusal {
		x.refuse(id)
	}
	x.fill(ctx)
	if x.sent.silent { // nobody is told anything, so that nobody need wait: all callers share the socket
		return
	}
	switch err := x.open.Commit(context.WithoutCancel(ctx)); {
	case err != nil:
		x.reason, x.hop, x.detail = allowlist.AuditUnavailable, allowlist.NoReason, ""
		x.refuse(id)
		x.fill(ctx)
	case x.open.ID != id: // it is one with an identical denial before it
		x.refuse(x.open.ID)
	}
}

// done ends the exchange, when the response was sent or could not be.
func (x *exchange) done(ctx context.Context, err error) {
	defer x.server.contain(ctx)
	if x.kind != noQuery {
		x.note(ctx, err)
	}
	x.server.give(x)
}

// note ends the record, or only counts the query if nothing is written of it.
func (x *exchange) note(ctx context.Context, err error) {
	if x.open == nil {
		thin := x.thin()
		if thin && err == nil && x.pass() {
			return
		}
		x.begin(ctx, thin)
		x.fill(ctx)
	}
	if err != nil {
		x.open.DNS.Code = "" // nobody has it
		if v := x.open.Verdict; v == allowlist.Allow || v == allowlist.Observe {
			x.open.Verdict, x.open.Reason = allowlist.Fail, allowlist.ClientGone // leaving hides no denial
		}
	}
	x.open.End()
}

// pass counts the query, if no sink wants its record. It allocates nothing.
func (x *exchange) pass() bool {
	rec := &x.opened.Record
	*rec = audit.Record{
		Time: x.start, Event: audit.EventDecision, Listener: x.listener, Protocol: audit.ProtocolDNS, Wire: x.wire,
	}
	x.describe(rec)
	return x.server.cfg.Recorder.Pass(rec)
}

func (x *exchange) begin(ctx context.Context, thin bool) {
	x.open = &x.opened
	x.server.cfg.Recorder.Reopen(ctx, x.open, audit.Start{
		Time: x.start, Listener: x.listener, Protocol: audit.ProtocolDNS, Wire: x.wire, NoSpan: thin,
	})
}

// thin reports whether the query has no span: one that was allowed and
// answered, if only some of those have one.
func (x *exchange) thin() bool {
	every := x.server.cfg.SpanEvery
	if every <= 1 || x.decision.Verdict != allowlist.Allow || x.reason != allowlist.NoReason {
		return false
	}
	return x.server.counts.allowed.Add(1)%every != 1
}

// fill notes everything that is known.
func (x *exchange) fill(ctx context.Context) {
	x.describe(&x.open.Record)
	if x.looked > 0 {
		x.open.Dialed(ctx, x.start, x.looked, 0, x.open.Reason)
	}
}

func (x *exchange) describe(rec *audit.Record) {
	rec.Client, rec.Identity, rec.Source = x.caller.Addr, x.caller.ID, x.caller.Source
	rec.Dest = allowlist.Destination{Host: x.query.host}
	if x.state != nil {
		rec.SetNameDecision(&x.decision)
		rec.Generation = x.state.Generation
	}
	if x.detail != "" {
		rec.Detail = x.detail
	}
	if x.reason != allowlist.NoReason {
		rec.Verdict, rec.Reason, rec.WouldReason = x.reason.Verdict(), x.reason, allowlist.NoReason
	}
	rec.Decide, rec.Resolve, rec.Class = x.decided, x.looked, x.class
	rec.DNS = audit.DNS{
		Type: x.query.typ, Answers: x.sent.answers, Filtered: x.sent.filtered, Source: x.sent.source,
	}
	if !x.sent.silent {
		rec.DNS.Code = codeText(x.sent.code)
	}
}

// rescue ends a query that panicked, and no other.
func (x *exchange) rescue(ctx context.Context) {
	cause := recover()
	if cause == nil {
		return
	}
	x.server.panicked(ctx, cause)
	if x.replied {
		return
	}
	defer x.giveUp(ctx)
	x.reason, x.hop, x.detail = allowlist.InternalError, allowlist.NoReason, ""
	x.complete(ctx)
}

// giveUp tells the door that nothing comes of a query whose answer panicked,
// too.
func (x *exchange) giveUp(ctx context.Context) {
	cause := recover()
	if cause == nil {
		return
	}
	x.server.panicked(ctx, cause)
	if !x.replied {
		x.replied, x.sent.silent = true, true
		x.door.reply(ctx, x)
	}
}
