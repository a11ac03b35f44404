package h2

import (
	"io"

	"golang.org/x/net/http2"
)

// dataReader reads DATA frames. It holds back data, so that the data of several frames is
// delivered at once.
type dataReader struct {
	conn   *Conn
	stream *Stream // whose data is held back; nil if none is
	p      []byte  // that data, a part of the input's block
}

// read reads a DATA frame.
func (d *dataReader) read(fh http2.FrameHeader) error {
	c := d.conn
	padding, err := d.readPadding(fh)
	if err != nil {
		return err
	}
	s, err := d.admit(fh)
	if err != nil {
		return err
	}
	carried := int(fh.Length)
	if fh.Flags.Has(http2.FlagDataPadded) {
		carried -= 1 + padding
	}
	if s == nil || d.stream != s {
		d.deliver()
	}
	for left := carried; left > 0; {
		p, err := c.reader.in.next(left) // it delivers what is held before it reads into the same block
		if err != nil {
			return err
		}
		left -= len(p)
		if s != nil {
			d.hold(s, p)
		}
	}
	if padding > 0 || fh.Flags.Has(http2.FlagDataEndStream) {
		d.deliver()
	}
	if err := d.skipPadding(fh, s, padding); err != nil {
		return err
	}
	if s != nil && fh.Flags.Has(http2.FlagDataEndStream) {
		c.mu.Lock()
		s.in.end()
		c.mu.Unlock()
	}
	switch {
	case s == nil:
	case carried > smallData:
		c.reader.budget.pay(paidData)
	case carried == 0 && !fh.Flags.Has(http2.FlagDataEndStream):
		return c.reader.budget.spend(costFrame, "DATA without data")
	}
	return nil
}

// readPadding returns the number of bytes of padding of a DATA frame.
func (d *dataReader) readPadding(fh http2.FrameHeader) (int, error) {
	c := d.conn
	if !fh.Flags.Has(http2.FlagDataPadded) {
		return 0, nil
	}
	if fh.Length == 0 {
		return 0, violation(http2.ErrCodeFrameSize, "a padded DATA frame without the length of its padding")
	}
	d.deliver()
	var length [1]byte
	if _, err := io.ReadFull(&c.reader.in, length[:]); err != nil {
		return 0, err
	}
	if int(length[0]) >= int(fh.Length) { // RFC 9113 section 6.1
		return 0, violation(http2.ErrCodeProtocol, "a DATA frame whose padding is longer than the frame")
	}
	return int(length[0]), nil
}

// skipPadding reads the padding of a DATA frame. The peer gets credit for it at once.
func (d *dataReader) skipPadding(fh http2.FrameHeader, s *Stream, padding int) error {
	c := d.conn
	if !fh.Flags.Has(http2.FlagDataPadded) {
		return nil
	}
	for left := padding; left > 0; {
		p, err := c.reader.in.next(left)
		if err != nil {
			return err
		}
		left -= len(p)
	}
	if s != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.flow.grant(int64(1 + padding))
		s.in.credit(int64(1 + padding))
	}
	return nil
}

// admit counts a DATA frame against the windows. It returns nil for a stream that is
// closed, whose data is thrown away.
func (d *dataReader) admit(fh http2.FrameHeader) (*Stream, error) {
	c := d.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int64(fh.Length)
	if c.flow.recvWindow -= n; c.flow.recvWindow < 0 {
		return nil, violation(http2.ErrCodeFlowControl, "more data than the window of the connection")
	}
	s := c.streams[fh.StreamID]
	if s == nil {
		if fh.StreamID == 0 || c.ids.isIdle(fh.StreamID) {
			return nil, violation(http2.ErrCodeProtocol, "DATA on a stream that is not open")
		}
		return nil, d.discard(fh)
	}
	if s.in.ended {
		s.resetLocked(http2.ErrCodeStreamClosed, violation(http2.ErrCodeStreamClosed, "DATA behind the end of the stream"))
		c.flow.grant(n)
		return nil, nil //nolint:nilnil // as above
	}
	if s.in.window -= n; s.in.window < 0 {
		s.resetLocked(http2.ErrCodeFlowControl, violation(http2.ErrCodeFlowControl, "more data than the window of the stream"))
		c.flow.grant(n)
		return nil, nil //nolint:nilnil // as above
	}
	return s, nil
}

// discard counts a DATA frame whose data is thrown away because its stream is closed. What
// the peer may have sent before it knew costs nothing. The caller holds mu.
func (d *dataReader) discard(fh http2.FrameHeader) error {
	c, n := d.conn, int64(fh.Length)
	c.flow.grant(n)
	if late := c.resets.find(fh.StreamID); late == nil {
		_ = c.out.frames.WriteRSTStream(fh.StreamID, http2.ErrCodeStreamClosed)
		c.resets.add(fh.StreamID, 0)
	} else if late.window -= max(n, smallData); late.window >= 0 {
		return nil
	}
	return c.reader.budget.spend(costFrame, "DATA on a stream that is closed")
}

// hold adds data of a stream to what is held, which stands before it in the same block: it
// is delivered before other bytes are read into the block. The header of a frame may be
// between the two, so the data is moved down.
func (d *dataReader) hold(s *Stream, p []byte) {
	if d.stream == nil {
		d.stream, d.p = s, p
		return
	}
	n := len(d.p)
	d.p = d.p[:n+len(p)]
	copy(d.p[n:], p)
}

// deliver delivers what is held.
func (d *dataReader) deliver() {
	if s := d.stream; s != nil {
		p := d.p
		d.stream, d.p = nil, nil
		s.in.receive(p)
	}
}
