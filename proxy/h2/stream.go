package h2

import (
	"context"
	"net"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// A Stream is one stream of a connection. It is a net.Conn for the data of the stream; one
// goroutine at a time may read, and one may write. Closing it does not touch the others.
type Stream struct {
	conn *Conn
	id   uint32

	// The fields below are guarded by conn.mu.
	in       inbound
	out      outbound
	answered bool                    // a final head was sent, for a stream that the peer has opened
	err      error                   // why the stream has failed or was closed; nil while it is open
	cancel   context.CancelCauseFunc // ends ctx

	ctx     context.Context //nolint:containedctx // the context that Context returns
	answers chan Head       // the heads of the answer, for a stream that this end has opened; nil otherwise
}

var _ tunnel.Stream = (*Stream)(nil)

// ResetError is the error of a stream that the peer has reset.
type ResetError struct{ Code http2.ErrCode }

// Error implements error.
func (e *ResetError) Error() string { return "the peer has reset the stream: " + e.Code.String() }

// Is makes the error a net.ErrClosed: the peer has left.
func (*ResetError) Is(target error) bool { return target == net.ErrClosed }

// Context returns the context of the request of a stream that the peer has opened. It ends
// with the connection's, and when the stream fails before it was answered; its cause says
// why. It is for Config.Serve: nil after that has returned.
func (s *Stream) Context() context.Context { return s.ctx }

// Read implements net.Conn.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.in.read(p)
	s.conn.out.flush() // for the credit
	return n, err
}

// Await implements tunnel.Stream.
func (s *Stream) Await() { s.in.await() }

// Park implements tunnel.Stream.
func (s *Stream) Park(sleeper tunnel.Sleeper) bool { return s.in.park(sleeper) }

// Write implements net.Conn.
func (s *Stream) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if err := s.AwaitRoom(); err != nil {
			return n, err
		}
		room := s.Borrow()
		if room == nil {
			continue
		}
		m := copy(room, p[n:])
		if err := s.Send(m); err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// AwaitRoom implements tunnel.Stream.
func (s *Stream) AwaitRoom() error { return s.out.awaitRoom() }

// Borrow implements tunnel.Stream.
func (s *Stream) Borrow() []byte { return s.out.borrow() }

// Send implements tunnel.Stream.
func (s *Stream) Send(n int) error { return s.out.send(n) }

// WriteFields sends a head. A head with a status of 1xx is followed by another one; end
// says that nothing follows. Names are sent in lower case.
func (s *Stream) WriteFields(fields []Field, end bool) error {
	return s.out.writeHead(fields, end)
}

// Respond sends a whole answer. If the windows have room for it, it is one write.
func (s *Stream) Respond(fields []Field, body []byte) error {
	if len(body) == 0 {
		return s.WriteFields(fields, true)
	}
	if sent, err := s.out.respond(fields, body); sent || err != nil {
		return err
	}
	if err := s.WriteFields(fields, false); err != nil {
		return err
	}
	if _, err := s.Write(body); err != nil {
		return err
	}
	return s.CloseWrite()
}

// CloseWrite ends the direction to the peer.
func (s *Stream) CloseWrite() error { return s.out.close() }

// Close ends the stream. It resets it unless both directions have ended.
func (s *Stream) Close() error {
	s.conn.mu.Lock()
	s.releaseLocked(net.ErrClosed)
	s.conn.mu.Unlock()
	s.conn.out.flush()
	return nil
}

// Abort implements tunnel.Stream: it resets the stream with CONNECT_ERROR (RFC 9113 section
// 8.5).
func (s *Stream) Abort() { s.Reset(http2.ErrCodeConnect) }

// Reset ends the stream with a code.
func (s *Stream) Reset(code http2.ErrCode) {
	s.conn.mu.Lock()
	s.resetLocked(code, net.ErrClosed)
	s.releaseLocked(net.ErrClosed)
	s.conn.mu.Unlock()
	s.conn.out.flush()
}

// LeaveConn makes the connection take no other stream from now on, and end after the last
// one. Requests that are on their way are lost.
func (s *Stream) LeaveConn() { s.conn.life.leaveFinally() }

// LocalAddr returns the local address of the connection.
func (s *Stream) LocalAddr() net.Addr { return s.conn.link.LocalAddr() }

// RemoteAddr returns the address of the peer.
func (s *Stream) RemoteAddr() net.Addr { return s.conn.link.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn. What has parked is woken by it.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.in.deadline.set(&s.conn.mu, t, s.in.wake)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.out.deadline.set(&s.conn.mu, t, s.out.changed.signal)
	return nil
}

// leave removes a stream whose directions have both ended, so that it does not count any
// more. What waits in it can still be read. The caller holds mu.
func (s *Stream) leave() {
	c := s.conn
	if c.streams[s.id] != s {
		return
	}
	delete(c.streams, s.id)
	c.flow.leave(s)
	if !c.ids.isOurs(s.id) {
		c.open--
		return
	}
	c.ours--
	c.serving--
	c.changed.Broadcast()
	c.life.streamEnded()
}

// resetLocked resets the stream. The caller holds mu.
func (s *Stream) resetLocked(code http2.ErrCode, err error) {
	if s.conn.streams[s.id] == s {
		_ = s.conn.out.frames.WriteRSTStream(s.id, code)
		s.conn.resets.add(s.id, s.in.window)
	}
	s.closeLocked(err)
}

// closeLocked ends the stream: reads and writes return an error, and what waits is thrown
// away. The caller holds mu.
func (s *Stream) closeLocked(err error) {
	if s.err == nil {
		s.err = err
		if s.cancel != nil && !s.answered {
			s.cancel(err)
		}
		if n := s.in.queue.drop(); n > 0 {
			s.conn.flow.forget(int64(n))
		}
	}
	s.in.wake()
	s.out.changed.signal()
	s.leave()
	s.conn.flow.wake() // another stream, because this one may have been woken for the window
}

// releaseLocked frees what the stream holds after its last use. The caller holds mu.
func (s *Stream) releaseLocked(err error) {
	if s.conn.streams[s.id] == s {
		code := http2.ErrCodeCancel
		if s.out.ended {
			code = http2.ErrCodeNo // RFC 9113 section 8.1: the answer is complete, and the rest of the request not needed
		}
		s.resetLocked(code, err)
	}
	s.in.sleeper = nil
	s.closeLocked(err)
	s.in.deadline.stop()
	s.out.deadline.stop()
	s.endContext()
}

// endContext ends the context of the stream, which is not needed any more. A stream that the
// peer has opened does not keep it either. The caller holds mu.
func (s *Stream) endContext() {
	if s.cancel == nil {
		return
	}
	s.cancel(nil)
	if s.answers == nil {
		s.ctx, s.cancel = nil, nil
	}
}
