package h2

import (
	"fmt"
	"net"
	"os"
)

// outbound is the direction of a stream to the peer. Its fields are guarded by the mu of
// the connection, unless they say otherwise.
type outbound struct {
	stream *Stream

	window    int64 // bytes that the peer takes
	ended     bool  // this end has ended the direction
	isWaiting bool  // the stream waits for the window of the connection
	changed   signal
	deadline  deadline

	borrowed *block // between borrow and send; used by the goroutine that writes
	room     int    // the bytes of it that were reserved
}

var errEnded = fmt.Errorf("the stream is closed for writing: %w", net.ErrClosed)

// failure returns why nothing can be written; nil if something can. The caller holds mu.
func (out *outbound) failure() error {
	switch {
	case out.stream.err != nil:
		return out.stream.err
	case out.ended:
		return errEnded
	case out.deadline.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// awaitRoom waits until the peer takes bytes, or returns why it will not.
func (out *outbound) awaitRoom() error {
	c := out.stream.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if err := out.failure(); err != nil {
			return err
		}
		switch {
		case out.window <= 0:
			c.flow.wake() // another stream, because this one may have been woken for it
		case c.flow.sendWindow > 0:
			return nil
		default:
			c.flow.await(out.stream)
		}
		out.changed.wait(&c.mu)
	}
}

// borrow reserves as much as may be sent in one write, and returns room for it; nil if
// that is nothing.
func (out *outbound) borrow() []byte {
	c := out.stream.conn
	c.mu.Lock()
	most := 4 * smallPayload
	if c.peer.maxFrame >= maxPayload {
		most = maxPayload
	}
	out.room = 0
	if out.failure() == nil {
		out.room = c.flow.reserve(out.stream, most)
	}
	c.mu.Unlock()
	if out.room == 0 {
		return nil
	}
	out.borrowed = blocks.get()
	return out.borrowed[frameHeader : frameHeader+out.room]
}

// send sends the first n bytes of what borrow has returned, and gives the rest back.
func (out *outbound) send(n int) error {
	s, c, b := out.stream, out.stream.conn, out.borrowed
	out.borrowed = nil
	defer blocks.put(b)
	c.mu.Lock()
	c.flow.refund(s, out.room-n)
	if err := out.failure(); err != nil || n == 0 {
		c.flow.refund(s, n)
		c.mu.Unlock()
		return err
	}
	c.reader.budget.paySent(n, out.room)
	if n > smallFrame || len(c.out.queue) >= maxOutData {
		c.mu.Unlock()
		return c.out.writeData(out, b, n)
	}
	putDataHeader(b[:], n, s.id, false)
	_, _ = c.out.Write(b[:frameHeader+n]) // it returns no error
	c.mu.Unlock()
	c.out.flush()
	return nil
}

// writeHead sends a head. end says that nothing follows.
func (out *outbound) writeHead(fields []Field, end bool) error {
	c := out.stream.conn
	c.mu.Lock()
	c.out.awaitQueue()
	if err := out.failure(); err != nil {
		c.mu.Unlock()
		return err
	}
	out.appendHead(fields, end)
	if end {
		out.endLocked()
	}
	c.mu.Unlock()
	c.out.flush()
	return nil
}

// respond sends a whole answer, if the windows have room for its body, and reports whether
// they had.
func (out *outbound) respond(fields []Field, body []byte) (sent bool, err error) {
	c := out.stream.conn
	c.mu.Lock()
	c.out.awaitQueue()
	if err := out.failure(); err != nil || len(body) > smallPayload || int64(len(body)) > min(out.window, c.flow.sendWindow) {
		c.mu.Unlock()
		return false, err
	}
	out.appendHead(fields, false)
	c.flow.reserve(out.stream, len(body))
	c.reader.budget.paySent(len(body), maxPayload)
	c.out.appendData(out.stream.id, body, true)
	out.endLocked()
	c.mu.Unlock()
	c.out.flush()
	return true, nil
}

// appendHead queues a head. The caller holds mu.
func (out *outbound) appendHead(fields []Field, end bool) {
	s, c := out.stream, out.stream.conn
	c.out.appendHead(s.id, fields, end)
	if c.ids.isOurs(s.id) || s.answered {
		return
	}
	switch statusClass(fields) {
	case '1': // another one follows
		return
	case '2':
		c.reader.budget.pay(paidAnswer)
	default:
		c.reader.budget.pay(paidRefusal)
	}
	s.answered = true
}

// statusClass returns the first digit of the status of an answer, whose first field it is.
func statusClass(fields []Field) byte {
	if len(fields) > 0 && fields[0].Name == ":status" && fields[0].Value != "" {
		return fields[0].Value[0]
	}
	return 0
}

// endLocked notes that this end has ended the direction. The caller holds mu.
func (out *outbound) endLocked() {
	out.ended = true
	if out.stream.in.ended {
		out.stream.leave()
	}
}

// stopLocked notes that the peer, a server, has answered in full and needs nothing more.
// The answer can still be read: RFC 9113 section 8.1 forbids to throw it away. The caller
// holds mu.
func (out *outbound) stopLocked() {
	out.endLocked()
	out.changed.signal()
}

// close ends the direction.
func (out *outbound) close() error {
	c := out.stream.conn
	c.mu.Lock()
	if err := out.failure(); err != nil {
		c.mu.Unlock()
		return err
	}
	c.out.appendData(out.stream.id, nil, true)
	out.endLocked()
	c.mu.Unlock()
	c.out.flush()
	return nil
}
