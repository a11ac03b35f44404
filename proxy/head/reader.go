package head

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// smallSize is the buffer that a Reader starts with, in bytes. Nearly every
// head fits.
const smallSize = 4 << 10

// maxEmptyLines bounds how many empty lines may come before a head.
const maxEmptyLines = 16

// maxEmptyReads bounds how often in a row a connection may return neither
// bytes nor an error.
const maxEmptyReads = 100

//nolint:gochecknoglobals // a cache of buffers: nothing can be observed through it
var small = sync.Pool{New: func() any { return new([smallSize]byte) }}

// A Reader reads heads from a connection and buffers at most its limit. It is
// not for concurrent use. It borrows a buffer when it first needs one;
// Release gives it back.
type Reader struct {
	src    io.Reader
	limit  int
	pooled *[smallSize]byte // what buf lies in until it grows; else nil
	buf    []byte
	start  int   // buf[start:end] has been read from src and not consumed
	end    int   //
	err    error // what src returned together with the last bytes

	// The head that begins at start, as far as it has been looked at.
	next  int // where its next line begins, counted from start
	seen  int // how far that line was looked at, counted from start
	lines int // complete lines before next

	empty int // lines that were skipped before it
}

// NewReader returns a Reader of src that refuses heads of more than limit
// bytes; 0 means DefaultLimit. Deadlines are the caller's: after one has
// passed, ReadHead may be called again and goes on where it was.
func NewReader(src io.Reader, limit int) *Reader {
	if limit <= 0 {
		limit = DefaultLimit
	}
	return &Reader{src: src, limit: limit}
}

// Await returns when a head begins, and consumes the empty lines before it. The
// end of the connection is io.EOF; other errors are returned as they are.
func (r *Reader) Await() error {
	for {
		more := r.skipEmptyLines()
		if !more && r.start < r.end {
			return nil
		}
		if err := r.fill(); err != nil {
			return err
		}
	}
}

// ReadHead reads one head and consumes exactly its bytes, and the empty lines
// before it. The end of the connection before a head's first byte is io.EOF,
// within a head io.ErrUnexpectedEOF; other errors of the connection are returned
// as they are. A malformed head is refused as soon as the line is complete that
// shows it, so that no answer waits for bytes that never come; it stays
// unconsumed, and what comes behind it must not be read as a request.
func (r *Reader) ReadHead() (*Head, error) {
	for {
		if n := r.scan(); n > 0 {
			r.next, r.seen, r.lines = 0, 0, 0
			h, err := Parse(r.buf[r.start : r.start+n])
			if err != nil {
				return nil, err
			}
			r.start += n
			r.empty = 0
			return h, nil
		}
		if err := r.fill(); err != nil {
			if errors.Is(err, io.EOF) && r.start < r.end {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// RequestLine returns the method and the target of the head that ReadHead has
// not returned, as far as they came and are well formed, for the record of the
// refusal; "" for what is not. What is behind them may be anything.
func (r *Reader) RequestLine() (method, target string) {
	line, _, _ := bytes.Cut(r.Buffered(), []byte("\n"))
	i, j := splitRequestLine(line)
	if i > 0 {
		method = string(line[:i])
	}
	if j > 0 {
		target = string(line[i+1 : j])
	}
	return method, target
}

// Read reads what follows the last head, so that a body can be framed on the
// Reader and the next head be read behind it: the buffered bytes first, then
// the connection.
func (r *Reader) Read(p []byte) (int, error) {
	r.next, r.seen, r.lines = 0, 0, 0
	if r.start < r.end {
		n := copy(p, r.buf[r.start:r.end])
		r.start += n
		return n, nil
	}
	if err := r.takeErr(); err != nil {
		return 0, err
	}
	return r.src.Read(p)
}

// Unread gives bytes back that were read with Read: they come first again. It
// is for those that a reader of bodies took and did not use.
func (r *Reader) Unread(p []byte) {
	if len(p) <= r.start && bytes.Equal(p, r.buf[r.start-len(p):r.start]) { // they are still here
		r.start -= len(p)
		r.next, r.seen, r.lines = 0, 0, 0
		return
	}
	kept := append(append(make([]byte, 0, len(p)+r.end-r.start), p...), r.Buffered()...)
	if r.pooled != nil {
		small.Put(r.pooled)
	}
	r.pooled, r.buf = nil, kept
	r.start, r.end = 0, len(kept)
	r.next, r.seen, r.lines = 0, 0, 0
}

// Buffered returns the bytes that were read and not consumed: after ReadHead,
// those behind the head. They are valid until the next call of another method.
func (r *Reader) Buffered() []byte { return r.buf[r.start:r.end] }

// Release gives the buffer back, and drops what is in it. What Buffered
// returned is invalid afterwards; heads stay valid.
func (r *Reader) Release() {
	if r.pooled != nil {
		small.Put(r.pooled)
	}
	r.pooled, r.buf = nil, nil
	r.start, r.end, r.next, r.seen, r.lines = 0, 0, 0, 0, 0
}

// scan returns the number of bytes that Parse can judge: a complete head, or
// as much of one as cannot become a head any more. It returns 0 while more
// bytes are needed. Where it stops depends on the bytes alone and not on how
// they were cut into reads.
func (r *Reader) scan() int {
	if r.skipEmptyLines() {
		return 0
	}
	head := r.buf[r.start:r.end]
	if len(head) > 0 && !isTchar(head[0]) {
		return 1
	}
	for {
		from := max(r.next, r.seen)
		length := bytes.IndexByte(head[from:], '\n')
		if length < 0 {
			r.seen = len(head)
			return 0
		}
		length += from - r.next
		line := head[r.next : r.next+length]
		r.next += length + 1
		r.lines++
		if r.lines == 1 {
			if _, _, _, err := parseRequestLine(line); err != nil {
				return r.next
			}
			continue
		}
		if length < 2 || line[length-1] != '\r' || r.lines > MaxFields+1 {
			return r.next
		}
	}
}

// skipEmptyLines consumes the lines before a head that are nothing but CRLF, and
// reports whether it needs to see another byte to know (RFC 9112 section 2.2).
// What comes behind maxEmptyLines of them is refused like any other line that is
// no request.
func (r *Reader) skipEmptyLines() (more bool) {
	if r.lines > 0 {
		return false
	}
	for r.empty < maxEmptyLines {
		b := r.buf[r.start:r.end]
		if len(b) == 0 || b[0] != '\r' {
			return false
		}
		if len(b) == 1 {
			return true
		}
		if b[1] != '\n' {
			return false
		}
		r.start += 2
		r.empty++
	}
	return false
}

// fill reads at least one byte more, never beyond the limit.
func (r *Reader) fill() error {
	if r.end-r.start >= r.limit {
		return fmt.Errorf("more than %d bytes: %w", r.limit, ErrTooLarge)
	}
	if err := r.takeErr(); err != nil {
		return err
	}
	r.makeRoom()
	for range maxEmptyReads {
		n, err := r.src.Read(r.buf[r.end:])
		r.end += n
		if n > 0 {
			r.err = err
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// makeRoom sees to it that there is room behind end.
func (r *Reader) makeRoom() {
	if r.buf == nil {
		pooled, ok := small.Get().(*[smallSize]byte)
		if !ok {
			pooled = new([smallSize]byte)
		}
		r.pooled, r.buf = pooled, pooled[:min(smallSize, r.limit)]
	}
	if r.start > 0 {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	}
	if r.end < len(r.buf) {
		return
	}
	grown := make([]byte, min(2*len(r.buf), r.limit))
	copy(grown, r.buf)
	if r.pooled != nil {
		small.Put(r.pooled)
	}
	r.pooled, r.buf = nil, grown
}

// takeErr returns an error that came together with bytes, once.
func (r *Reader) takeErr() error {
	err := r.err
	r.err = nil
	return err
}
