package proxy

import (
	"context"
	"crypto/x509"
	"runtime/debug"

	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// AnswerQuery answers a request that may contain a DNS query, for the caller as verified
// now. It decides the query, records it and spends its budget. It also calls MarkUsed, Begin
// and End of the connection.
type AnswerQuery func(ctx context.Context, conn *listen.Conn, caller listen.Caller, r *front.Request) front.Answer

// answerQuery passes a request that may contain a query to the function for queries. After a
// panic there is no answer, and the connection closes.
func (s *session) answerQuery(ctx context.Context, read *front.Request) (a front.Answer) {
	defer func() {
		if cause := recover(); cause != nil {
			s.proxy.Panicked(ctx, cause, debug.Stack())
			a = front.Answer{Kind: front.Forwarded, End: front.Close}
		}
	}()
	caller, _ := s.currentCaller()
	return s.proxy.cfg.Query(ctx, s.conn, caller, read)
}

// currentCaller returns the caller, re-verified if the trust bundles have changed, and the
// chain by which it was verified.
func (s *session) currentCaller() (listen.Caller, []*x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.Renew()
	return s.conn.Caller, s.conn.Certificates
}
