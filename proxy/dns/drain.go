package dns

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// drainingTime is how long queries are still read from a connection after the server
// has begun to drain, or after the connection was opened if that was later: queries
// that a client sends in this time are answered.
const drainingTime = time.Second

// BeginDrain makes every connection, also later ones, end after drainingTime, when its
// queries have been answered. Answers over HTTP announce the end.
func (s *Server) BeginDrain() { s.draining.advance(begun) }

// Drain makes every connection end when the queries that it has sent are answered, and
// ends later connections at once. Datagrams are answered until their socket closes.
func (s *Server) Drain() { s.draining.advance(ended) }

// stage is how far the drain of a server has come.
type stage int32

// The stages.
const (
	serving stage = iota
	begun         // BeginDrain was called
	ended         // Drain was called
)

// draining holds the stage of a server and the connections that must be notified of the
// next one. The zero value is serving.
type draining struct {
	current atomic.Int32 // the current stage; written with mu held
	since   time.Time    // when the stage left serving; written before current

	mu          sync.Mutex          // guards the fields below, and changes of the stage
	lastID      int                 // number of the connection that was added last
	connections map[int]func(stage) // functions to call with the next stage, by the number of the connection
}

// stage returns the current stage.
func (d *draining) stage() stage { return stage(d.current.Load()) }

// until returns when reading ends on a connection that was opened at began. It must not
// be called while the stage is serving.
func (d *draining) until(began time.Time) time.Time {
	if began.Before(d.since) {
		began = d.since
	}
	return began.Add(drainingTime)
}

// add adds a connection. tell is called with the current stage unless that is serving,
// and with every later one, until forget is called.
func (d *draining) add(tell func(stage)) (forget func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at := d.stage(); at != serving {
		tell(at)
	}
	if d.connections == nil {
		d.connections = make(map[int]func(stage))
	}
	d.lastID++
	id := d.lastID
	d.connections[id] = tell
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.connections, id)
	}
}

// advance sets the stage, unless that stage or a later one was reached before.
func (d *draining) advance(to stage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stage() >= to {
		return
	}
	if d.stage() == serving {
		d.since = time.Now()
	}
	d.current.Store(int32(to))
	for _, tell := range d.connections {
		tell(to)
	}
}

// shutDown ends the connection of a server when its running requests have been
// answered. Before that it waits for drainingTime, or until endNow or closed is closed.
func (h *dohConn) shutDown(srv *http.Server, endNow, closed <-chan struct{}) {
	later := time.NewTimer(drainingTime)
	defer later.Stop()
	select {
	case <-later.C:
	case <-endNow:
	case <-closed:
	case <-h.ctx.Done():
	}
	h.endIncomplete()
	_ = srv.Shutdown(h.ctx) // the error is that of ctx, whose end closes the connection
}

// endIncomplete ends a connection on which no request has begun, or only a part of a
// head has come, and the bodies that have not come whole: net/http waits five seconds
// for each of them. A request whose body is ended is answered.
func (h *dohConn) endIncomplete() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ending = true
	if !h.used || h.http1 && h.running == 0 {
		_ = h.conn.SetReadDeadline(past())
	}
	for body := range h.bodies {
		_ = body.SetReadDeadline(past())
	}
}

// past returns a deadline that ends a read at once.
func past() time.Time { return time.Unix(1, 0) }
