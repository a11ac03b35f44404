package h2

import (
	"time"

	"golang.org/x/net/http2"
)

// leaveTime is the time between the two GOAWAY frames of an orderly end. Requests that
// were sent before the first one arrived are served (RFC 9113 section 6.8).
const leaveTime = time.Second

// life ends a connection in order. Its fields are guarded by conn.mu, which the callers of
// its methods hold unless a method says otherwise.
type life struct {
	conn *Conn

	begun    bool   // the first GOAWAY was sent
	final    bool   // no other stream of the peer is taken
	taken    uint32 // the last stream that was taken, once final is set
	peerLeft bool   // the peer takes no other stream
	timer    *time.Timer
	idle     *time.Timer // runs while there is no stream; nil without Config.Idle
}

// stop stops the timers.
func (l *life) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
	if l.idle != nil {
		l.idle.Stop()
	}
}

// leave queues the first GOAWAY.
func (l *life) leave() {
	c := l.conn
	if l.begun || c.err != nil {
		return
	}
	l.begun = true
	last := uint32(1<<31 - 1)
	if c.cfg.Client { // this end opens the streams, and does not any more
		l.final, last = true, 0
	} else {
		l.timer = time.AfterFunc(leaveTime, l.leaveFinally)
	}
	_ = c.out.frames.WriteGoAway(last, http2.ErrCodeNo, nil)
	l.streamEnded()
}

// leaveFinally says which streams were taken, and takes no more. A second call does nothing.
// mu is not held.
func (l *life) leaveFinally() {
	c := l.conn
	c.mu.Lock()
	if c.err == nil && !l.final {
		l.begun, l.final, l.taken = true, true, c.ids.last
		_ = c.out.frames.WriteGoAway(l.taken, http2.ErrCodeNo, nil)
		l.streamEnded()
	}
	c.mu.Unlock()
	c.out.flush()
}

// lastTaken returns the last stream of the peer that was taken. It does not grow after the
// peer was told (RFC 9113 section 6.8).
func (l *life) lastTaken() uint32 {
	if l.final {
		return l.taken
	}
	return l.conn.ids.last
}

// peerLeaves notes that the peer takes no more streams, and none of those behind the last
// that it has taken. mu is not held.
func (l *life) peerLeaves(last uint32) {
	c := l.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	l.peerLeft = true
	for id, s := range c.streams {
		if c.ids.isOurs(id) && id > last {
			s.closeLocked(ErrNotTaken)
		}
	}
	c.changed.Broadcast()
	l.streamEnded()
}

// streamBegins notes that there is a stream.
func (l *life) streamBegins() {
	l.conn.serving++
	if l.idle != nil {
		l.idle.Stop()
	}
}

// streamEnded ends the connection if it is leaving and there is no stream, and starts the
// time that it may stay without one.
func (l *life) streamEnded() {
	switch c := l.conn; {
	case c.serving > 0 || c.err != nil:
	case l.final || l.peerLeft:
		c.endLocked(ErrClosed)
	default:
		l.watchIdle()
	}
}

// watchIdle starts the time that the connection may stay without a stream.
func (l *life) watchIdle() {
	switch after := l.conn.cfg.Idle; {
	case after <= 0:
	case l.idle == nil:
		l.idle = time.AfterFunc(after, l.endIdle)
	default:
		l.idle.Reset(after)
	}
}

// endIdle ends a connection without streams. mu is not held.
func (l *life) endIdle() {
	c := l.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.serving == 0 {
		c.endLocked(ErrClosed)
	}
}
