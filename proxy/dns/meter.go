package dns

import (
	"io"
	"net"
	"sync/atomic"

	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// bytesPerQuery is how many bytes a request over HTTP may take without counting
// more than once. Most have a few hundred.
const bytesPerQuery = 1 << 10

// meter is a connection over HTTP that takes queries from the caller's budget for
// bytes that are no part of a request: pings, settings, streams that are broken or
// reset before a handler sees them, heads that are too long. When the budget is
// spent it reads nothing more, as if the client had gone.
type meter struct {
	net.Conn

	// free is how many bytes may be read before a handler has taken the requests
	// that they hold: with HTTP/2 one read may bring as many as may be under way.
	free  int64
	spend func() bool  // takes a query from the budget
	since atomic.Int64 // bytes that belong to no request that a handler took
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	since := m.since.Add(int64(n))
	for ; since >= m.free+bytesPerQuery; since = m.since.Add(-bytesPerQuery) {
		if !m.spend() {
			return 0, io.EOF // net/http would answer any other error
		}
	}
	return n, err
}

// taken is told that a handler has taken a request, which counts by itself.
func (m *meter) taken() {
	for {
		since := m.since.Load()
		if m.since.CompareAndSwap(since, max(0, since-bytesPerQuery)) {
			return
		}
	}
}

// spendQuery takes a query from the caller's budget and reports whether there was
// one left.
func (s *Server) spendQuery(caller *listen.Caller) bool {
	return s.cfg.Budgets.Query(s.cfg.Current.Load().Limiting(), caller.Holder()) == limit.NoKey
}
