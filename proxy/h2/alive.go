package h2

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"
)

// errDead is the error of a connection whose peer does not answer a PING.
var errDead = errors.New("the peer does not answer any more")

// alive finds out whether the peer still answers. Its fields are guarded by conn.mu, except
// for heard.
type alive struct {
	conn *Conn

	// heard is when a frame last came, in nanoseconds since 1970. The wall clock counts on
	// while the machine is suspended.
	heard atomic.Int64

	pings map[uint64]chan struct{} // the PINGs that have not been answered; a channel is closed by the answer
	sent  uint64                   // number of PINGs so far
	timer *time.Timer              // nil without Config.PingAfter
	due   time.Time                // when the timer should run
	asked time.Time                // when check has sent the PING that it waits for; zero if it waits for none
}

// silence returns how long nothing has come. It is very long if the clock was set back.
func (a *alive) silence(now time.Time) time.Duration {
	silent := time.Duration(now.UnixNano() - a.heard.Load())
	if silent < 0 {
		return time.Hour
	}
	return silent
}

// hear notes that a frame has come.
func (a *alive) hear() { a.heard.Store(time.Now().UnixNano()) }

// watch starts the checks, if there are any. The caller holds mu.
func (a *alive) watch() {
	a.hear()
	if a.conn.cfg.PingAfter > 0 {
		a.timer = time.AfterFunc(a.conn.cfg.PingAfter, a.check)
		a.due = time.Now().Add(a.conn.cfg.PingAfter)
	}
}

// stop ends the checks. The caller holds mu.
func (a *alive) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// check sends a PING after a silence, and ends the connection if nothing has come after
// that. A connection without streams is left alone. mu is not held.
func (a *alive) check() {
	c := a.conn
	c.mu.Lock()
	defer c.out.flush()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now := time.Now()
	silent, late := a.silence(now), now.Sub(a.due) > c.cfg.PingTimeout
	waits := !a.asked.IsZero() && silent > time.Duration(now.UnixNano()-a.asked.UnixNano())
	next := c.cfg.PingTimeout
	switch {
	case waits && !late: // after a pause of this process the answer may be there and not be read yet
		c.endLocked(errDead)
		return
	case waits:
	case silent >= c.cfg.PingAfter && c.ours > 0:
		a.asked = now
		a.ask()
	default:
		a.asked = time.Time{}
		next = max(c.cfg.PingAfter-silent, c.cfg.PingTimeout)
	}
	a.due = now.Add(next)
	a.timer.Reset(next)
}

// ask queues a PING and returns its number. The caller holds mu.
func (a *alive) ask() uint64 {
	a.sent++
	var data [8]byte
	binary.BigEndian.PutUint64(data[:], a.sent)
	_ = a.conn.out.frames.WritePing(false, data)
	return a.sent
}

// answered notes the answer to a PING. It returns false if nobody waits for it. The caller
// holds mu.
func (a *alive) answered(data [8]byte) bool {
	number := binary.BigEndian.Uint64(data[:])
	answer, ok := a.pings[number]
	if ok {
		close(answer)
		delete(a.pings, number)
	}
	return ok
}

// Ping sends a PING and waits for its answer. The error says why none has come.
func (c *Conn) Ping(ctx context.Context) error {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	number, answer := c.alive.ask(), make(chan struct{})
	if c.alive.pings == nil {
		c.alive.pings = make(map[uint64]chan struct{})
	}
	c.alive.pings[number] = answer
	c.mu.Unlock()
	go c.out.flush() // it may wait for a peer that does not read
	var err error
	select {
	case <-answer:
	case <-c.closed:
		err = c.failure()
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.alive.pings, number)
	return err
}

// State describes a connection of a client at one moment.
type State struct {
	// Open is how many streams this end has open, and Most how many the peer allows.
	Open, Most int
	// Takes says that another stream may be opened, as far as the number of streams so
	// far and GOAWAY go.
	Takes bool
	// Silence is how long nothing has come from the peer.
	Silence time.Duration
}

// State returns the state of the connection.
func (c *Conn) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return State{
		Open: c.ours, Most: int(c.peer.maxStreams), Takes: c.err == nil && c.mayOpen(), Silence: c.alive.silence(time.Now()),
	}
}

// AwaitPeer waits for the SETTINGS of the peer, which it sends first. A server that sends
// them has accepted the connection.
func (c *Conn) AwaitPeer(ctx context.Context) error {
	select {
	case <-c.greeted:
		return nil
	case <-c.closed:
		return c.failure()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
