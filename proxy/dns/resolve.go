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

// answerFromCache answers an allowed query from the cache. It returns false if a server
// must be asked.
func (x *exchange) answerFromCache() bool {
	answer, ok := x.server.cfg.Resolver.Cached(x.query.resolverQuestion(), x.start)
	if ok {
		x.answer(answer, x.start)
	}
	return ok
}

// lookUp looks up the name of an allowed query and writes the answer. The caller has
// counted the look-up in usage.
func (x *exchange) lookUp(ctx context.Context) {
	begin := time.Now()
	answer, err := x.server.cfg.Resolver.Lookup(ctx, resolve.Asker{
		Holder: x.caller.Holder(), Wildcard: x.ruling.decision.Wildcard(), Follow: x.ruling.follows,
	}, x.query.resolverQuestion())
	now := time.Now()
	x.lookupTime = now.Sub(begin)
	if state := x.server.cfg.Current.Load(); state != x.ruling.state { // the query may be forbidden by now
		if x.ruling.setDecision(state, &x.caller, &x.query, now); !x.ruling.decision.Allowed() {
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

// resolverQuestion returns the question for the resolver.
func (q *query) resolverQuestion() resolve.Question {
	return resolve.Question{Name: q.host, Type: uint16(q.typ)}
}

// forbid refuses a query that was allowed before its look-up and is not any more.
// answer and err are the result of the look-up. A query that may have been sent to a
// server is cut off and not denied, because the name has left the gateway.
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
