package forward

import (
	"net"
	"sync"
	"time"
)

// downstream is the connection or stream to the client during an exchange. The goroutine of
// goproxy writes the final answer to it, and goroutines of the transport write interim
// answers.
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

// final calls write to write a part of the final answer, and ends the interim ones.
func (d *downstream) final(write func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.begun = true
	return write()
}

// interim calls write to write an interim answer, unless the final one has begun or stop was
// called.
func (d *downstream) interim(write func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begun || d.stopped {
		return nil
	}
	return write()
}

// send calls write, which writes to the client and returns the number of bytes. It is called
// by a wire, within final or interim.
func (d *downstream) send(write func() (int, error)) error {
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
	n, err := write()
	d.err = err
	d.sent += int64(n)
	d.meter.add(0, int64(n))
	return err
}

// stop ends the interim answers. Only the rest of the final answer may still be written.
func (d *downstream) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = true
}
