package watch

import (
	"errors"

	"golang.org/x/sys/unix"
)

// openForWriting reports whether a process has a file open for writing. It asks for a
// read lease (fcntl(2), F_SETLEASE), which the kernel refuses with EAGAIN for exactly
// that reason, and gives the lease back at once. It returns false for a file of another
// user and on a file system without leases, where it cannot tell.
func openForWriting(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }() // ends the lease, too
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	return errors.Is(err, unix.EAGAIN)
}
