package dns

import (
	"io"
	"net"
	"sync/atomic"

	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// bytesPerQuery is how many bytes of an HTTP request count as one query. Most requests
// have a few hundred bytes.
const bytesPerQuery = 1 << 10

// meter is a connection over HTTP that spends queries of the caller's budget for bytes
// that belong to no request: pings, settings, streams that are malformed or reset
// before a handler gets them, heads that are too long. When the budget is spent it
// reads nothing more, as if the client had left.
type meter struct {
	net.Conn

	// free is how many bytes may be read before handlers have begun the requests in
	// them: with HTTP/2 one read may return as many requests as may run at the same
	// time.
	free       int64
	spend      func() bool  // spends a query of the budget
	unassigned atomic.Int64 // bytes read that belong to no request which a handler has begun
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	since := m.unassigned.Add(int64(n))
	for ; since >= m.free+bytesPerQuery; since = m.unassigned.Add(-bytesPerQuery) {
		if !m.spend() {
			return 0, io.EOF // net/http would answer any other error
		}
	}
	return n, err
}

// requestBegan notes that a handler has begun a request, which is counted separately.
func (m *meter) requestBegan() {
	for {
		since := m.unassigned.Load()
		if m.unassigned.CompareAndSwap(since, max(0, since-bytesPerQuery)) {
			return
		}
	}
}

// spendQuery spends a query of the caller's budget, and reports whether there was one
// left.
func (s *Server) spendQuery(caller *listen.Caller) bool {
	return s.cfg.Budgets.Query(s.cfg.Current.Load().Limiting(), caller.Holder()) == limit.NoKey
}
