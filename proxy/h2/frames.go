package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/net/http2"
)

// reader reads the frames of a connection. Its fields are used by the goroutine of Run only.
type reader struct {
	conn   *Conn
	ctx    context.Context //nolint:containedctx // that of Run, for the streams
	in     input
	framer *http2.Framer // reads from in
	block  headBlock     // the head that is being read
	data   dataReader
	budget budget // what the peer may still send without carrying anything
}

func (r *reader) init(c *Conn) {
	r.conn, r.in.conn, r.data.conn = c, c, c
	r.newFramer()
	r.block.init(c.cfg.HeadLimit)
	r.budget.left, r.budget.at = fullBudget, time.Now()
}

// keptPayload is the largest payload for which the Framer may keep its buffer.
const keptPayload = 4 << 10

// newFramer sets a Framer without a buffer. It must not be called within a head.
func (r *reader) newFramer() {
	r.framer = http2.NewFramer(nil, &r.in)
	r.framer.SetReuseFrames()
	r.framer.SetMaxReadFrameSize(maxFrame)
}

// readFrame reads one frame and does what it says. It returns an error that ends the
// connection.
func (r *reader) readFrame() error {
	c := r.conn
	fh, err := r.framer.ReadFrameHeader()
	if err != nil {
		return err
	}
	if !c.peer.seen && (fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck)) { // only this goroutine sets seen
		return violation(http2.ErrCodeProtocol, "the first frame is not SETTINGS")
	}
	if c.ids.client {
		c.alive.hear()
	}
	if fh.Type == http2.FrameData {
		return r.data.read(fh)
	}
	r.data.deliver()
	r.in.begin()
	defer r.in.finish()
	f, err := r.framer.ReadFrameForHeader(fh)
	if err != nil {
		return r.handleMalformed(fh, err)
	}
	if err := r.handle(f); err != nil {
		return err
	}
	if int(fh.Length) > keptPayload || r.block.raw > keptPayload {
		r.shrink()
	}
	return nil
}

// shrink frees the buffer of the Framer after a large frame. The buffer would last as long as
// the connection.
func (r *reader) shrink() {
	r.newFramer()
	r.block.shrink()
}

// handle does what a frame without data says.
func (r *reader) handle(f http2.Frame) error {
	c := r.conn
	switch f := f.(type) {
	case *http2.HeadersFrame:
		head, err := r.readHead(f)
		if err != nil {
			return err
		}
		return r.handleHead(f.StreamID, head)
	case *http2.RSTStreamFrame:
		return r.handleReset(f)
	case *http2.WindowUpdateFrame:
		return r.handleWindow(f)
	case *http2.SettingsFrame:
		return r.handleSettings(f)
	case *http2.PingFrame:
		return r.handlePing(f)
	case *http2.GoAwayFrame:
		c.life.peerLeaves(f.LastStreamID)
	case *http2.PushPromiseFrame:
		return violation(http2.ErrCodeProtocol, "PUSH_PROMISE")
	}
	return r.budget.spend(costFrame+int64(f.Header().Length/(4<<10)), f.Header().Type.String()) // of GOAWAY, PRIORITY and unknown frames
}

// handleMalformed ends the stream of a frame that cannot be parsed, or returns an error that
// ends the connection.
func (r *reader) handleMalformed(fh http2.FrameHeader, err error) error {
	failed, isStream := errors.AsType[http2.StreamError](err)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && r.in.err == nil: // from the Framer, and not from the link
		return violation(http2.ErrCodeFrameSize, fh.Type.String()+" ends within a field")
	case isStream && fh.Type == http2.FrameWindowUpdate:
		return r.refuse(fh.StreamID, failed.Code)
	case isStream: // what a HEADERS frame does to the table of the decoder is lost (RFC 9113 section 6.2)
		return violation(failed.Code, "a malformed frame: "+fh.Type.String())
	case fh.Type == http2.FramePriority && errors.Is(err, http2.ConnectionError(http2.ErrCodeFrameSize)): // RFC 9113 section 6.3
		return r.refuse(fh.StreamID, http2.ErrCodeFrameSize)
	}
	return err
}

// refuse ends a stream because of a frame that is malformed.
func (r *reader) refuse(id uint32, code http2.ErrCode) error {
	c := r.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[id]; s != nil {
		s.resetLocked(code, violation(code, "a malformed frame"))
		return r.budget.spend(costReset, "malformed frames")
	}
	if c.ids.isIdle(id) {
		return violation(code, "a malformed frame on a stream that is not open")
	}
	return r.budget.spend(costReset, "malformed frames")
}

// handleReset ends a stream that the peer has reset.
func (r *reader) handleReset(f *http2.RSTStreamFrame) error {
	c := r.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[f.StreamID]
	switch {
	case s == nil && c.ids.isIdle(f.StreamID):
		return violation(http2.ErrCodeProtocol, "RST_STREAM on a stream that is not open")
	case s == nil:
		return r.budget.spend(costFrame, "RST_STREAM on a stream that is closed")
	}
	if f.ErrCode == http2.ErrCodeNo && s.in.ended && c.ids.isOurs(s.id) {
		s.out.stopLocked()
		return nil
	}
	answered := s.answered || c.ids.isOurs(f.StreamID)
	s.closeLocked(&ResetError{f.ErrCode})
	if !answered {
		return r.budget.spend(costReset, "RST_STREAM before an answer")
	}
	return nil
}

// handleWindow adds to what may be sent.
func (r *reader) handleWindow(f *http2.WindowUpdateFrame) error {
	c := r.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int64(f.Increment)
	if f.StreamID == 0 {
		if c.flow.sendWindow += n; c.flow.sendWindow > maxWindow {
			return violation(http2.ErrCodeFlowControl, "a window of the connection of more than 2^31-1 bytes")
		}
		c.flow.wake()
		return r.budget.spendCredit("WINDOW_UPDATE")
	}
	s := c.streams[f.StreamID]
	if s == nil {
		if c.ids.isIdle(f.StreamID) {
			return violation(http2.ErrCodeProtocol, "WINDOW_UPDATE on a stream that is not open")
		}
		return r.budget.spendCredit("WINDOW_UPDATE on a stream that is closed")
	}
	if s.out.window += n; s.out.window > maxWindow {
		s.resetLocked(http2.ErrCodeFlowControl, violation(http2.ErrCodeFlowControl, "a window of the stream of more than 2^31-1 bytes"))
	} else {
		s.out.changed.signal()
	}
	return r.budget.spendCredit("WINDOW_UPDATE")
}

// maxWindow is the largest window (RFC 9113 section 6.9.1).
const maxWindow = 1<<31 - 1

// maxSettings is the largest number of settings in one frame.
const maxSettings = 32

// handleSettings applies settings of the peer and acknowledges them.
func (r *reader) handleSettings(f *http2.SettingsFrame) error {
	c := r.conn
	if f.IsAck() {
		return r.budget.spend(costFrame, "SETTINGS")
	}
	if f.NumSettings() > maxSettings {
		return violation(http2.ErrCodeEnhanceYourCalm, fmt.Sprintf("a SETTINGS frame with more than %d settings", maxSettings))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	window := c.peer.window
	for i := range f.NumSettings() {
		if err := r.applySetting(f.Setting(i), &window); err != nil {
			return err
		}
	}
	cost := int64(costFrame)
	if delta := window - c.peer.window; delta != 0 {
		c.peer.window = window
		cost += int64(len(c.streams)) / 100
		for _, s := range c.streams {
			if s.out.window += delta; s.out.window > maxWindow {
				return violation(http2.ErrCodeFlowControl, "SETTINGS make the window of a stream larger than 2^31-1 bytes")
			}
			s.out.changed.signal()
		}
	}
	if !c.peer.seen {
		c.peer.seen, cost = true, 0
		if c.greeted != nil {
			close(c.greeted)
		}
	}
	_ = c.out.frames.WriteSettingsAck()
	return r.budget.spend(cost, "SETTINGS")
}

// applySetting applies one setting; the window of streams is put into window. The caller
// holds mu.
func (r *reader) applySetting(s http2.Setting, window *int64) error {
	c := r.conn
	if err := s.Valid(); err != nil {
		code, _ := err.(http2.ConnectionError) //nolint:errorlint // Valid returns no other
		return violation(http2.ErrCode(code), "the setting "+s.String())
	}
	switch s.ID {
	case http2.SettingInitialWindowSize:
		*window = int64(s.Val)
	case http2.SettingMaxFrameSize:
		c.peer.maxFrame = int(s.Val)
	case http2.SettingMaxConcurrentStreams:
		c.peer.maxStreams = s.Val
		c.changed.Broadcast()
	case http2.SettingEnablePush:
		if c.cfg.Client && s.Val != 0 {
			return violation(http2.ErrCodeProtocol, "a server that enables push")
		}
	case http2.SettingHeaderTableSize, http2.SettingMaxHeaderListSize, // the encoder uses no table, and heads are small
		http2.SettingEnableConnectProtocol, http2.SettingNoRFC7540Priorities:
	}
	return nil
}

// handlePing answers a PING, or takes the answer to one.
func (r *reader) handlePing(f *http2.PingFrame) error {
	c := r.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.IsAck() {
		_ = c.out.frames.WritePing(true, f.Data)
	} else if c.alive.answered(f.Data) {
		return nil
	}
	return r.budget.spend(costFrame, "PING")
}

// explain returns the error for the end of the connection, by the one of a framer.
func explain(err error, framer *http2.Framer) error {
	if coded, ok := errors.AsType[http2.ConnectionError](err); ok {
		text := "malformed frame"
		if detail := framer.ErrorDetail(); detail != nil {
			text = detail.Error()
		}
		return violation(http2.ErrCode(coded), text)
	}
	if errors.Is(err, http2.ErrFrameTooLarge) {
		return violation(http2.ErrCodeFrameSize, fmt.Sprintf("a frame of more than %d bytes", maxFrame))
	}
	return err
}
