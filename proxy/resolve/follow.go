package resolve

import (
	"context"
	"errors"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// errSlow is the error of an alias that could not be followed in time.
var errSlow = errors.New("no answer in time")

// follow looks up the target of the aliases in an open answer, at the servers for that
// name, until the answer is complete. Each target is looked up only if the asker may be
// led to it and to all names before it; if not, follow returns the open answer, whose
// alias the asker's filter refuses. The result is cached as the answer to the question:
// it contains all aliases, and each reader decides about each of them. An answer behind a
// special name is not cached, because only some callers may be led to it. No server is
// queried after the end of ctx.
func (r *Resolver) follow(ctx context.Context, a Asker, q Question, generation uint64, answer Answer) (Answer, error) {
	a.alias = true
	special := false
	for answer.msg.Open() {
		if !a.follows(answer) {
			return answer, nil
		}
		for hop := range answer.msg.Hops() {
			special = special || hop.IsSpecial()
		}
		target := answer.msg.End()
		if err := ctx.Err(); err != nil {
			return Answer{}, r.groups.aliasError(target, failure(err))
		}
		next, err := r.lookupOne(ctx, a, Question{Name: target, Type: q.Type})
		if err != nil {
			return Answer{}, r.groups.aliasError(target, err)
		}
		now := time.Now()
		msg, err := answer.msg.Join(answer.age(now), next.msg, next.age(now), q.Name)
		if err != nil {
			return Answer{}, failure(err)
		}
		answer = Answer{msg: msg, name: q.Name, at: now, origin: joinedOrigin(answer.origin, next.origin)}
	}
	if answer.origin != OriginStale && !special {
		r.cache.put(q, answer.msg, answer.at, generation)
	}
	return answer, nil
}

// follows reports whether the asker may be led to every name of an open answer.
func (a *Asker) follows(answer Answer) bool {
	if a.Follow == nil {
		return false
	}
	for hop := range answer.msg.Hops() {
		if !a.Follow(hop) {
			return false
		}
	}
	return true
}

// joinedOrigin returns the origin of an answer that was joined from two answers.
func joinedOrigin(a, b Origin) Origin {
	for _, o := range []Origin{OriginStale, OriginUpstream, OriginCache} {
		if a == o || b == o {
			return o
		}
	}
	return OriginLocal
}

// aliasError returns the error of looking up the target of an alias.
func (g *groups) aliasError(alias allowlist.Host, err error) error {
	reason := allowlist.ReasonOf(err)
	asked, ok := errors.AsType[*AskError](err)
	switch {
	case ok:
	case reason == allowlist.ResolveTimeout && errors.Is(err, context.DeadlineExceeded):
		asked = &AskError{} // the servers have time left, the look-up has none
		for _, u := range g.find(alias).servers {
			asked.add(u.server.String(), errSlow.Error(), err)
		}
	default:
		return err
	}
	return &allowlist.ReasonError{Reason: reason, Err: asked.forAlias(alias)}
}
