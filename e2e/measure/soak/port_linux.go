package soak

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// latePort leaves the choice of a port to connect. Bind would look for one that
// no connection of the last minute had, whoever that was to: with a thousand a
// second this takes both processors.
func latePort(_, _ string, raw syscall.RawConn) error {
	var err error
	if control := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}); control != nil {
		return control
	}
	return err
}
