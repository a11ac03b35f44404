package audit

import (
	"context"
	"io"
)

// Render appends a record as one line without the newline. It is called from one
// goroutine at a time.
type Render func(dst []byte, r *Record) ([]byte, error)

// keptBuffer bounds the buffer that a sink of lines keeps between writes.
const keptBuffer = 1 << 20

// NewLines returns a sink that renders each record as a line and writes the lines of
// one batch in one Write. It continues after an error: records that it cannot write are
// reported as lost, and a partial line is ended by a newline before the next line,
// which it would spoil.
func NewLines(w io.Writer, render Render) Sink { return &lines{w: w, render: render} }

// lines is the sink of [NewLines]. It is used by one goroutine.
type lines struct {
	w      io.Writer
	render Render
	buf    []byte
	ends   []int // end of each record's line in buf; 0 if the record has none
	torn   bool  // the last Write ended within a line
}

// Write renders the records and writes them.
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
		// A line that lacks only its newline is written: the newline precedes the next
		// write.
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

// flush writes the buffer and returns how many bytes the writer accepted.
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
