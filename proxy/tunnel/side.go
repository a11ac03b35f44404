package tunnel

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
	"time"
)

// closeGrace bounds the wait for room in the socket buffer when a tunnel is to end. For a
// peer that reads there is room at once.
const closeGrace = time.Second

// maxRecord is the largest number of bytes that one tls.Conn.Read returns.
const maxRecord = 16 << 10

// A side is one of the two connections of a tunnel.
type side struct {
	name   Reason    // Client or Upstream
	conn   net.Conn  // the connection that is written to
	secure *tls.Conn // conn if it is TLS, else nil
	below  *Conn     // conn, or the connection below secure; nil if that is not a *Conn
	stream Stream    // conn if it is a stream, else nil

	quiet bool // the last read from secure returned all that had come; used by the reader only

	finished bool // the peer has finished sending; guarded by Tunnel.ending
}

// newSide returns the side of a connection.
func newSide(name Reason, conn net.Conn) *side {
	s := &side{name: name, conn: conn}
	switch c := conn.(type) {
	case *Conn:
		s.below = c
	case *tls.Conn:
		s.secure = c
		s.below, _ = c.NetConn().(*Conn)
	case Stream:
		s.stream = c
	default:
		s.below = Wrap(conn)
	}
	return s
}

// begin removes the deadlines that were set before the tunnel.
func (s *side) begin() error {
	if s.below != nil {
		s.below.relaying = true
		return s.below.SetDeadline(time.Time{})
	}
	return s.conn.SetDeadline(time.Time{})
}

// deadlineConn returns the connection on which deadlines of a running tunnel are set.
func (s *side) deadlineConn() net.Conn {
	if s.below != nil {
		return s.below.Conn
	}
	return s.conn
}

// read waits for bytes and returns them in a buffer that the caller must give back. It
// may return bytes together with an error, and a nil buffer with an error.
func (s *side) read() (b *buffer, n int, err error) {
	switch {
	case s.stream != nil:
		s.stream.Await()
		fallthrough
	case s.below == nil || s.below.raw == nil:
		b = buffers.get()
		n, err = s.conn.Read(b[:])
		return b, n, err
	case s.secure == nil:
		return s.below.readBuffer()
	default:
		return s.readSecure()
	}
}

// socket returns the socket if the side is a plain TCP or unix socket without TLS, else
// nil.
func (s *side) socket() syscall.RawConn {
	if s.secure != nil || s.below == nil {
		return nil
	}
	switch s.below.Conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return s.below.raw
	}
	return nil
}

// hidesReset reports whether the peer has reset the connection although a read has returned
// io.EOF: a socket reports a reset once, and a write at the same time may have got it. The
// answer is right only before closeWrite, which ends the connection in order.
func (s *side) hidesReset() (hides bool) {
	socket := s.socket()
	if socket == nil {
		return false
	}
	_ = socket.Control(func(fd uintptr) { // an error means that the connection is closed
		if _, err := syscall.Getpeername(int(fd)); err == nil {
			return
		}
		code, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		hides = err == nil && syscall.Errno(code) != syscall.EPIPE // which says that the end came before the reset
	})
	return hides
}

// readSecure borrows a buffer only when the socket has bytes. It reads all bytes that
// crypto/tls has buffered before it waits.
func (s *side) readSecure() (b *buffer, n int, err error) {
	for {
		if s.quiet {
			s.quiet = false
			if err := s.below.wait(); err != nil {
				return nil, 0, err
			}
		}
		b = buffers.get()
		n, err = s.fill(b[:])
		if !errors.Is(err, errWouldBlock) {
			return b, n, err
		}
		s.quiet = true
		if n > 0 {
			return b, n, nil
		}
		buffers.put(b)
	}
}

// fill reads TLS records as long as there are some and b has room, so that they are
// written together.
func (s *side) fill(b []byte) (n int, err error) {
	for err == nil && n <= len(b)-maxRecord {
		var m int
		m, err = s.secure.Read(b[n:])
		n += m
	}
	return n, err
}

// closeWrite tells the peer that no more bytes will come, over TLS by a close_notify. The
// socket stays open, because the peer may still send.
func (s *side) closeWrite() error {
	if w, ok := s.conn.(closeWriter); ok {
		return w.CloseWrite()
	}
	return errNoCloseWrite
}

// unblock makes all reads and writes return, the current ones and those that follow.
func (s *side) unblock() {
	var err error
	past := time.Unix(1, 0)
	switch {
	case s.below != nil:
		err = s.below.SetDeadline(past)
	case s.secure != nil:
		// CloseWrite of secure, if it is what waits, would remove a deadline.
		err = s.secure.NetConn().Close()
	default:
		err = s.conn.SetDeadline(past)
	}
	if err != nil {
		_ = s.conn.Close()
	}
}

// close closes the connection. If clean is set, it sends a TLS close_notify, unless the
// peer has no room for it. Otherwise the missing close_notify tells the peer that the
// data is incomplete; bytes that were sent before still arrive.
func (s *side) close(clean bool) {
	switch {
	case s.stream != nil && !clean:
		s.stream.Abort()
	case s.secure == nil:
		_ = s.conn.Close()
	case !clean:
		_ = s.secure.NetConn().Close()
	default:
		if s.below != nil {
			s.below.leave()
		}
		_ = s.secure.Close()
	}
}

// reset closes the connection with a reset, if it is a TCP connection.
func (s *side) reset() {
	if s.below != nil {
		if tcp, ok := s.below.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // if it fails, the end looks proper
		}
	}
	s.close(false)
}
