package tunnel

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
	"time"
)

// closeGrace bounds the wait for room in the socket buffer for a close_notify.
// A peer that reads has room, so this is only ever spent on one that does not.
const closeGrace = 100 * time.Millisecond

// maxRecord is the largest number of bytes that one tls.Conn.Read returns.
const maxRecord = 16 << 10

// A side is one of the two connections of a tunnel.
type side struct {
	name   Reason    // Client or Upstream
	conn   net.Conn  // what is written to, and read from unless below serves
	secure *tls.Conn // conn, if that is TLS
	below  *Conn     // conn or what lies below secure; nil if that is foreign

	quiet  bool // secure had nothing more at the last look (reader only)
	broken bool // a write failed, perhaps within a record (writer only)

	finished bool // the peer has sent all; guarded by Tunnel.ending
}

func newSide(name Reason, conn net.Conn) *side {
	s := &side{name: name, conn: conn}
	switch c := conn.(type) {
	case *Conn:
		s.below = c
	case *tls.Conn:
		s.secure = c
		s.below, _ = c.NetConn().(*Conn)
	default:
		s.below = Wrap(conn)
	}
	return s
}

// begin lifts the deadlines of the time before the tunnel.
func (s *side) begin() error {
	if s.below != nil {
		s.below.relaying = true
		return s.below.SetDeadline(time.Time{})
	}
	return s.conn.SetDeadline(time.Time{})
}

// wire is where deadlines of a running tunnel are set.
func (s *side) wire() net.Conn {
	if s.below != nil {
		return s.below.Conn
	}
	return s.conn
}

// read waits for bytes and returns them in a buffer that the caller gives back.
// It may return bytes and an error together, and a nil buffer with an error.
func (s *side) read() (b *buffer, n int, err error) {
	switch {
	case s.below == nil || s.below.raw == nil:
		b = buffers.get()
		n, err = s.conn.Read(b[:])
		return b, n, err
	case s.secure == nil:
		return s.below.take()
	default:
		return s.readSecure()
	}
}

// socket returns the bare socket that bytes are read from and written to as
// they are, nil if there is none.
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

// readSecure borrows a buffer only when the socket has bytes. What crypto/tls
// has buffered is read out before it waits.
func (s *side) readSecure() (b *buffer, n int, err error) {
	for {
		if s.quiet {
			s.quiet = false
			if err := s.below.wait(); err != nil {
				return nil, 0, err
			}
		}
		b = buffers.get()
		n, err = s.fill(b)
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

// fill reads records while there are any and they fit, to write them as one.
func (s *side) fill(b *buffer) (n int, err error) {
	for err == nil && n <= len(b)-maxRecord {
		var m int
		m, err = s.secure.Read(b[n:])
		n += m
	}
	return n, err
}

func (s *side) write(p []byte) (int, error) {
	n, err := s.conn.Write(p)
	s.broken = s.broken || err != nil
	return n, err
}

// closeWrite tells the peer that no more will come. Over TLS that is a
// close_notify; the socket stays open for what the peer still sends.
func (s *side) closeWrite() error {
	if w, ok := s.conn.(closeWriter); ok {
		return w.CloseWrite()
	}
	return errNoCloseWrite
}

// unblock makes reads and writes that wait return, now and from now on.
func (s *side) unblock() {
	var err error
	past := time.Unix(1, 0)
	switch {
	case s.below != nil:
		err = s.below.SetDeadline(past)
	case s.secure != nil:
		// Its CloseWrite, if that is what waits, would lift the deadline.
		err = s.secure.NetConn().Close()
	default:
		err = s.conn.SetDeadline(past)
	}
	if err != nil {
		_ = s.conn.Close()
	}
}

// close closes the connection. If clean, TLS ends with a close_notify, unless
// the peer has no room for it. Otherwise TLS tells the peer by its absence
// that something is missing; the bytes sent before still arrive.
func (s *side) close(clean bool) {
	switch {
	case s.secure == nil:
		_ = s.conn.Close()
	case !clean || s.broken:
		_ = s.secure.NetConn().Close()
	default:
		if s.below != nil {
			s.below.relaying = true // it is not yet if Close came before Run
			_ = s.below.Conn.SetWriteDeadline(time.Now().Add(closeGrace))
		}
		_ = s.secure.Close()
	}
}
