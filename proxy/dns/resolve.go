package dns

import (
	"cmp"
	"context"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// recall answers an allowed query from what the resolver knows already. It
// reports false if a server has to be asked.
func (x *exchange) recall() bool {
	answer, ok := x.server.cfg.Resolver.Cached(x.query.lookup(), x.start)
	if ok {
		x.answer(answer, x.start)
	}
	return ok
}

// look looks the name of an allowed query up and answers. Its caller holds a
// place in the usage.
func (x *exchange) look(ctx context.Context) {
	begin := time.Now()
	answer, err := x.server.cfg.Resolver.Lookup(ctx, resolve.Asker{
		Holder: x.caller.Holder(), Wildcard: x.ruling.decision.Wildcard(), Follow: x.ruling.follows,
	}, x.query.lookup())
	now := time.Now()
	x.looked = now.Sub(begin)
	if state := x.server.cfg.Current.Load(); state != x.ruling.state { // what was allowed then may be forbidden now
		if x.ruling.ask(state, &x.caller, &x.query, now); !x.ruling.decision.Allowed() {
			x.ruling.forbid(answer, err)
			return
		}
	}
	if err == nil {
		x.answer(answer, now)
		return
	}
	x.ruling.reason, x.ruling.failure = allowlist.ReasonOf(err), resolve.FailureOf(err)
	x.ruling.detail = cmp.Or(allowlist.DetailOf(err), x.ruling.failure.Detail)
	if limit.NoDescriptor(err) {
		x.ruling.detail = x.ruling.failure.Detail
	}
}

// lookup is the question for the resolver.
func (q *query) lookup() resolve.Question {
	return resolve.Question{Name: q.host, Type: uint16(q.typ)}
}

// forbid refuses a query that was allowed when it was looked up, with what came
// of that. One that may have been sent to a server is cut off, and not denied: the
// name has left.
func (r *ruling) forbid(answer resolve.Answer, err error) {
	r.reason = r.decision.Reason
	if allowlist.ReasonOf(err) == allowlist.NameBudget {
		return
	}
	if origin := answer.Origin(); err == nil && (origin == resolve.OriginCache || origin == resolve.OriginLocal) {
		return
	}
	r.reason, r.detail = allowlist.CutOff, live.EndedBy(r.reason).String()
}
