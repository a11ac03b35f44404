package dns

import (
	"context"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// isOverLimit reports whether a caller has more connections than it may. Its first query is
// refused, whatever it asks, and the connection ends.
func isOverLimit(c *listen.Caller) bool {
	_, over := c.OverLimit()
	return over != limit.NoKey
}

// refuseOverLimit sets the reason to refuse a caller that is over a limit: Busy if
// the gateway has no slot left, and RateLimited if the caller's own share is used up.
func (r *ruling) refuseOverLimit(from *transport, c *listen.Caller) {
	r.overLimit, r.reason = true, allowlist.RateLimited
	if c.Busy && !c.Crowded {
		r.reason = allowlist.Busy
	}
	detail, key := c.OverLimit()
	switch {
	case key != limit.KeyConnections, from.shared:
	case c.Crowded:
		key = limit.KeyDNSConnectionsPerIdentity
	default:
		key = limit.KeyDNSConnections
	}
	r.detail = key.WithDetail(detail)
}

// recordUnanswered records the refusal of a caller that is over a limit and has sent no
// query before its connection ended. A connection that was closed for want of a slot has
// been counted instead.
func (s *Server) recordUnanswered(ctx context.Context, from transport, conn *listen.Conn) {
	if !isOverLimit(&conn.Caller) || conn.LostSlot() {
		return
	}
	x := s.getExchange(from, nil, &conn.Caller)
	x.query.reset()
	x.kind, x.response.silent = noHost, true
	x.ruling.refuseOverLimit(&x.transport, &x.caller)
	x.finishRecord(ctx, nil)
	s.putExchange(x)
}
