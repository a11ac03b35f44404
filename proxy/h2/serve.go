package h2

import (
	"context"
	"runtime"

	"golang.org/x/net/http2"
)

// mayServe reports whether another stream may be opened. The end of a stream does not end
// its Serve at once: a client that opens a stream for each one that has ended can have as
// many ended ones that are still served as open ones, and must not be refused for it.
// extraServing is for connections with few streams. The caller holds mu.
func mayServe(c *Conn) bool {
	const extraServing = 50
	return c.open < c.cfg.MaxStreams && c.serving < 2*c.cfg.MaxStreams+extraServing
}

// newStream adds a stream, whose context ends with ctx. The caller holds mu.
func (c *Conn) newStream(ctx context.Context, id uint32) *Stream {
	s := &Stream{conn: c, id: id}
	s.in = inbound{stream: s, window: streamWindow}
	s.out = outbound{stream: s, window: c.peer.window}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	c.streams[id] = s
	c.life.streamBegins()
	return s
}

// handleHead opens a stream, or takes another head of an open one.
func (r *reader) handleHead(id uint32, head Head) error {
	c := r.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[id]; s != nil {
		return r.handleAnswer(s, head)
	}
	switch {
	case c.err != nil: // its streams have ended, so that nothing would end this one
		return c.err
	case c.ids.client && c.ids.isIdle(id), id%2 == 0:
		return violation(http2.ErrCodeProtocol, "HEADERS on a stream that is not open")
	case c.resets.find(id) != nil, c.ids.client && !c.ids.isIdle(id): // the peer did not know of our reset
		return r.budget.spend(costFrame, "HEADERS on a stream that is closed")
	case !c.ids.isIdle(id) && c.ids.hasSkipped(): // RFC 9113 section 5.1.1; the stream was perhaps never opened
		return violation(http2.ErrCodeProtocol, "HEADERS on a stream behind a later one")
	case !c.ids.isIdle(id):
		return violation(http2.ErrCodeStreamClosed, "HEADERS on a stream that is closed")
	}
	c.ids.take(id)
	if c.life.final { // the peer learns from GOAWAY that nobody looks at it, nor at what follows on it
		c.resets.add(id, streamWindow)
		return r.budget.spend(costFrame, "HEADERS after GOAWAY")
	}
	if !mayServe(c) {
		_ = c.out.frames.WriteRSTStream(id, http2.ErrCodeRefusedStream)
		c.resets.add(id, streamWindow)
		return r.budget.spend(costFrame, "streams beyond the limit")
	}
	s := c.newStream(r.ctx, id)
	c.open++
	s.in.ended = head.End
	c.running.Go(func() {
		growStack()
		serve(s, head)
	})
	return nil
}

// handleAnswer takes another head of an open stream. The caller holds mu.
func (r *reader) handleAnswer(s *Stream, head Head) error {
	switch {
	case s.in.ended:
		s.resetLocked(http2.ErrCodeStreamClosed, violation(http2.ErrCodeStreamClosed, "HEADERS behind the end of the stream"))
		return r.budget.spend(costReset, "HEADERS on a stream that is closed")
	case s.answers == nil: // a tunnel has no trailer, and one of a request is not taken
		s.resetLocked(http2.ErrCodeProtocol, violation(http2.ErrCodeProtocol, "a trailer"))
		return r.budget.spend(costReset, "trailers")
	}
	select {
	case s.answers <- head:
	default:
		s.resetLocked(http2.ErrCodeEnhanceYourCalm, violation(http2.ErrCodeEnhanceYourCalm, "too many heads of an answer"))
		return nil
	}
	if head.End {
		s.in.end()
	}
	return nil
}

// serve calls Serve for a stream, and then closes it.
func serve(s *Stream, head Head) {
	c := s.conn
	run := c.cfg.Serve(s, head)
	if run == nil {
		served(s)
		return
	}
	c.mu.Lock()
	s.endContext()
	c.mu.Unlock()
	c.running.Go(func() {
		run()
		served(s)
	})
}

// growStack gives a new goroutine, in one step, a stack on which Serve can dial. The runtime
// would double the stack three times and copy what is on it, at last from 40 calls deep.
//
//go:noinline
func growStack() {
	var room [12 << 10]byte
	runtime.KeepAlive(&room)
}

// served closes a stream whose Serve has returned.
func served(s *Stream) {
	c := s.conn
	c.mu.Lock()
	s.releaseLocked(ErrClosed)
	c.serving--
	c.life.streamEnded()
	c.mu.Unlock()
	c.out.flush()
}
