package head

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// smallSize is the size of the first buffer of a Reader, in bytes. Nearly every head fits
// into it.
const smallSize = 4 << 10

// maxEmptyLines is the largest number of empty lines before a head.
const maxEmptyLines = 16

// maxEmptyReads is the largest number of consecutive reads that may return neither bytes
// nor an error.
const maxEmptyReads = 100

//nolint:gochecknoglobals // a cache of buffers has no visible state
var smallBuffers = sync.Pool{New: func() any { return new([smallSize]byte) }}

// A Reader reads heads from a connection and buffers at most limit bytes. It is not safe
// for concurrent use. It takes a buffer from a pool when it first needs one, and Release
// puts it back.
type Reader struct {
	src    io.Reader
	limit  int
	pooled *[smallSize]byte // the buffer from the pool that holds buf; nil if buf is not from the pool
	buf    []byte
	start  int   // offset of the first byte of buf that has not been consumed
	end    int   // offset behind the last byte of buf that has been read from src
	err    error // the error that src returned together with the last bytes

	// The following fields describe the head that begins at start.
	next  int // offset from start of the line that is scanned next
	seen  int // offset from start up to which that line has been searched for its end
	lines int // number of complete lines before next

	empty int // number of empty lines that were skipped before the head
}

// NewReader returns a Reader that reads from src and refuses heads of more than limit
// bytes; 0 means DefaultLimit. The caller sets deadlines. After a deadline has passed,
// ReadHead may be called again and continues where it stopped.
func NewReader(src io.Reader, limit int) *Reader {
	if limit <= 0 {
		limit = DefaultLimit
	}
	return &Reader{src: src, limit: limit}
}

// Await waits for the first byte of a head, and consumes the empty lines before it. It
// returns io.EOF at the end of the connection, and other errors of the connection
// unchanged.
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

// ReadHead reads one head and consumes exactly its bytes and the empty lines before it.
// If the connection ends before the first byte of a head the error is io.EOF, and within
// a head io.ErrUnexpectedEOF; other errors of the connection are returned unchanged. A
// malformed head is refused as soon as its first malformed line is complete, so that no
// answer waits for bytes that may never arrive. Its bytes are not consumed, and no
// request must be read after it.
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

// Match reports whether the bytes that come next are a text, and consumes them if they are.
// It reads more bytes as long as those that have come are the beginning of the text. Empty
// lines that were skipped before them do not match.
func (r *Reader) Match(text string) bool {
	for r.empty == 0 {
		got := r.Buffered()
		switch {
		case len(got) >= len(text):
			if string(got[:len(text)]) != text {
				return false
			}
			r.start += len(text)
			r.next, r.seen, r.lines = 0, 0, 0
			return true
		case string(got) != text[:len(got)]:
			return false
		}
		if r.fill() != nil {
			return false
		}
	}
	return false
}

// RequestLine returns the method and the target of a head that ReadHead has refused, for
// the record of the refusal. Each is "" if it is missing or malformed. The bytes after
// them are not checked.
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

// Read reads the bytes after the last head: the buffered bytes first, then those of the
// connection. So the caller can read a body from the Reader, and the next head after it.
func (r *Reader) Read(p []byte) (int, error) {
	r.next, r.seen, r.lines = 0, 0, 0
	if r.start < r.end {
		n := copy(p, r.buf[r.start:r.end])
		r.start += n
		return n, nil
	}
	if err := r.pendingErr(); err != nil {
		return 0, err
	}
	return r.src.Read(p)
}

// Unread gives back bytes that were read with Read, so that they are read next. It is for
// bytes that the reader of a body has read and not used.
func (r *Reader) Unread(p []byte) {
	if len(p) <= r.start && bytes.Equal(p, r.buf[r.start-len(p):r.start]) { // the bytes are still in the buffer
		r.start -= len(p)
		r.next, r.seen, r.lines = 0, 0, 0
		return
	}
	kept := append(append(make([]byte, 0, len(p)+r.end-r.start), p...), r.Buffered()...)
	if r.pooled != nil {
		smallBuffers.Put(r.pooled)
	}
	r.pooled, r.buf = nil, kept
	r.start, r.end = 0, len(kept)
	r.next, r.seen, r.lines = 0, 0, 0
}

// Buffered returns the bytes that have been read from the connection and not consumed:
// after ReadHead, those after the head. They are valid until the next call of another
// method.
func (r *Reader) Buffered() []byte { return r.buf[r.start:r.end] }

// Release puts the buffer back and drops its content. The result of Buffered is invalid
// afterwards; heads stay valid.
func (r *Reader) Release() {
	if r.pooled != nil {
		smallBuffers.Put(r.pooled)
	}
	r.pooled, r.buf = nil, nil
	r.start, r.end, r.next, r.seen, r.lines = 0, 0, 0, 0, 0
}

// scan returns the number of bytes to pass to Parse: those of a complete head, or those
// after which the head is known to be malformed. It returns 0 if more bytes are needed.
// The result depends on the bytes only and not on how they were split into reads.
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

// skipEmptyLines consumes empty lines (CRLF) before a head, and reports whether it needs
// another byte to recognize one (RFC 9112 section 2.2). After maxEmptyLines an empty line
// is refused like any other line that is not a request line.
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

// fill reads at least one more byte from the connection. It never buffers more than the
// limit.
func (r *Reader) fill() error {
	if r.end-r.start >= r.limit {
		return fmt.Errorf("more than %d bytes: %w", r.limit, ErrTooLarge)
	}
	if err := r.pendingErr(); err != nil {
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

// makeRoom ensures that there is free space in the buffer after end.
func (r *Reader) makeRoom() {
	if r.buf == nil {
		pooled, ok := smallBuffers.Get().(*[smallSize]byte)
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
		smallBuffers.Put(r.pooled)
	}
	r.pooled, r.buf = nil, grown
}

// pendingErr returns and clears the error that came together with bytes.
func (r *Reader) pendingErr() error {
	err := r.err
	r.err = nil
	return err
}
