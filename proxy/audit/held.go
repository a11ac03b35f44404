package audit

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// held is a record that waits in the queues of sinks. Whoever lets it go last
// gives it back to be used again.
type held struct {
	Record

	answered [MaxAddresses]netip.Addr // what DNS.Answered has
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

// letGo ends one use.
func (h *held) letGo() {
	if h.users.Add(-1) == 0 {
		h.Record = Record{} // it keeps no text alive
		h.pool.Put(h)
	}
}
