package listen

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerUser returns the user that connected, as the kernel recorded it at that time.
func peerUser(conn *net.UnixConn) (uid uint32, ok bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, false
	}
	var peer *unix.Ucred
	failed := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if failed != nil || err != nil {
		return 0, false
	}
	return peer.Uid, true
}
