package forward

import (
	"net"
	"sync"
	"time"
)

// downstream is the connection to the client while an exchange goes on. The final
// answer is written to it by the goroutine that goproxy runs in, and interim ones
// by the transport's.
type downstream struct {
	conn  net.Conn
	idle  time.Duration   // how long one write may take
	done  <-chan struct{} // closed by the end of the exchange
	meter *meter          // is told what goes out

	mu    sync.Mutex // held while something is written
	begun bool       // the head of the final answer is, or is being, written
	over  bool       // the exchange is
	sent  int64      // bytes
	err   error      // the first; nothing is written after it
}

// begin ends the interim answers: what comes next is the head of the final one.
func (d *downstream) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.begun = true
}

// send writes to the client.
func (d *downstream) send(p []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sendLocked(p)
}

func (d *downstream) sendLocked(p []byte) error {
	if d.err != nil {
		return d.err
	}
	if d.err = d.conn.SetWriteDeadline(time.Now().Add(d.idle)); d.err != nil {
		return d.err
	}
	select {
	case <-d.done: // unblock sets its deadline after that, or had set it before ours
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

// interim writes an interim answer, unless the client has its final one.
func (d *downstream) interim(p []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begun || d.over {
		return nil
	}
	return d.sendLocked(p)
}

// proceed tells a client that waits for it to send its body.
func (d *downstream) proceed() error { return d.interim([]byte("HTTP/1.1 100 Continue\r\n\r\n")) }

// stop makes sure that nothing but the end of the final answer is written any
// more.
func (d *downstream) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
}
