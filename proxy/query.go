package proxy

import (
	"context"
	"runtime/debug"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// AnswerQuery answers a request that may contain a DNS query. It decides the query, records
// it and spends its budget, and calls MarkUsed of the connection. The caller is Busy also if
// there is no slot for the query.
type AnswerQuery func(ctx context.Context, from listen.Verified, r *front.Request) front.Answer

// answerQuery passes a request that may contain a query to the function for queries. It
// takes the slots that any other request takes, unless the caller has no identity or is
// over a limit: its connection would keep a slot of such callers as long as it holds back
// the body or the window for the answer. After a panic there is no answer.
func (s *session) answerQuery(ctx context.Context, read *front.Request) (a front.Answer) {
	from := s.verify()
	var slots *place // nil if the query takes none
	defer func() {
		if cause := recover(); cause != nil {
			slots.leave()
			s.proxy.Panicked(ctx, cause, debug.Stack())
			a = front.Answer{Kind: front.Forwarded, End: front.Abort}
		}
	}()
	if reason, _, _ := overLimit(&from.Caller); reason == allowlist.NoReason && from.Caller.Reason == allowlist.NoReason {
		slots = s.takePlace(read.Stream)
		from.Caller.Busy = slots.denied != ""
	} else {
		from.Caller.Busy = from.Caller.Busy || s.conn.LostSlot()
	}
	a = s.proxy.cfg.Query(ctx, from, read)
	if read.Stream && slots != nil && slots.denied != "" {
		a.Last = false // only this stream has no slot
	}
	answered := a.Done
	a.Done = func(err error) {
		defer slots.leave()
		if answered != nil {
			answered(err)
		}
	}
	return a
}

// verify returns the caller, re-verified if the trust bundles have changed.
func (s *session) verify() listen.Verified {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.Renew()
	return listen.VerifiedOf(s.conn)
}
