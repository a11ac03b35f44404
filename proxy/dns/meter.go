package dns

import (
	"io"
	"net"
	"sync/atomic"

	"github.com/exeat-dev/exeat/proxy/listen"
)

// bytesPerQuery is how many bytes may come over HTTP before a request. Most
// requests have a few hundred.
const bytesPerQuery = 1 << 10

// meter is a connection over HTTP that takes queries from the caller's budget for
// bytes that are no part of a request: pings, settings, streams that are broken or
// reset before a handler sees them, heads that are too long. When the budget is
// spent it reads nothing more, as if the client had gone.
type meter struct {
	net.Conn

	spend func() bool  // takes a query from the budget
	since atomic.Int64 // bytes since the last request that a handler took
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	since := m.since.Add(int64(n))
	for ; since >= bytesPerQuery; since = m.since.Add(-bytesPerQuery) {
		if !m.spend() {
			return 0, io.EOF // net/http would answer any other error
		}
	}
	return n, err
}

// taken is told that a handler has taken a request, which counts by itself.
func (m *meter) taken() { m.since.Store(0) }

// spendQuery takes a query from the caller's budget and reports whether there was
// one left.
func (s *Server) spendQuery(caller *listen.Caller) bool {
	return s.cfg.Budgets.Query(s.cfg.Current.Load().Limiting(), caller.Holder())
}
