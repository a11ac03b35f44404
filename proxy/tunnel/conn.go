package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// A Conn is a connection on which a tunnel can wait for bytes without holding a buffer.
// Until a tunnel runs on it, it behaves like the connection that it wraps. It hides
// methods of that connection that net.Conn does not have.
//
// A blocking Read needs its buffer for as long as it waits, which for most tunnels is
// nearly always. A tunnel therefore switches the Conn to a mode in which Read returns a
// temporary error instead of waiting. crypto/tls returns such an error to its caller and
// keeps its state (it has part of a record in a buffer of its own), so that the relay can
// return its buffer and wait for the socket.
type Conn struct {
	net.Conn
	raw syscall.RawConn // the socket to wait for; nil if there is none

	greeting *Greeting // the bounds of a handshake while one runs, else nil

	relaying bool        // a tunnel runs: Read does not wait, and only the tunnel sets write deadlines
	leaving  bool        // leave was called, and Write does not wait
	torn     atomic.Bool // a Write has failed, perhaps within a TLS record
	released atomic.Bool // release was called
	ended    atomic.Bool // CloseWrite was called
	release  func()      // called by the first Close; may be nil

	link *linkState // the state of a Link on this connection, else nil

	// The following fields are used by the goroutine that reads only. Each callback is made
	// when it is first needed: a method value for each call would allocate each time.
	onTry, onFill, onReady func(fd uintptr) bool

	p       []byte  // for onTry: the slice to read into
	b       *buffer // from onFill: the buffer that was filled
	n       int     // number of bytes that were read
	err     error   // error of the read
	drained bool    // the last read emptied the socket
	woken   bool    // onReady was called before
	peek    [1]byte // for onReady
}

// Wrap returns a Conn on c. Put it below tls.Server, that is
// tls.Server(tunnel.Wrap(c), config), for a tunnel to find it with NetConn.
// Reading from c's SyscallConn must return the same bytes as c.Read, which is true of
// *net.TCPConn and *net.UnixConn. A connection without SyscallConn works, too, but a
// tunnel on it holds a buffer while it waits.
func Wrap(c net.Conn) *Conn {
	w := &Conn{Conn: c}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			w.raw = raw
		}
	}
	return w
}

// WrapWithRelease returns a Conn on c, as Wrap does. Its first Close calls release after
// it has closed c; release gives back what was taken for the connection.
func WrapWithRelease(c net.Conn, release func()) *Conn {
	w := Wrap(c)
	w.release = release
	return w
}

// Close closes the wrapped connection.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	if c.release != nil && !c.released.Swap(true) {
		c.release()
	}
	return err
}

// Read reads from the connection. While a tunnel runs it does not wait.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.relaying || c.raw == nil {
		if c.greeting != nil {
			return c.readGreeting(p)
		}
		return c.Conn.Read(p)
	}
	if c.link != nil && (c.link.ahead != nil || len(p) < bufferSize) {
		return c.link.readAhead(c, p)
	}
	if c.drained {
		// The last read emptied the socket, so another one would return nothing. This
		// is assumed once only: the relay waits next, which checks the socket.
		c.drained = false
		return 0, errWouldBlock
	}
	if err := try(c, p); err != nil {
		return 0, err
	}
	c.drained = c.n < len(p)
	return c.n, c.err
}

// try reads into p without waiting. Its error says that the socket is closed; c.n and c.err
// have what was read.
func try(c *Conn, p []byte) error {
	if c.onTry == nil {
		c.onTry = c.tryRead
	}
	c.p = p
	err := c.raw.Read(c.onTry)
	c.p = nil
	return err
}

// Write writes to the connection. After leave it does not wait for room. After a Write
// that failed it writes nothing: the peer would take a close_notify behind half a TLS
// record, or in place of one, for a forged record and not for a lost end.
func (c *Conn) Write(p []byte) (n int, err error) {
	if g := c.greeting; g != nil {
		g.noteWrite()
	}
	switch {
	case c.torn.Load():
		return 0, errTorn
	case c.leaving:
		n, err = writeNow(c.raw, p)
	case c.link != nil:
		n, err = c.link.write(c.Conn, p)
	default:
		n, err = c.Conn.Write(p)
	}
	if err != nil {
		c.torn.Store(true)
	}
	return n, err
}

// leave prepares the last writes of a tunnel, an alert or a close_notify: they succeed if
// the socket has room for them and otherwise fail at once. A short deadline would not do,
// because on a busy machine it may pass before the write begins.
func (c *Conn) leave() {
	c.relaying = true // it is not set yet if Close was called before Run
	deadline := time.Now().Add(closeGrace)
	if c.raw != nil {
		c.leaving, deadline = true, time.Time{}
	}
	_ = c.Conn.SetWriteDeadline(deadline) // an error means that the connection is closed, as the next write will report
}

// CloseWrite sends a FIN. It returns an error if the wrapped connection has no
// CloseWrite.
func (c *Conn) CloseWrite() error {
	c.ended.Store(true)
	if w, ok := c.Conn.(closeWriter); ok {
		return w.CloseWrite()
	}
	return errNoCloseWrite
}

// Ended reports whether CloseWrite was called, so that nothing more will be sent.
func (c *Conn) Ended() bool { return c.ended.Load() }

// SetWriteDeadline does nothing while a tunnel runs. tls.Conn sets a deadline of five
// seconds for its close_notify, which is too short for a slow reader with full socket
// buffers, and too long for a tunnel that must close now.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.relaying {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// readBuffer waits for bytes and returns them in a buffer of the pool. It borrows the
// buffer only when there are bytes to read.
func (c *Conn) readBuffer() (b *buffer, n int, err error) {
	if c.onFill == nil {
		c.onFill = c.fillBuffer
	}
	if err := c.raw.Read(c.onFill); err != nil {
		return nil, 0, err
	}
	b, c.b = c.b, nil
	return b, c.n, c.err
}

// discard waits for bytes, throws them away and returns their number.
func (c *Conn) discard() (n int, err error) {
	var b *buffer
	if c.raw != nil {
		b, n, err = c.readBuffer()
	} else {
		b = buffers.get()
		n, err = c.Conn.Read(b[:])
	}
	if b != nil {
		buffers.put(b)
	}
	return n, err
}

// wait returns when the next read from the socket will not block: there are bytes, an
// end of file or an error.
func (c *Conn) wait() error {
	if c.onReady == nil {
		c.onReady = c.ready
	}
	c.drained, c.woken, c.err = false, false, nil
	if err := c.raw.Read(c.onReady); err != nil {
		return err
	}
	return c.err
}

// RawConn.Read calls tryRead, fillBuffer and ready. If they return false it waits until
// the socket is readable and calls them again.

// tryRead reads into p without waiting.
func (c *Conn) tryRead(fd uintptr) bool {
	var empty bool
	if c.n, empty, c.err = read(fd, c.p); empty {
		c.err = errWouldBlock
	}
	return true
}

// fillBuffer borrows a buffer and reads into it.
func (c *Conn) fillBuffer(fd uintptr) bool {
	b := buffers.get()
	var empty bool
	if c.n, empty, c.err = read(fd, b[:]); empty {
		buffers.put(b)
		return false
	}
	c.b = b
	return true
}

// ready checks the socket by a peek before the first wait. This is necessary because the
// network poller reports only changes, and RawConn.Read drops a change that came between
// the last read and its own start. When it is called a second time the socket is
// readable, and the read that follows will find out why.
func (c *Conn) ready(fd uintptr) bool {
	if c.woken {
		return true
	}
	c.woken = true
	for {
		_, _, err := syscall.Recvfrom(int(fd), c.peek[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return false
		case err != nil: // the socket reports an error once; the next read would see an end of file
			c.err = os.NewSyscallError("recvfrom", err)
		}
		return true
	}
}

// read is read(2) on a non-blocking socket. empty means that there are no bytes to read.
func read(fd uintptr, p []byte) (n int, empty bool, err error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return 0, true, nil
		case err != nil:
			return 0, false, os.NewSyscallError("read", err)
		case n == 0:
			return 0, false, io.EOF
		}
		return n, false, nil
	}
}

// writeNow writes what a socket has room for. It returns EAGAIN if that is not all of p.
func writeNow(socket syscall.RawConn, p []byte) (n int, err error) {
	closed := socket.Write(func(fd uintptr) bool {
		for {
			if n, err = syscall.Write(int(fd), p); !errors.Is(err, syscall.EINTR) {
				return true
			}
		}
	})
	n = max(0, n)
	switch {
	case closed != nil:
		return 0, closed
	case err == nil && n < len(p):
		err = syscall.EAGAIN
	}
	return n, os.NewSyscallError("write", err)
}

type closeWriter interface{ CloseWrite() error }

var errNoCloseWrite = errors.New("connection cannot be closed for writing alone")

// errTorn is the error of a Write after one that failed.
var errTorn = errors.New("an earlier write has failed")

// errWouldBlock is the error of a Read that would have to wait. It is temporary, because
// crypto/tls keeps a connection usable only after a temporary error.
var errWouldBlock net.Error = wouldBlockError{}

type wouldBlockError struct{}

func (wouldBlockError) Error() string   { return "nothing to read yet" }
func (wouldBlockError) Timeout() bool   { return false }
func (wouldBlockError) Temporary() bool { return true }
