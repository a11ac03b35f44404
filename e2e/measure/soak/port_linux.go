package soak

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// latePort leaves the choice of the local port to connect. Otherwise bind looks for a
// port that no connection of the last minute had, to any address, which takes both
// processors at a thousand connections a second.
func latePort(_, _ string, raw syscall.RawConn) error {
	var err error
	if control := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}); control != nil {
		return control
	}
	return err
}
