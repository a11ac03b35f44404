package audit

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// sharedRecord is a record that waits in the queues of several sinks. The last one that
// releases it returns it to the pool.
type sharedRecord struct {
	Record

	answered [MaxAddresses]netip.Addr // backing array of DNS.Answered
	users    atomic.Int32
	pool     *sync.Pool
}

// newSharedRecord returns a copy of a record with one user, the caller.
func newSharedRecord(pool *sync.Pool, rec *Record) *sharedRecord {
	h, ok := pool.Get().(*sharedRecord)
	if !ok {
		h = &sharedRecord{pool: pool}
	}
	h.Record = *rec
	h.DNS.Answered = append(h.answered[:0], rec.DNS.Answered...)
	h.users.Store(1)
	return h
}

// release ends one use.
func (h *sharedRecord) release() {
	if h.users.Add(-1) == 0 {
		h.Record = Record{} // do not keep its strings alive
		h.pool.Put(h)
	}
}
