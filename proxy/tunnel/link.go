package tunnel

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// A Link is a connection that many streams share. Like a tunnel, it waits for bytes
// without a buffer, and it can gather the TLS records of several writes into one write to
// the socket. One goroutine may read, and one at a time may write.
type Link struct{ side *side }

// linkState is what a Conn needs for the Link on it.
type linkState struct {
	ahead      *buffer // bytes that were read from the socket and not by TLS yet; nil if there are none
	start, end int     // the part of ahead that has not been read

	mu        sync.Mutex // guards the fields below: TLS also writes when it reads (alerts, key updates)
	gathering bool
	gathered  *gatherBuffer // nil while it is empty
}

// gatherBuffer has room for the records of 64 KiB, and grows if it needs to.
type gatherBuffer struct{ bytes []byte }

//nolint:gochecknoglobals // a cache of buffers: nothing can be observed through it
var gatherBuffers = sync.Pool{New: func() any { return &gatherBuffer{make([]byte, 0, 72<<10)} }}

// NewLink returns a Link on a connection, which is a *Conn, a *tls.Conn on a *Conn, or
// any other one. It removes the deadlines of the connection. On any other connection than
// these two Fill waits, and nothing is gathered.
func NewLink(conn net.Conn) (*Link, error) {
	s := newSide(Client, conn)
	if s.below != nil && s.below.raw != nil {
		s.below.link = new(linkState)
	}
	return &Link{side: s}, s.begin()
}

// Wait returns when Fill will not wait: there are bytes, an end or an error.
func (l *Link) Wait() error {
	s := l.side
	switch {
	case s.below == nil || s.below.raw == nil:
		return nil
	case s.quiet || s.secure == nil:
		s.quiet = false
		if state := s.below.link; state.ahead != nil {
			return nil
		}
		return s.below.wait()
	}
	return nil
}

// Fill reads bytes that have come into p, over TLS as many records as there are and fit.
// It returns zero without an error if nothing has come. p must have room for a TLS record.
func (l *Link) Fill(p []byte) (n int, err error) {
	s := l.side
	if s.below == nil || s.below.raw == nil || s.secure == nil {
		n, err = s.conn.Read(p)
	} else {
		n, err = s.fill(p)
	}
	if errors.Is(err, errWouldBlock) {
		s.quiet, err = true, nil
	}
	return n, err
}

// Write writes to the connection.
func (l *Link) Write(p []byte) (int, error) { return l.side.conn.Write(p) }

// Gathers reports whether Gather has an effect.
func (l *Link) Gathers() bool { return l.state() != nil }

// Gather keeps what is written from now on until Flush writes all of it at once.
func (l *Link) Gather() {
	if state := l.state(); state != nil {
		state.mu.Lock()
		state.gathering = true
		state.mu.Unlock()
	}
}

// Flush writes what Gather has kept, and ends gathering.
func (l *Link) Flush() error {
	state := l.state()
	if state == nil {
		return nil
	}
	return state.flush(l.side.below)
}

// TryFlush does what Flush does as far as the socket has room, without waiting. It reports
// whether that was all; otherwise gathering goes on, and Flush writes the rest. The Link must
// gather.
func (l *Link) TryFlush() (all bool, err error) { return l.state().tryFlush(l.side.below) }

func (l *Link) state() *linkState {
	if l.side.below == nil {
		return nil
	}
	return l.side.below.link
}

// SetReadDeadline and SetWriteDeadline set the deadlines of the connection; after a write
// has failed nothing more can be written.
func (l *Link) SetReadDeadline(t time.Time) error { return l.side.deadlineConn().SetReadDeadline(t) }

// SetWriteDeadline sets the deadline for writing.
func (l *Link) SetWriteDeadline(t time.Time) error { return l.side.deadlineConn().SetWriteDeadline(t) }

// LocalAddr returns the local address of the connection.
func (l *Link) LocalAddr() net.Addr { return l.side.conn.LocalAddr() }

// RemoteAddr returns the address of the peer.
func (l *Link) RemoteAddr() net.Addr { return l.side.conn.RemoteAddr() }

// write writes p to the socket, or keeps it while writes are gathered.
func (s *linkState) write(to net.Conn, p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gathering {
		if s.gathered == nil {
			s.gathered = gatherBuffers.Get().(*gatherBuffer) //nolint:errcheck,forcetypeassert // nothing else is in the pool
		}
		s.gathered.bytes = append(s.gathered.bytes, p...)
		return len(p), nil
	}
	return to.Write(p)
}

// flush writes what was gathered.
func (s *linkState) flush(to *Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gathering = false
	if s.gathered == nil {
		return nil
	}
	_, err := to.Conn.Write(s.gathered.bytes)
	s.flushed(to, err)
	return err
}

// tryFlush implements TryFlush.
func (s *linkState) tryFlush(to *Conn) (all bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gathered != nil {
		var n int
		n, err = writeNow(to.raw, s.gathered.bytes)
		if errors.Is(err, syscall.EAGAIN) {
			s.gathered.bytes = append(s.gathered.bytes[:0], s.gathered.bytes[n:]...)
			return false, nil
		}
		s.flushed(to, err)
	}
	s.gathering = false
	return true, err
}

// flushed gives the buffer back after a write that returned err. The caller holds mu.
func (s *linkState) flushed(to *Conn, err error) {
	if err != nil {
		to.torn.Store(true)
	}
	s.gathered.bytes = s.gathered.bytes[:0]
	gatherBuffers.Put(s.gathered)
	s.gathered = nil
}

// readAhead reads as much as there is into a borrowed buffer, and gives out of it what TLS
// asks for. TLS would read each record by itself.
func (s *linkState) readAhead(c *Conn, p []byte) (int, error) {
	if s.ahead == nil {
		if c.drained {
			c.drained = false
			return 0, errWouldBlock
		}
		b := buffers.get()
		err := try(c, b[:])
		if err == nil {
			err = c.err
		}
		if c.n <= 0 || err != nil {
			buffers.put(b)
			return 0, err
		}
		c.drained = c.n < len(b)
		s.ahead, s.start, s.end = b, 0, c.n
	}
	n := copy(p, s.ahead[s.start:s.end])
	if s.start += n; s.start == s.end {
		buffers.put(s.ahead)
		s.ahead = nil
	}
	return n, nil
}

// releaseAhead gives back the buffer of bytes that will not be read any more.
func (l *Link) releaseAhead() {
	if state := l.state(); state != nil && state.ahead != nil {
		buffers.put(state.ahead)
		state.ahead = nil
	}
}

// Close closes the connection, over TLS with a close_notify if clean is set, and reads
// what the peer still sends for a bounded time (Linger), so that it can read what was
// written last. No other goroutine may use the Link.
func (l *Link) Close(clean bool) {
	l.releaseAhead()
	if clean {
		Linger(l.side.conn)
	}
	l.side.close(clean)
}
