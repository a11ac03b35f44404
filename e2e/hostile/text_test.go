package hostile

import (
	"io"
	"strings"
	"sync"
	"time"
)

// textConn lets a case that speaks HTTP/1.1 speak HTTP/2. Each request that is written to it
// goes out on a stream of its own, and its answer is read from it as text.
type textConn struct {
	*session
	alone bool // closing it closes the session

	mu      sync.Mutex // guards the fields below
	text    string     // bytes of a head that is not complete
	current *stream    // nil before the first request
	left    int        // bytes of the body that are missing; negative for a tunnel
	read    time.Time  // deadlines of Read and Write; zero means none
	write   time.Time
}

func newTextConn(s *session, alone bool) *textConn {
	late := time.Now().Add(patience)
	return &textConn{session: s, alone: alone, read: late, write: late}
}

// Write sends what text of HTTP/1.1 means. The head of the next request may follow the end
// of the answer to the last one.
func (c *textConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || c.current.mayFollow() {
		return c.begin(p)
	}
	return c.continueBody(p)
}

// begin takes bytes of a head, and sends it when it is complete. The caller holds mu.
func (c *textConn) begin(p []byte) (int, error) {
	c.text += string(p)
	_, rest, ended := strings.Cut(c.text, "\r\n\r\n")
	if !ended {
		return len(p), nil
	}
	h, err := translate(c.text)
	if err != nil {
		return 0, err
	}
	c.text, c.left = "", h.body
	if h.connect {
		c.left = -1
	}
	end := c.left == 0 && rest == ""
	if c.current, err = c.open(end, h.pairs()...); err != nil {
		return 0, err
	}
	if rest != "" {
		if _, err := c.continueBody([]byte(rest)); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// continueBody sends bytes of a tunnel or of a body. The caller holds mu, which is free
// while it waits.
func (c *textConn) continueBody(p []byte) (int, error) {
	end := c.left >= 0 && len(p) >= c.left
	if c.left > 0 {
		c.left -= min(c.left, len(p))
	}
	x, until := c.current, c.write
	c.mu.Unlock()
	defer c.mu.Lock()
	return x.write(p, end, until)
}

// Read reads the answers as text.
func (c *textConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	x, until := c.current, c.read
	c.mu.Unlock()
	if x == nil { // the caller waits for the end of a connection without a request
		return 0, c.await(until)
	}
	return x.read(p, until)
}

// await waits for the end of the connection.
func (c *textConn) await(until time.Time) error {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	for c.err == nil {
		if err := c.wait(until); err != nil {
			return err
		}
	}
	if c.goAway != nil {
		return io.EOF
	}
	return c.err
}

// CloseWrite ends the direction to the gateway.
func (c *textConn) CloseWrite() error {
	_, err := c.current.write(nil, true, time.Time{})
	return err
}

// Close ends the stream: in order if the gateway has ended its direction, and with a reset
// otherwise.
func (c *textConn) Close() error {
	c.mu.Lock()
	x := c.current
	c.mu.Unlock()
	if x != nil {
		x.mu.Lock()
		ended := x.ended && !x.sentEnd && x.reset == nil
		x.mu.Unlock()
		if ended {
			_ = x.send(nil, true)
		}
		_ = x.cancel()
	}
	if c.alone {
		return c.session.Close()
	}
	return nil
}

// SetDeadline and the methods below set the deadlines of the stream.
func (c *textConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn. It does not concern a call of Read that waits.
func (c *textConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = t
	return nil
}

// SetWriteDeadline implements net.Conn. It does not concern a call of Write that waits.
func (c *textConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return nil
}
