package admin

import (
	"net"
	"net/http"
	"slices"
	"sync"
)

// DefaultConnections are open at a time. Probes and scrapers need a few.
const DefaultConnections = 256

// bound closes the oldest connection when there are too many: whoever opens
// many, such as a workload that shares loopback, can take neither the files of
// the process, which its other listeners need, nor the place of the next probe.
type bound struct {
	most int

	mu   sync.Mutex
	open []net.Conn // the oldest first
}

// changed is for http.Server.ConnState.
func (b *bound) changed(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if oldest := b.add(conn); oldest != nil {
			_ = oldest.Close()
		}
	case http.StateClosed, http.StateHijacked:
		b.remove(conn)
	case http.StateActive, http.StateIdle:
	}
}

// add returns the connection that is one too many; nil if none is.
func (b *bound) add(conn net.Conn) (oldest net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = append(b.open, conn)
	if len(b.open) > b.most {
		oldest, b.open = b.open[0], b.open[1:]
	}
	return oldest
}

func (b *bound) remove(conn net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.open, conn); i >= 0 {
		b.open = slices.Delete(b.open, i, i+1)
	}
}
