package agent

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unacknowledged is how long bytes may stay without an acknowledgement, after which the system
// ends the connection (TCP_USER_TIMEOUT, tcp(7)).
const unacknowledged = 20 * time.Second

// limitUnacknowledged sets the bound on a socket.
func limitUnacknowledged(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds())) // without it, PING tells
	})
}
