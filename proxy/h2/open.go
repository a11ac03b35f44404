package h2

import (
	"context"
	"errors"
)

// maxAnswers is how many heads of an answer may wait: interim ones, the final one, and a
// trailer.
const maxAnswers = 8

// lastID is the highest id of a stream that this end opens. Ids end at 2^31 (RFC 9113 section
// 5.1.1); whoever opens streams needs another connection long before that.
const lastID = 1<<30 - 1

// ErrNotTaken is the error of a stream that the peer has certainly not looked at, so that
// the request can be sent on another connection.
var ErrNotTaken = errors.New("the peer has not taken the stream")

// Open opens a stream with a head, on a client. end says that no data follows. While the
// peer allows no other stream it waits. The error is ErrNotTaken if the peer takes no
// streams any more.
func (c *Conn) Open(ctx context.Context, fields []Field, end bool) (*Stream, error) {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	c.out.awaitQueue()
	for c.err == nil && ctx.Err() == nil && c.mayOpen() && c.ours >= int(c.peer.maxStreams) {
		c.changed.Wait()
		c.out.awaitQueue()
	}
	switch {
	case c.err != nil:
		defer c.mu.Unlock()
		return nil, c.err
	case ctx.Err() != nil:
		defer c.mu.Unlock()
		return nil, ctx.Err()
	case !c.mayOpen():
		defer c.mu.Unlock()
		return nil, ErrNotTaken
	}
	s := c.newStream(context.WithoutCancel(ctx), c.ids.next)
	c.ours++
	c.ids.next += 2
	s.answers = make(chan Head, maxAnswers)
	c.out.appendHead(s.id, fields, end)
	if end {
		s.out.endLocked()
	}
	c.mu.Unlock()
	c.out.flush()
	return s, nil
}

// mayOpen reports whether this end may open other streams. The caller holds mu.
func (c *Conn) mayOpen() bool { return !c.life.peerLeft && !c.life.begun && c.ids.next < lastID }

// Answer waits for the next head of the answer: interim ones, the final one, and the
// trailer. The error is io.EOF if the answer has ended.
func (s *Stream) Answer(ctx context.Context) (Head, error) {
	select {
	case h := <-s.answers:
		return h, nil
	default:
	}
	select {
	case h := <-s.answers:
		return h, nil
	case <-ctx.Done():
		return Head{}, context.Cause(ctx)
	case <-s.ctx.Done():
		select {
		case h := <-s.answers:
			return h, nil
		default:
		}
		return Head{}, context.Cause(s.ctx)
	}
}
