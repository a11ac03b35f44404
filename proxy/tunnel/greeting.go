package tunnel

import (
	"errors"
	"fmt"
)

// A Greeting bounds the bytes that may be read from a [Conn] during a TLS handshake: at
// most Most before the first Write and at most Most after it. A TLS server writes nothing
// before it has the whole ClientHello, so that the first bound is that of the
// ClientHello.
//
// The bytes are counted here, below crypto/tls, because crypto/tls reads messages of up
// to 64 KiB, and what it makes of them can take a hundred times as much memory.
type Greeting struct {
	// Free is how many bytes may be read in each of the two parts before Enter is
	// called. Enter is called once; if it returns an error, the Read returns it.
	Free, Most int
	Enter      func() error

	read    int  // bytes read in the current part
	written bool // the first Write has been called
	entered bool // Enter has been called
}

// HasRead reports whether anything was read.
func (g *Greeting) HasRead() bool { return g.written || g.read > 0 }

// ErrGreetingTooLong is the error of a Read beyond Greeting.Most.
var ErrGreetingTooLong = errors.New("the handshake is too long")

// Greet sets the bounds for the following reads; nil removes them. It must not be called
// while another goroutine reads or writes.
func (c *Conn) Greet(g *Greeting) { c.greeting = g }

// noteWrite begins the second part with the first Write.
func (g *Greeting) noteWrite() {
	if !g.written {
		g.written, g.read = true, 0
	}
}

// within returns the part of p that may be read into.
func (g *Greeting) within(p []byte) ([]byte, error) {
	if g.read >= g.Most {
		where := "in the ClientHello"
		if g.written {
			where = "after the ClientHello"
		}
		return nil, fmt.Errorf("%w: at most %d bytes are read %s", ErrGreetingTooLong, g.Most, where)
	}
	if g.read >= g.Free && !g.entered {
		if err := g.Enter(); err != nil {
			return nil, err
		}
		g.entered = true
	}
	most := g.Most
	if !g.entered {
		most = g.Free
	}
	return p[:min(len(p), most-g.read)], nil
}

// readGreeting is Read while a Greeting is in force.
func (c *Conn) readGreeting(p []byte) (int, error) {
	g := c.greeting
	p, err := g.within(p)
	if err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	g.read += n
	return n, err
}
