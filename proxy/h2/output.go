package h2

import (
	"encoding/binary"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// maxOut is how many bytes of frames may wait because the peer does not read. Beyond
// maxOutData the streams wait before they add anything, so that only frames which the
// peer's own frames cause, such as answers to PING, can reach maxOut.
const (
	maxOut     = 256 << 10
	maxOutData = 64 << 10
	smallFrame = 1 << 10 // data up to this size waits beside other frames
)

// output writes what a connection sends. Frames are queued, and whoever finds nobody
// writing writes all that is queued.
type output struct {
	conn *Conn

	writing  sync.Mutex // held while something is written to the link; guards extendAt
	extendAt time.Time  // when the deadline for writing must be set again

	// The following fields are guarded by conn.mu.
	queue, spare []byte         // frames that wait, and a buffer to exchange it with
	drained      sync.Cond      // wakes those who wait in awaitQueue
	frames       *http2.Framer  // queues frames, and returns no errors
	encoder      *hpack.Encoder // appends to encoded
	encoded      encodedHead
}

func (o *output) init(c *Conn) {
	o.conn, o.drained.L = c, &c.mu
	o.frames = http2.NewFramer(o, nil)
	o.frames.AllowIllegalWrites = true // its checks would only repeat ours
	o.encoder = hpack.NewEncoder(&o.encoded)
	o.encoder.SetMaxDynamicTableSizeLimit(0) // heads are small, and a table would cost memory for each connection
}

// Write queues a frame. It implements io.Writer for frames. The caller holds mu.
func (o *output) Write(p []byte) (int, error) {
	o.queue = append(o.queue, p...)
	if len(o.queue) > maxOut {
		o.conn.endLocked(violation(http2.ErrCodeEnhanceYourCalm, "the peer does not read what its frames cause"))
	}
	return len(p), nil
}

// awaitQueue waits until a stream may queue a head or an answer, or the connection has
// ended. The caller holds mu, which is unlocked meanwhile.
func (o *output) awaitQueue() {
	for len(o.queue) >= maxOutData && o.conn.err == nil {
		o.drained.Wait()
	}
}

// putDataHeader writes the header of a DATA frame.
func putDataHeader(b []byte, n int, id uint32, end bool) {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	b[0], b[1], b[2] = byte(n>>16), byte(n>>8), byte(n) //nolint:gosec // G115: a frame has less than 2^24 bytes
	b[3], b[4] = byte(http2.FrameData), byte(flags)
	binary.BigEndian.PutUint32(b[5:frameHeader], id)
}

// appendData queues a small DATA frame. The caller holds mu.
func (o *output) appendData(id uint32, p []byte, end bool) {
	o.queue = append(o.queue, make([]byte, frameHeader)...)
	putDataHeader(o.queue[len(o.queue)-frameHeader:], len(p), id, end)
	o.queue = append(o.queue, p...)
}

// flush writes what is queued, unless another goroutine is writing, which then does it.
// mu must not be held.
func (o *output) flush() {
	for o.hasOut() && o.writing.TryLock() {
		o.writeOut()
		o.writing.Unlock()
	}
}

func (o *output) hasOut() bool {
	o.conn.mu.Lock()
	defer o.conn.mu.Unlock()
	return len(o.queue) > 0 && o.conn.err == nil
}

// writeOut writes all that is queued. The caller holds writing.
func (o *output) writeOut() {
	o.conn.mu.Lock()
	out := o.queue
	o.queue, o.spare = o.spare[:0], nil
	o.drained.Broadcast()
	o.conn.mu.Unlock()
	if len(out) > 0 {
		o.write(out)
	}
	o.conn.mu.Lock()
	if cap(out) <= maxKept {
		o.spare = out
	}
	if len(o.queue) == 0 && cap(o.queue) > maxKept {
		o.queue = nil
	}
	o.conn.mu.Unlock()
}

// write writes to the link, and ends the connection if that fails. The caller holds
// writing.
func (o *output) write(p []byte) {
	o.extendDeadline()
	if _, err := o.conn.link.Write(p); err != nil {
		o.conn.end(err)
	}
}

// extendDeadline sets the deadline for writing. A deadline costs more than a look at the
// clock, so it is set once a second.
func (o *output) extendDeadline() {
	now := time.Now()
	if now.Before(o.extendAt) {
		return
	}
	o.extendAt = now.Add(time.Second)
	o.conn.mu.Lock()
	defer o.conn.mu.Unlock()
	if o.conn.err == nil { // end has set a deadline in the past
		_ = o.conn.link.SetWriteDeadline(now.Add(o.conn.cfg.WriteTimeout + time.Second)) // an error means that the connection is closed
	}
}

// writeData writes n bytes of a block as DATA frames of a stream, with everything before
// them that is queued. The bytes begin behind the room for a header. They were taken from
// the windows, and go back there if the stream fails before they are written.
func (o *output) writeData(stream *outbound, b *block, n int) error {
	c := o.conn
	o.writing.Lock()
	o.writeOut()
	c.mu.Lock()
	most := smallPayload
	if c.peer.maxFrame >= maxPayload {
		most = maxPayload
	}
	failed := stream.failure()
	if failed != nil { // RST_STREAM may be on its way, and nothing may follow it
		c.flow.refund(stream.stream, n)
	}
	c.mu.Unlock()
	var err error
	if failed == nil {
		err = o.writeFrames(stream.stream.id, b, n, most)
	}
	if err != nil {
		c.end(err) // before another write can fail because of this one
	}
	o.writing.Unlock()
	if err != nil {
		return c.failure()
	}
	o.flush()
	return failed
}

// writeFrames writes n bytes of a block as DATA frames of most bytes. The caller holds
// writing.
func (o *output) writeFrames(id uint32, b *block, n, most int) (err error) {
	o.extendDeadline()
	o.conn.link.Gather()
	for at := 0; at < n && err == nil; {
		m := min(n-at, most)
		putDataHeader(b[at:], m, id, false) // over bytes that were written before
		_, err = o.conn.link.Write(b[at : at+frameHeader+m])
		at += m
	}
	if ferr := o.conn.link.Flush(); err == nil {
		err = ferr
	}
	return err
}

// flushSoon does what flush does for the goroutine that reads, which must not wait for a
// peer that does not read: what the socket has no room for is written by another goroutine.
func (o *output) flushSoon() {
	if !o.conn.link.Gathers() {
		if o.hasOut() {
			o.conn.running.Go(o.flush)
		}
		return
	}
	for o.hasOut() && o.writing.TryLock() {
		o.conn.link.Gather()
		o.writeOut()
		all, err := o.conn.link.TryFlush()
		if !all {
			o.conn.running.Go(o.writeRest)
			return
		}
		if err != nil {
			o.conn.end(err)
		}
		o.writing.Unlock()
	}
}

// writeRest writes what TryFlush has left. It unlocks writing, which flushSoon has locked.
func (o *output) writeRest() {
	if err := o.conn.link.Flush(); err != nil {
		o.conn.end(err)
	}
	o.writing.Unlock()
	o.flush()
}

// encodedHead is what the encoder writes to.
type encodedHead []byte

// Write implements io.Writer.
func (b *encodedHead) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// appendHead queues a head in as many frames as it needs. The caller holds mu.
func (o *output) appendHead(id uint32, fields []Field, end bool) {
	o.encoded = o.encoded[:0]
	for _, f := range fields {
		_ = o.encoder.WriteField(hpack.HeaderField{Name: strings.ToLower(f.Name), Value: f.Value, Sensitive: true}) // encodedHead returns no error
	}
	rest := []byte(o.encoded)
	for first := true; first || len(rest) > 0; first = false {
		fragment := rest[:min(len(rest), o.conn.peer.maxFrame)]
		rest = rest[len(fragment):]
		if first {
			_ = o.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fragment, EndStream: end, EndHeaders: len(rest) == 0})
			continue
		}
		_ = o.frames.WriteContinuation(id, len(rest) == 0, fragment)
	}
	if cap(o.encoded) > maxKept {
		o.encoded = nil
	}
}

// maxKept is the largest size of a buffer that an idle connection keeps.
const maxKept = 4 << 10
