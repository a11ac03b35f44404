package audit

import (
	"context"
	"io"
)

// Render appends one line, without its newline, that says what the record says.
// It is called from one goroutine at a time.
type Render func(dst []byte, r *Record) ([]byte, error)

// keptBuffer bounds what a sink of lines keeps of its buffer between writes.
const keptBuffer = 1 << 20

// NewLines returns a sink that writes each record as a line of a rendering, the
// lines of one batch in one Write. It goes on after an error: what it cannot
// write is lost and reported, and half a line that the writer has taken is
// closed before the next, which it would spoil.
func NewLines(w io.Writer, render Render) Sink { return &lines{w: w, render: render} }

// lines writes lines. It belongs to one goroutine.
type lines struct {
	w      io.Writer
	render Render
	buf    []byte
	ends   []int // where the line of each record ends in buf; 0 if it has none
	torn   bool  // the writer has taken half a line
}

// Write makes lines of the records and writes them.
func (l *lines) Write(_ context.Context, records []*Record) error {
	renderErr := l.fill(records)
	n, err := l.flush()
	if err == nil && renderErr == nil {
		return nil
	}
	lost := &LostError{Err: err}
	if err == nil {
		lost.Err = renderErr
	}
	for i, end := range l.ends {
		// A line of which only the newline is missing is whole: it gets one
		// before whatever comes next.
		if end == 0 || end-1 > n {
			lost.Lost = append(lost.Lost, i)
		}
	}
	return lost
}

// fill renders the records. A record that cannot be rendered has no line.
func (l *lines) fill(records []*Record) error {
	l.buf, l.ends = l.buf[:0], l.ends[:0]
	if l.torn {
		l.buf = append(l.buf, '\n')
	}
	var failed error
	for _, rec := range records {
		buf, err := l.render(l.buf, rec)
		if err != nil {
			failed = err
			l.ends = append(l.ends, 0)
			continue
		}
		l.buf = append(buf, '\n')
		l.ends = append(l.ends, len(l.buf))
	}
	return failed
}

// flush writes the buffer and returns how much of it the writer has taken.
func (l *lines) flush() (int, error) {
	if len(l.buf) == 0 {
		return 0, nil
	}
	n, err := l.w.Write(l.buf)
	if err == nil && n < len(l.buf) {
		err = io.ErrShortWrite
	}
	if n > 0 {
		l.torn = l.buf[n-1] != '\n'
	}
	if cap(l.buf) > keptBuffer {
		l.buf = nil
	}
	return n, err
}
