package listen

import "net"

// UserOf returns the user at the other end of a unix socket; -1 if the system does not say
// which. isUnix is false for any other connection.
func UserOf(c *Conn) (uid int64, isUnix bool) {
	unix, isUnix := c.raw.Conn.(*net.UnixConn)
	if !isUnix {
		return 0, false
	}
	if user, ok := peerUser(unix); ok {
		return int64(user), true
	}
	return -1, true
}
