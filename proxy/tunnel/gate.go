package tunnel

import (
	"errors"
	"io"
	"os"
	"slices"
	"time"
)

// A Ruling is what a Gate says of the client's first bytes.
type Ruling uint8

// The rulings. The zero value refuses.
const (
	Refuse Ruling = iota
	More          // wait for more bytes
	Pass          // send these to the upstream, and then all others unseen
)

// A Gate rules over the client's first bytes before any of them goes to the
// upstream, whose own bytes it never holds back.
type Gate struct {
	// Look is given all bytes so far, and must not keep them. It bounds them,
	// since it asks for more. last means that none follow in time, so that
	// asking for more refuses. Required.
	Look func(p []byte, last bool) Ruling
	// Wait is how long it waits for more once it has asked. Zero means that
	// the first bytes must be enough.
	Wait time.Duration
	// Speak means that it waits only so long for the first byte too, and asks
	// Look without one after that.
	Speak bool
	// Farewell is what a refused client is sent.
	Farewell []byte
}

// admission is the way of the client's first bytes through a gate.
type admission struct {
	*Tunnel

	gate    *Gate
	held    []byte // what has come, while that is not enough
	waiting bool   // the time to wait has begun
	passed  bool
}

// admit relays the client's first bytes when the gate lets them pass, and
// reports whether it has. A client that ends without a byte is no matter for
// the gate.
func (t *Tunnel) admit(gate *Gate, early []byte) bool {
	a := admission{Tunnel: t, gate: gate}
	if t.expect(gate.Wait) || gate.Speak {
		a.wait()
	}
	more := len(early) == 0 || a.judge(early, false)
	for more {
		more = a.read()
	}
	return a.passed
}

// read takes more bytes and reports whether it takes still more.
func (a *admission) read() (more bool) {
	b, n, err := a.client.read()
	if b != nil {
		defer buffers.put(b)
	}
	if n > 0 {
		p := b[:n]
		if len(a.held) > 0 {
			p = append(a.held, p...)
		}
		if !a.judge(p, false) {
			return false
		}
	}
	switch {
	case err == nil:
		return true
	case a.ended(): // somebody else was quicker: no matter for the gate
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.EOF) && len(a.held) > 0:
		return a.judge(a.held, true)
	case errors.Is(err, io.EOF):
		a.finish(a.client, a.upstream)
	default:
		a.fail("reading from", a.client, err)
	}
	return false
}

// judge does what the gate says of all bytes so far, and reports whether it
// asks for more. Nearly always the first read has all that it needs, and
// nothing is copied.
func (a *admission) judge(p []byte, last bool) (more bool) {
	ruling := a.gate.Look(p, last)
	if ruling == More && last {
		ruling = Refuse
	}
	switch ruling {
	case Pass:
		if t := a.Tunnel; t.expect(-1) || a.waiting {
			t.readUntil(time.Time{})
		}
		a.passed = a.forward(a.upstream, p, &a.up)
	case More:
		if len(a.held) == 0 {
			p = slices.Clone(p)
		}
		a.held = p
		a.wait()
		return true
	case Refuse:
		a.refuse(a.gate.Farewell)
	}
	return false
}

// Hurry makes a gate wait no longer for the first byte than it waits for more, as
// Speak does. It does nothing if the gate has passed the first bytes, or was hurried
// before. It may be called from any goroutine, before Run, too.
func (t *Tunnel) Hurry() {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.reason != None || t.waits < 0 || t.hurried {
		return
	}
	t.hurried = true
	if t.waits > 0 {
		_ = t.client.wire().SetReadDeadline(time.Now().Add(t.waits)) // of a closed connection: reading says so
	}
}

// expect notes how long a gate waits; negative means that it has passed the first
// bytes. It reports whether it was hurried.
func (t *Tunnel) expect(waits time.Duration) (hurried bool) {
	t.ending.Lock()
	defer t.ending.Unlock()
	t.waits = waits
	return t.hurried
}

// wait begins the time to wait.
func (a *admission) wait() {
	if !a.waiting {
		a.waiting = true
		a.readUntil(time.Now().Add(a.gate.Wait))
	}
}

// ended reports whether the tunnel was cut.
func (t *Tunnel) ended() bool {
	t.ending.Lock()
	defer t.ending.Unlock()
	return t.reason != None
}

// readUntil bounds reading from the client; zero lifts the bound. A tunnel that
// was cut stays so.
func (t *Tunnel) readUntil(at time.Time) {
	t.ending.Lock()
	defer t.ending.Unlock()
	if t.reason == None {
		_ = t.client.wire().SetReadDeadline(at) // of a closed connection: reading says so
	}
}

// refuse ends the tunnel with a word to the client. The upstream has got
// nothing.
func (t *Tunnel) refuse(farewell []byte) {
	t.ending.Lock()
	if t.reason != None {
		t.ending.Unlock()
		return
	}
	t.reason = Denied
	t.upstream.unblock()
	_ = t.client.wire().SetWriteDeadline(time.Now().Add(closeGrace))
	t.ending.Unlock()
	if _, err := t.client.conn.Write(farewell); err == nil {
		Linger(t.client.conn)
	}
	t.client.unblock()
}
