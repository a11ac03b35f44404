package h2

import (
	"io"
	"os"

	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// inbound is the direction of a stream from the peer. Its fields are guarded by the mu of
// the connection.
type inbound struct {
	stream *Stream

	window int64 // bytes that the peer may still send
	taken  int64 // bytes that were taken and will be added to window

	ended    bool // the peer has ended the direction
	endTaken bool // Read has returned io.EOF

	queue    queue
	sleeper  tunnel.Sleeper // what has parked; nil while something reads
	taking   bool           // Take or End is running
	wakeNow  bool           // the sleeper must be woken after that
	changed  signal
	deadline deadline
}

// receive takes data that has come for the stream. The goroutine of Run calls it.
func (in *inbound) receive(p []byte) {
	s, c := in.stream, in.stream.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if sleeper := in.sleeper; sleeper != nil && s.err == nil {
		in.taking = true
		c.mu.Unlock()
		n := sleeper.Take(p)
		c.mu.Lock()
		in.taking = false
		c.flow.grant(int64(n))
		in.credit(int64(n))
		if p = p[n:]; len(p) == 0 && !in.wakeNow {
			return
		}
		in.wakeNow = false
	}
	if s.err != nil {
		c.flow.grant(int64(len(p)))
	} else if len(p) > 0 {
		in.queue.add(p)
		c.flow.keep(int64(len(p)))
	}
	in.wake()
}

// credit notes that n bytes were taken, so that the peer may send more. The caller holds
// mu.
func (in *inbound) credit(n int64) {
	s := in.stream
	if in.taken += n; in.taken >= streamWindow/2 && !in.ended && s.err == nil {
		in.window += in.taken
		_ = s.conn.out.frames.WriteWindowUpdate(s.id, uint32(in.taken)) //nolint:gosec // G115: it is at most the window
		in.taken = 0
	}
}

// end notes that the peer has ended the direction. The goroutine of Run calls it, and holds
// mu, which is unlocked meanwhile.
func (in *inbound) end() {
	s, c := in.stream, in.stream.conn
	if s.err != nil || in.ended {
		return
	}
	in.ended = true // first, because End may lead to the end of the other direction and of the stream
	wake := true
	if sleeper := in.sleeper; sleeper != nil {
		in.taking = true
		c.mu.Unlock()
		taken := sleeper.End()
		c.mu.Lock()
		wake = !taken || in.wakeNow
		in.taking, in.wakeNow, in.endTaken = false, false, taken
	}
	if wake {
		in.wake()
	}
	if s.answers != nil {
		s.cancel(io.EOF) // for Answer
	}
	if s.out.ended {
		s.leave()
	}
}

// wake wakes what waits for the stream to be readable. The caller holds mu.
func (in *inbound) wake() {
	in.changed.signal()
	switch sleeper := in.sleeper; {
	case sleeper == nil:
	case in.taking:
		in.wakeNow = true
	default:
		in.sleeper = nil
		go sleeper.Wake()
	}
}

// isReadable reports whether read will not wait. The caller holds mu.
func (in *inbound) isReadable() bool {
	return in.stream.err != nil || !in.queue.isEmpty() || in.ended && !in.endTaken || in.deadline.passed
}

// await returns when read will not wait. mu is not held.
func (in *inbound) await() {
	in.stream.conn.mu.Lock()
	defer in.stream.conn.mu.Unlock()
	in.awaitLocked()
}

// awaitLocked does what await does. The caller holds mu.
func (in *inbound) awaitLocked() {
	for !in.isReadable() && !in.endTaken {
		in.changed.wait(&in.stream.conn.mu)
	}
}

// park implements Stream.Park. mu is not held.
func (in *inbound) park(sleeper tunnel.Sleeper) bool {
	in.stream.conn.mu.Lock()
	defer in.stream.conn.mu.Unlock()
	if in.isReadable() {
		return false
	}
	in.sleeper = sleeper
	return true
}

// read waits, and moves what has come to p. mu is not held.
func (in *inbound) read(p []byte) (n int, err error) {
	s, c := in.stream, in.stream.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	in.awaitLocked() // without unlocking afterwards: a deadline that has passed may be removed
	switch {
	case s.err != nil:
		return 0, s.err
	case in.deadline.passed:
		return 0, os.ErrDeadlineExceeded
	case in.queue.isEmpty(): // the direction has ended
		in.endTaken = true
		return 0, io.EOF
	}
	n = in.queue.take(p)
	in.credit(int64(n))
	c.flow.forget(int64(n))
	return n, nil
}
