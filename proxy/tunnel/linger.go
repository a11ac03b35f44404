package tunnel

import (
	"crypto/tls"
	"net"
	"time"
)

// The bounds of Linger.
const (
	lingerIdle  = 2 * time.Second  // since the peer's last byte
	lingerTime  = 10 * time.Second // in all
	lingerBytes = 16 << 20
)

// Linger ends the sending side of a connection behind its last answer, over TLS
// with a close_notify, and reads on until the peer has closed its own: closing
// with unread bytes, or before others come, would reset the connection, and the
// peer would lose what it has not read yet (RFC 9112 section 9.6). What comes is
// thrown away, over TLS without being decrypted. It is bounded in time and bytes;
// the caller closes the connection then, which nobody else may be reading from.
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
