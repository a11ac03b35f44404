package front

import (
	"sync"
	"sync/atomic"
	"time"
)

// idleWhileDraining is how long a connection may stay idle after Drain was called. A
// client that sends requests often sends its next one within that time, and learns from
// the answer that it is the last. If the connection were closed at once, a request that
// is on its way would be lost.
const idleWhileDraining = time.Second

// connections holds the connections of an H1, for Drain and Stop. The zero value is ready
// to use.
type connections struct {
	draining, stopped atomic.Bool // Drain was called; Stop was called

	mu   sync.Mutex // guards open
	open map[*h1]struct{}
}

// Drain makes every answer from now on the last one of its connection, and ends idle
// connections within a second.
func (f *H1) Drain() {
	f.conns.draining.Store(true)
	f.h2.drain()
	f.conns.each(func(c *h1) {
		if c.headSeen {
			_ = c.conn.SetReadDeadline(time.Now().Add(idleWhileDraining))
		}
	})
}

// IsDraining reports whether Drain was called, so that every answer from now on is the
// last one of its connection.
func (f *H1) IsDraining() bool { return f.conns.draining.Load() }

// Stop ends every connection that waits for a request, now or later. Call it after Drain.
func (f *H1) Stop() {
	f.conns.stopped.Store(true)
	f.h2.stop()
	f.conns.each(func(c *h1) { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
}

// each calls a function for every connection that waits for a request. The connection
// goes on waiting until the function has returned.
func (s *connections) each(call func(*h1)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.mu.Lock()
		if c.waiting {
			call(c)
		}
		c.mu.Unlock()
	}
}

// add adds a connection; remove removes it.
func (s *connections) add(c *h1) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[*h1]struct{})
	}
	s.open[c] = struct{}{}
}

func (s *connections) remove(c *h1) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// await waits for the first byte of the next head, and sets the deadline for the whole
// head. After an answered plain request the wait may last as long as KeepAlive. It
// returns false if no request came and the connection is over.
func (c *h1) await() bool {
	began := time.Now()
	if !c.setHeadDeadline(began) {
		return false
	}
	err := c.reader.Await()
	c.mu.Lock()
	c.waiting = false
	c.mu.Unlock()
	switch {
	case err == nil:
	case !c.headSeen:
		return true // ReadHead returns the same error, and Buffered returns the bytes that came
	case c.front.IsDraining() && !c.front.conns.stopped.Load():
		c.linger() // a request may be on its way: the client must see an orderly close
		return false
	default:
		return false
	}
	if c.answeredPlain {
		began = time.Now()
	}
	return c.conn.SetReadDeadline(began.Add(c.front.cfg.HeadTimeout)) == nil
}

// setHeadDeadline sets the deadline for the first byte of a head. It returns false if the
// connection may not wait for one.
func (c *h1) setHeadDeadline(now time.Time) bool {
	patience := c.front.cfg.HeadTimeout
	if c.answeredPlain {
		patience = c.front.cfg.KeepAlive
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = true
	if c.headSeen && c.front.IsDraining() { // the head of its last answer was sent before Drain
		patience = min(patience, idleWhileDraining)
	}
	return !c.front.conns.stopped.Load() && c.conn.SetReadDeadline(now.Add(patience)) == nil
}
