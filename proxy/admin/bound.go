package admin

import (
	"net"
	"net/http"
	"sync"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// DefaultConnections are open at a time. Probes and scrapers need a few.
const DefaultConnections = 256

// bound gives the connections slots of their own. There is always one more: the
// connection that has been without a request for longest is closed for it, and if
// none is without, the one that got its request first. So whoever opens many, such
// as a workload that shares loopback, can take neither the files of the process,
// which its other listeners need, nor the place of the next probe.
type bound struct {
	slots *limit.Slots
	cut   func(limit.Cause)

	mu   sync.Mutex
	open map[net.Conn]*limit.Slot
}

func newBound(most int, cut func(limit.Cause)) *bound {
	return &bound{
		slots: limit.NewSlots(limit.Shares{Unidentified: most, PerSource: most, AllYield: true}),
		cut:   cut, open: map[net.Conn]*limit.Slot{},
	}
}

// changed is for http.Server.ConnState.
func (b *bound) changed(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		b.enter(conn)
	case http.StateActive:
		b.of(conn).Begin()
	case http.StateIdle:
		b.of(conn).End()
	case http.StateClosed, http.StateHijacked:
		b.of(conn).Leave()
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.open, conn)
	}
}

// enter takes a slot for a connection. All count for the same owner: nobody who asks
// here has shown who it is, and the prober may share the address of the workload.
func (b *bound) enter(conn net.Conn) {
	slot := new(limit.Slot)
	cause := b.slots.Enter(slot, limit.Owner{}, func(cause limit.Cause) {
		_ = conn.Close()
		b.cut(cause)
	})
	if cause != limit.NoCause { // never, as long as all yield
		_ = conn.Close()
		b.cut(cause)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[conn] = slot
}

// of returns the slot of a connection.
func (b *bound) of(conn net.Conn) *limit.Slot {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slot := b.open[conn]; slot != nil {
		return slot
	}
	return new(limit.Slot)
}
