package dns

import (
	"sync"
	"sync/atomic"
	"time"
)

// drainingTime is how long queries are still read from a connection once the server
// began to drain, and from one that comes later: what a client has sent in the
// meantime is answered.
const drainingTime = time.Second

// BeginDrain ends every connection after drainingTime, also those that come later,
// once the queries that it has sent are answered. Answers over HTTP say so.
func (s *Server) BeginDrain() { s.draining.advance(begun) }

// Drain ends every connection once the queries that it has sent are answered;
// those that come later it ends at once. Datagrams are answered until their socket
// closes.
func (s *Server) Drain() { s.draining.advance(ended) }

// stage is how far a server has come in its drain.
type stage int32

// The stages.
const (
	serving stage = iota
	begun         // BeginDrain was called
	ended         // Drain was called
)

// draining is the stage of a server and the connections that are told of the next
// one. The zero value serves.
type draining struct {
	now   atomic.Int32 // a stage; written with mu held
	since time.Time    // when it ceased to serve; written before now

	mu          sync.Mutex
	last        int
	connections map[int]func(stage)
}

// stage returns the stage of now.
func (d *draining) stage() stage { return stage(d.now.Load()) }

// until returns when reading ends from a connection that began at a time. It must be
// called only when the stage is no longer serving.
func (d *draining) until(began time.Time) time.Time {
	if began.Before(d.since) {
		began = d.since
	}
	return began.Add(drainingTime)
}

// add takes up a connection, which is told of the stage of now unless that is
// serving, and of every later one. It returns what forgets the connection.
func (d *draining) add(tell func(stage)) (forget func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at := d.stage(); at != serving {
		tell(at)
	}
	if d.connections == nil {
		d.connections = make(map[int]func(stage))
	}
	d.last++
	id := d.last
	d.connections[id] = tell
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.connections, id)
	}
}

// advance brings the server to a stage, unless it has come as far already.
func (d *draining) advance(to stage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stage() >= to {
		return
	}
	if d.stage() == serving {
		d.since = time.Now()
	}
	d.now.Store(int32(to))
	for _, tell := range d.connections {
		tell(to)
	}
}
