package forward

import (
	"net"
	"sync"
	"time"
)

// downstream is the connection to the client during an exchange. The goroutine of goproxy
// writes the final answer to it, and goroutines of the transport write interim answers.
type downstream struct {
	conn  net.Conn
	idle  time.Duration   // how long one write may take
	done  <-chan struct{} // closed when the exchange is to end
	meter *meter          // counts the bytes

	mu      sync.Mutex // held while something is written; guards the fields below
	begun   bool       // the head of the final answer was written or is about to be
	stopped bool       // stop was called
	sent    int64      // number of bytes written
	err     error      // the first error; nothing is written after it
}

// begin ends the interim answers: the caller is about to send the head of the final one.
func (d *downstream) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.begun = true
}

// send writes p to the client.
func (d *downstream) send(p []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sendLocked(p)
}

// sendLocked writes p to the client. The caller holds mu.
func (d *downstream) sendLocked(p []byte) error {
	if d.err != nil {
		return d.err
	}
	if d.err = d.conn.SetWriteDeadline(time.Now().Add(d.idle)); d.err != nil {
		return d.err
	}
	select {
	case <-d.done: // the deadline set above may have replaced that of unblock
		d.err = errStopped
		return d.err
	default:
	}
	n, err := d.conn.Write(p)
	d.err = err
	d.sent += int64(n)
	d.meter.add(0, int64(n))
	return err
}

// interim writes an interim answer, unless the final one has begun or stop was called.
func (d *downstream) interim(p []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begun || d.stopped {
		return nil
	}
	return d.sendLocked(p)
}

// proceed sends 100 (Continue) to a client that waits for it before it sends its body.
func (d *downstream) proceed() error { return d.interim([]byte("HTTP/1.1 100 Continue\r\n\r\n")) }

// stop ends the interim answers. Only the rest of the final answer may still be written.
func (d *downstream) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = true
}
