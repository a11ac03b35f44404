package tunnel

import (
	"crypto/tls"
	"net"
	"time"
)

// The bounds of Linger.
const (
	lingerIdle  = 2 * time.Second  // since the peer's last byte
	lingerTime  = 10 * time.Second // since the call
	lingerBytes = 16 << 20         // bytes that are read
)

// Linger closes the sending direction of a connection after the last answer, over TLS
// with a close_notify, and then reads until the peer has closed its direction. Without
// this, bytes that are unread at the close or come later would cause a reset, and the
// peer could lose an answer that it has not read yet (RFC 9112 section 9.6). Linger
// throws away what it reads; over TLS it does not decrypt it. It ends after a bounded
// time and number of bytes. The caller then closes the connection. No other goroutine may
// read from it.
func Linger(conn net.Conn) {
	if secure, ok := conn.(*tls.Conn); ok {
		if secure.CloseWrite() != nil {
			return
		}
		conn = secure.NetConn()
	}
	if w, ok := conn.(closeWriter); !ok || w.CloseWrite() != nil {
		return
	}
	below, ok := conn.(*Conn)
	if !ok {
		below = Wrap(conn)
	}
	end := time.Now().Add(lingerTime)
	for left := lingerBytes; left > 0; {
		deadline := time.Now().Add(lingerIdle)
		if deadline.After(end) {
			deadline = end
		}
		if below.SetReadDeadline(deadline) != nil {
			return
		}
		n, err := below.discard()
		if err != nil {
			return
		}
		left -= n
	}
}
