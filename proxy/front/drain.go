package front

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// idleWhileDraining is how long a connection may stay idle after Drain was called. A
// client that sends requests often sends its next one within that time, and learns from
// the answer that it is the last. If the connection were closed at once, a request that
// is on its way would be lost.
const idleWhileDraining = time.Second

// connections holds the connections of a front, for Drain and Stop. The zero value is ready
// to use.
type connections struct {
	draining, stopped atomic.Bool // Drain was called; Stop was called

	mu   sync.Mutex // guards open
	open map[*waiter]struct{}
}

// waiter is a connection as far as it may wait for a request.
type waiter struct {
	conn net.Conn

	mu      sync.Mutex // guards the fields below, and the read deadline while waiting is true
	waiting bool       // no byte of the next request has come
	idle    bool       // the connection is idle, so that a drain makes the wait short
}

// Drain makes every answer from now on the last one of its connection, and ends idle
// connections within a second.
func (f *H1) Drain() {
	f.conns.drain()
	f.h2.drain()
}

// IsDraining reports whether Drain was called, so that every answer from now on is the
// last one of its connection.
func (f *H1) IsDraining() bool { return f.conns.draining.Load() }

// Stop ends every connection that waits for a request, now or later. Call it after Drain.
func (f *H1) Stop() {
	f.conns.stop()
	f.h2.stop()
}

// Drain ends the connections on which nothing has come within a second, now and later. A
// connection carries one request, so that every answer is its last one anyway.
func (f *SOCKS5) Drain() { f.conns.drain() }

// Stop ends every connection on which nothing has come, now or later. Call it after Drain.
func (f *SOCKS5) Stop() { f.conns.stop() }

func (s *connections) drain() {
	s.draining.Store(true)
	s.each(func(w *waiter) {
		if w.idle {
			_ = w.conn.SetReadDeadline(time.Now().Add(idleWhileDraining))
		}
	})
}

func (s *connections) stop() {
	s.stopped.Store(true)
	s.each(func(w *waiter) { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) })
}

// isOrderly reports whether a connection that has waited in vain must see an orderly close:
// while the front drains, a request may be on its way.
func (s *connections) isOrderly() bool { return s.draining.Load() && !s.stopped.Load() }

// each calls a function for every connection that waits for a request. The connection
// goes on waiting until the function has returned.
func (s *connections) each(call func(*waiter)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.open {
		w.mu.Lock()
		if w.waiting {
			call(w)
		}
		w.mu.Unlock()
	}
}

// add adds a connection; remove removes it.
func (s *connections) add(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[*waiter]struct{})
	}
	s.open[w] = struct{}{}
}

func (s *connections) remove(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, w)
}

// begin sets the deadline for the first byte of a request. idle says that a drain makes the
// wait short. It returns false if the connection may not wait for a request.
func (s *connections) begin(w *waiter, now time.Time, patience time.Duration, idle bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting, w.idle = true, idle
	if idle && s.draining.Load() {
		patience = min(patience, idleWhileDraining)
	}
	return !s.stopped.Load() && w.conn.SetReadDeadline(now.Add(patience)) == nil
}

// end ends the wait. From here on neither Drain nor Stop sets the read deadline.
func (w *waiter) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = false
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
	c.waiter.end()
	switch {
	case err == nil:
	case !c.headSeen:
		return true // ReadHead returns the same error, and Buffered returns the bytes that came
	case c.front.conns.isOrderly():
		c.linger()
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
	// After a head, the answer to it may have been sent before Drain, without saying that it
	// was the last one.
	return c.front.conns.begin(&c.waiter, now, patience, c.headSeen)
}
