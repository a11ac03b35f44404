package tunnel

import (
	"errors"
	"io"
	"os"
	"slices"
	"time"
)

// A Ruling is the decision of a Gate over the client's first bytes.
type Ruling uint8

// The rulings. The zero value refuses.
const (
	Refuse Ruling = iota
	More          // wait for more bytes
	Pass          // send these bytes to the upstream, and all later ones without a ruling
)

// A Gate rules over the client's first bytes before any of them goes to the upstream. It
// never delays the bytes of the upstream.
type Gate struct {
	// Inspect rules over all bytes that have come so far, which it must not keep. It
	// must not return More for ever, since all bytes are kept meanwhile. last means
	// that no more bytes will come in time; then More refuses. Required.
	Inspect func(p []byte, last bool) Ruling
	// Wait is how long the gate waits for more bytes, from the first More on. Zero
	// means that the bytes of the first read must be enough.
	Wait time.Duration
	// Speak means that Wait also bounds the wait for the first byte. If none has come
	// by then, Inspect is called without bytes.
	Speak bool
	// Farewell is sent to a client that is refused.
	Farewell []byte
}

// admission is the passage of the client's first bytes through a gate.
type admission struct {
	*Tunnel

	gate     *Gate
	received []byte // the bytes that have come, while the gate wants more
	waiting  bool   // Gate.Wait is running
	passed   bool   // the gate has passed the bytes, and they were sent
}

// admit sends the client's first bytes to the upstream if the gate passes them, and
// reports whether it has. A client that ends without sending a byte is not shown to the
// gate.
func (t *Tunnel) admit(gate *Gate, early []byte) bool {
	a := admission{Tunnel: t, gate: gate}
	if t.setGateWait(gate.Wait) || gate.Speak {
		a.wait()
	}
	more := len(early) == 0 || a.judge(early, false)
	for more {
		more = a.read()
	}
	return a.passed
}

// read reads bytes and rules over them. It reports whether more are wanted.
func (a *admission) read() (more bool) {
	b, n, err := a.client.read()
	if b != nil {
		defer buffers.put(b)
	}
	if n > 0 {
		p := b[:n]
		if len(a.received) > 0 {
			p = append(a.received, p...)
		}
		if !a.judge(p, false) {
			return false
		}
	}
	switch {
	case err == nil:
		return true
	case a.ended(): // the tunnel was closed meanwhile
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.EOF) && len(a.received) > 0:
		return a.judge(a.received, true)
	case errors.Is(err, io.EOF):
		a.endWait()
		a.finish(a.client, a.upstream)
	default:
		a.fail("reading from", a.client, err)
	}
	return false
}

// judge asks the gate about all bytes so far and does what it rules. It reports whether
// the gate wants more. In most cases the first read is enough, and nothing is copied.
func (a *admission) judge(p []byte, last bool) (more bool) {
	ruling := a.gate.Inspect(p, last)
	if ruling == More && last {
		ruling = Refuse
	}
	switch ruling {
	case Pass:
		a.endWait()
		a.passed = a.forward(a.upstream, p, &a.up)
	case More:
		if len(a.received) == 0 {
			p = slices.Clone(p)
		}
		a.received = p
		a.wait()
		return true
	case Refuse:
		a.refuse(a.gate)
	}
	return false
}

// Hurry bounds the wait for the first byte by Gate.Wait, as Speak does. It does nothing
// if the gate has passed the first bytes, or if it was called before. It may be called
// from any goroutine, also before Run.
func (t *Tunnel) Hurry() {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.reason != None || t.gateWait < 0 || t.hurried {
		return
	}
	t.hurried = true
	if t.gateWait > 0 {
		_ = t.client.deadlineConn().SetReadDeadline(time.Now().Add(t.gateWait)) // an error means that the connection is closed, as the next read will report
	}
}

// setGateWait notes how long the gate waits; a negative value means that it has passed the
// first bytes, or that there are none. It reports whether Hurry was called.
func (t *Tunnel) setGateWait(waits time.Duration) (hurried bool) {
	t.ending.Lock()
	defer t.ending.Unlock()
	t.gateWait = waits
	return t.hurried
}

// wait starts Gate.Wait, unless it runs already.
func (a *admission) wait() {
	if !a.waiting {
		a.waiting = true
		a.readUntil(time.Now().Add(a.gate.Wait))
	}
}

// endWait ends Gate.Wait, because no more bytes are needed.
func (a *admission) endWait() {
	if a.setGateWait(-1) || a.waiting {
		a.readUntil(time.Time{})
	}
}

// ended reports whether the tunnel was cut.
func (t *Tunnel) ended() bool {
	t.ending.Lock()
	defer t.ending.Unlock()
	return t.reason != None
}

// readUntil sets the deadline for reading from the client; zero removes it. It does
// nothing if the tunnel was cut.
func (t *Tunnel) readUntil(at time.Time) {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.reason == None {
		_ = t.client.deadlineConn().SetReadDeadline(at) // an error means that the connection is closed, as the next read will report
	}
}

// refuse ends both directions, as cut does, except that the client can still be told why
// (sayFarewell).
func (t *Tunnel) refuse(gate *Gate) {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.reason != None {
		return
	}
	t.reason, t.refusal = Denied, gate
	t.upstream.unblock()
	_ = t.client.deadlineConn().SetWriteDeadline(time.Now().Add(closeGrace)) // so that what relays to the client ends soon
}

// sayFarewell closes the connection to the upstream, which has not been sent a byte, and
// then sends the farewell to a client that was refused. The client's connection stays open
// until the client has read the farewell, see Linger. It is called after both directions
// have ended, because nothing else may write to the client.
func (t *Tunnel) sayFarewell() {
	t.upstream.close(true)
	if t.client.below != nil {
		t.client.below.leave()
	}
	switch _, err := t.client.conn.Write(t.refusal.Farewell); {
	case err != nil:
	case t.client.stream != nil: // its connection stays open
		_ = t.client.closeWrite()
	default:
		Linger(t.client.conn)
	}
	t.client.unblock()
}
