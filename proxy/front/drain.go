package front

import (
	"sync"
	"sync/atomic"
	"time"
)

// restWhileDraining is how long a connection may still rest once Drain was called:
// a client that asks often sends its next request within that time, and learns by
// the answer that it is the last. Whoever closed at once would lose the request
// that is on its way.
const restWhileDraining = time.Second

// connections are those of an H1, for Drain and Stop. The zero value is ready.
type connections struct {
	draining, stopped atomic.Bool

	mu   sync.Mutex
	open map[*h1]struct{}
}

// Drain makes every answer from now on the last of its connection, and ends
// connections that rest.
func (f *H1) Drain() {
	f.conns.draining.Store(true)
	f.conns.each(func(c *h1) {
		if c.asked {
			_ = c.conn.SetReadDeadline(time.Now().Add(restWhileDraining))
		}
	})
}

// IsDraining reports whether Drain was called: what is answered now is the last
// answer of its connection.
func (f *H1) IsDraining() bool { return f.conns.draining.Load() }

// Stop ends every connection on which no request has begun, also one that comes
// later. Call it after Drain.
func (f *H1) Stop() {
	f.conns.stopped.Store(true)
	f.conns.each(func(c *h1) { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
}

// each calls a function for every connection that waits for a request, which goes
// on waiting until the function has returned.
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

// add takes up a connection, which remove forgets.
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

// await waits for the first byte of the next head, and sets the time for the whole
// head. Behind an answered plain request the connection may first rest for a while.
// False means that nothing was asked.
func (c *h1) await() bool {
	began := time.Now()
	if !c.rest(began) {
		return false
	}
	err := c.reader.Await()
	c.mu.Lock()
	c.waiting = false
	c.mu.Unlock()
	switch {
	case err == nil:
	case !c.asked:
		return true // ReadHead meets the same error, and knows how much has come
	case c.front.IsDraining() && !c.front.conns.stopped.Load():
		c.linger() // a request may be on its way: its client sees a proper end
		return false
	default:
		return false
	}
	if c.rested {
		began = time.Now()
	}
	return c.conn.SetReadDeadline(began.Add(c.front.cfg.HeadTimeout)) == nil
}

// rest sets how long the connection may wait for the first byte of a head. It
// reports false if it may not.
func (c *h1) rest(now time.Time) bool {
	patience := c.front.cfg.HeadTimeout
	if c.rested {
		patience = c.front.cfg.KeepAlive
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = true
	if c.asked && c.front.IsDraining() { // the head of its last answer was sent before Drain
		patience = min(patience, restWhileDraining)
	}
	return !c.front.conns.stopped.Load() && c.conn.SetReadDeadline(now.Add(patience)) == nil
}
