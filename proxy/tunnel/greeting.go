package tunnel

import (
	"errors"
	"fmt"
)

// A Greeting bounds what may be read from a [Conn] while its two ends shake hands
// above it, in bytes of ciphertext: twice Most, of which the first half ends with
// the first Write, since a server of TLS writes nothing before it has the whole
// ClientHello.
//
// It is counted here, below crypto/tls, which by itself reads messages of 64 KiB
// and makes a hundred times as much of what it reads.
type Greeting struct {
	// Free is how many bytes may be read in each half before Enter is called,
	// once: its error is that of the Read.
	Free, Most int
	Enter      func() error

	read    int
	written bool
	entered bool
}

// ErrGreetingTooLong is the error of a Read beyond Greeting.Most.
var ErrGreetingTooLong = errors.New("the handshake is too long")

// Greet bounds what is read from now on; nil ends that. It must not be called
// while another goroutine reads or writes.
func (c *Conn) Greet(g *Greeting) { c.greeting = g }

// Write writes to the connection.
func (c *Conn) Write(p []byte) (int, error) {
	if g := c.greeting; g != nil && !g.written {
		g.written, g.read = true, 0
	}
	return c.Conn.Write(p)
}

// within returns the part of p that may be read to.
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
