package listen

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// canShare says that several sockets can have one address.
const canShare = true

// reusePort lets other sockets have the address, too; the kernel spreads the
// senders over them.
func reusePort(_, _ string, raw syscall.RawConn) error {
	var err error
	if control := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); control != nil {
		return control
	}
	return err
}
