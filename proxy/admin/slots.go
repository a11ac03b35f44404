package admin

import (
	"net"
	"net/http"
	"sync"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// DefaultConnections is how many connections may be open. Probes and scrapers need few.
const DefaultConnections = 256

// connSlots gives connections slots of their own. There is always room for one more: the
// connection that has been without a request for the longest time is closed for it, or
// if all have a request, the one whose request came first. So a process that opens
// many, such as a workload that shares loopback, can use up neither the files that
// other listeners need nor the slot of the next probe.
type connSlots struct {
	slots *limit.Slots
	shed  func(limit.Cause)

	mu   sync.Mutex
	open map[net.Conn]*limit.Slot
}

func newConnSlots(most int, cut func(limit.Cause)) *connSlots {
	return &connSlots{
		slots: limit.NewSlots(limit.Shares{Unidentified: most, PerSource: most, AllYield: true}),
		shed:  cut, open: map[net.Conn]*limit.Slot{},
	}
}

// changed follows the states of a connection, as http.Server.ConnState.
func (b *connSlots) changed(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		b.enter(conn)
	case http.StateActive:
		b.slot(conn).Begin()
	case http.StateIdle:
		b.slot(conn).End()
	case http.StateClosed, http.StateHijacked:
		b.slot(conn).Leave()
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.open, conn)
	}
}

// enter takes a slot for a connection. All connections count for the same owner,
// because no client shows an identity here, and the prober may share the workload's
// address.
func (b *connSlots) enter(conn net.Conn) {
	slot := new(limit.Slot)
	cause := b.slots.Enter(slot, limit.Owner{}, func(cause limit.Cause) {
		_ = conn.Close()
		b.shed(cause)
	})
	if cause != limit.NoCause { // cannot happen as long as AllYield is set
		_ = conn.Close()
		b.shed(cause)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[conn] = slot
}

// slot returns the slot of a connection.
func (b *connSlots) slot(conn net.Conn) *limit.Slot {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slot := b.open[conn]; slot != nil {
		return slot
	}
	return new(limit.Slot)
}
