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

// A Conn is a connection on which a tunnel can wait for bytes without holding
// a buffer for them. Until a tunnel runs on it, it behaves like the connection
// that it wraps; methods of net.Conn that it does not have are hidden.
//
// A blocking Read needs its buffer for as long as it waits, which for most
// tunnels is nearly always. So a tunnel switches the Conn over: Read then
// returns a temporary error where it would wait. crypto/tls passes such an
// error on and keeps its state (a record half received stays in its own
// buffer), which lets the relay give its buffer back and wait for the socket.
type Conn struct {
	net.Conn
	raw syscall.RawConn // nil: no socket to wait for

	greeting *Greeting // nil but while a handshake runs

	relaying bool        // a tunnel runs: Read does not wait, write deadlines are the tunnel's
	released atomic.Bool // release was called
	ended    atomic.Bool // CloseWrite was called
	release  func()      // called by the first Close; nil is nothing

	// All below is the reader's alone. The callbacks are built once, since
	// a method value made for each call would be an allocation for each.
	onTry, onTake, onReady func(fd uintptr) bool

	p       []byte  // onTry: where to read to
	b       *buffer // onTake: the buffer that was filled
	n       int     // how many bytes were read
	err     error   // or why not
	drained bool    // the last read emptied the socket
	woken   bool    // onReady: was called before
	peek    [1]byte
}

// Wrap returns a Conn on c. Put it below tls.Server, that is
// tls.Server(tunnel.Wrap(c), config), for a tunnel to find it with NetConn.
// What can be read through c's SyscallConn must be what c.Read would return,
// as is true of *net.TCPConn and *net.UnixConn. A connection without
// SyscallConn works too, but a tunnel on it holds a buffer while it waits.
func Wrap(c net.Conn) *Conn {
	w := &Conn{Conn: c}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			w.raw = raw
			w.onTry, w.onTake, w.onReady = w.tryRead, w.takeRead, w.ready
		}
	}
	return w
}

// Holding returns a Conn on c, as Wrap does, whose first Close calls release once
// c is closed: it gives back what the connection holds.
func Holding(c net.Conn, release func()) *Conn {
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
	if c.drained {
		// Saves the read that would only find out what is known. Once: the
		// relay waits next, and that looks at the socket again.
		c.drained = false
		return 0, errWouldBlock
	}
	c.p = p
	err := c.raw.Read(c.onTry)
	c.p = nil
	if err != nil {
		return 0, err
	}
	c.drained = c.n < len(p)
	return c.n, c.err
}

// CloseWrite sends a FIN, if the wrapped connection can.
func (c *Conn) CloseWrite() error {
	c.ended.Store(true)
	if w, ok := c.Conn.(closeWriter); ok {
		return w.CloseWrite()
	}
	return errNoCloseWrite
}

// Ended reports whether CloseWrite was called: nothing more is to be sent.
func (c *Conn) Ended() bool { return c.ended.Load() }

// SetWriteDeadline does nothing while a tunnel runs. tls.Conn sets one of five
// seconds for its close_notify, too short for a slow reader with full socket
// buffers, too long where the tunnel has just been told to close.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.relaying {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// take waits for bytes and returns them in a buffer of the pool, which is
// borrowed when they are there and not before.
func (c *Conn) take() (b *buffer, n int, err error) {
	if err := c.raw.Read(c.onTake); err != nil {
		return nil, 0, err
	}
	b, c.b = c.b, nil
	return b, c.n, c.err
}

// discard waits for bytes and returns how many it has thrown away.
func (c *Conn) discard() (n int, err error) {
	var b *buffer
	if c.raw != nil {
		b, n, err = c.take()
	} else {
		b = buffers.get()
		n, err = c.Conn.Read(b[:])
	}
	if b != nil {
		buffers.put(b)
	}
	return n, err
}

// wait returns when the socket has bytes, or an end or error to be read.
func (c *Conn) wait() error {
	c.drained, c.woken, c.err = false, false, nil
	if err := c.raw.Read(c.onReady); err != nil {
		return err
	}
	return c.err
}

// tryRead, takeRead and ready are called by RawConn.Read, which calls them
// again after the socket became readable for as long as they return false.

func (c *Conn) tryRead(fd uintptr) bool {
	var again bool
	if c.n, again, c.err = read(fd, c.p); again {
		c.err = errWouldBlock
	}
	return true
}

func (c *Conn) takeRead(fd uintptr) bool {
	b := buffers.get()
	var again bool
	if c.n, again, c.err = read(fd, b[:]); again {
		buffers.put(b)
		return false
	}
	c.b = b
	return true
}

// ready peeks before the first wait: the network poller reports changes, and
// RawConn.Read forgets one that came between the last read and its own begin.
// Once woken there is no need to look, the read that follows will.
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
		case err != nil: // said once: the next read would take a reset for an end
			c.err = os.NewSyscallError("recvfrom", err)
		}
		return true
	}
}

// read is read(2) on a non-blocking socket; again means that it has nothing.
func read(fd uintptr, p []byte) (n int, again bool, err error) {
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

type closeWriter interface{ CloseWrite() error }

var errNoCloseWrite = errors.New("connection cannot be closed for writing alone")

// errWouldBlock is what a Read that would wait returns. crypto/tls keeps a
// connection usable if an error says that it is temporary.
var errWouldBlock net.Error = wouldBlockError{}

type wouldBlockError struct{}

func (wouldBlockError) Error() string   { return "nothing to read yet" }
func (wouldBlockError) Timeout() bool   { return false }
func (wouldBlockError) Temporary() bool { return true }
