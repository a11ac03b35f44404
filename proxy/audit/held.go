package audit

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// held is a record that waits in the queues of several sinks. The last one that
// releases it returns it to the pool.
type held struct {
	Record

	answered [MaxAddresses]netip.Addr // backing array of DNS.Answered
	users    atomic.Int32
	pool     *sync.Pool
}

// hold returns a copy of a record with one user, the caller.
func hold(pool *sync.Pool, rec *Record) *held {
	h, ok := pool.Get().(*held)
	if !ok {
		h = &held{pool: pool}
	}
	h.Record = *rec
	h.DNS.Answered = append(h.answered[:0], rec.DNS.Answered...)
	h.users.Store(1)
	return h
}

// release ends one use.
func (h *held) release() {
	if h.users.Add(-1) == 0 {
		h.Record = Record{} // do not keep its strings alive
		h.pool.Put(h)
	}
}
