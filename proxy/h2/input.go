package h2

import (
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/net/http2"
)

// input reads from the link into a borrowed buffer, which it gives back before it waits.
type input struct {
	conn       *Conn
	early      []byte // bytes that are read before those of the link
	b          *block // nil while there are no bytes
	start, end int    // the part of b that has not been read
	inFrame    bool   // the rest of a frame or of a head must come in time
	limited    bool   // a deadline for that is set
	err        error  // the error that came together with the last bytes
}

// Read implements io.Reader.
func (in *input) Read(p []byte) (int, error) {
	got, err := in.next(len(p))
	return copy(p, got), err
}

// next returns the next bytes, at least one and at most n. They are valid until the next
// call.
func (in *input) next(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if len(in.early) > 0 {
		p := in.early[:min(n, len(in.early))]
		in.early = in.early[len(p):]
		return p, nil
	}
	for in.start == in.end {
		if err := in.fill(); err != nil {
			return nil, err
		}
	}
	p := in.b[in.start:min(in.end, in.start+n)]
	in.start += len(p)
	return p, nil
}

// fill waits for bytes and reads them.
func (in *input) fill() error {
	in.conn.reader.data.deliver() // it may be in the block
	if in.err != nil {
		return in.explain(in.err)
	}
	if err := in.prepare(); err != nil {
		return err
	}
	if in.b == nil {
		if err := in.explain(in.conn.link.Wait()); err != nil {
			return err
		}
		in.b = blocks.get()
	}
	n, err := in.conn.link.Fill(in.b[:])
	in.start, in.end, in.err = 0, n, err
	if n == 0 {
		in.release()
		if err == nil { // only a part of a TLS record has come
			return nil
		}
		return in.explain(err)
	}
	return nil
}

// prepare does what must be done before bytes are waited for: what has come is answered, and
// the rest of a frame gets a deadline. The peer may need the credit among the answers to
// send more, so they do not wait until it pauses.
func (in *input) prepare() error {
	in.conn.out.flushSoon()
	if in.inFrame && !in.limited {
		in.limited = true
		_ = in.conn.link.SetReadDeadline(time.Now().Add(in.conn.cfg.HeadTimeout)) // an error means that the connection is closed
		if err := in.conn.failure(); err != nil {                                 // end may have set an earlier deadline
			return err
		}
	}
	return nil
}

// explain returns the error for an error of the link.
func (in *input) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case in.limited && errors.Is(err, os.ErrDeadlineExceeded) && in.conn.failure() == nil:
		return violation(http2.ErrCodeEnhanceYourCalm, "a head or a frame did not end within "+in.conn.cfg.HeadTimeout.String())
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return ErrClosed
	}
	return err
}

// begin notes that the rest of a frame or of a head must come in time, and finish that it
// has come.
func (in *input) begin() { in.inFrame = true }

func (in *input) finish() {
	in.inFrame = false
	if in.limited {
		in.limited = false
		in.conn.mu.Lock()
		defer in.conn.mu.Unlock()
		if in.conn.err == nil {
			_ = in.conn.link.SetReadDeadline(time.Time{}) // an error means that the connection is closed
		}
	}
}

// release gives the buffer back.
func (in *input) release() {
	if in.b != nil {
		blocks.put(in.b)
		in.b, in.start, in.end = nil, 0, 0
	}
}
