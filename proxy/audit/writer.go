package audit

import (
	"bytes"
	"io"
)

// batchSize is how many bytes of lines go into one Write at most, and those of
// one line more.
const batchSize = 64 << 10

// writer hands lines to the sink. It belongs to the recorder's goroutine.
type writer struct {
	recorder *Recorder
	buf      []byte
	lines    uint64 // in buf
	failing  bool   // the last Write failed
	torn     bool   // the sink has taken half a line; buf begins with its end
}

// writeAll renders and writes until the queue is closed and empty: many records
// in one Write when they come fast, each at once when they do not.
func (r *Recorder) writeAll() {
	defer close(r.done)
	w := writer{recorder: r}
	for rec := range r.queue {
		w.add(rec)
		if len(r.queue) == 0 || len(w.buf) >= batchSize {
			w.flush()
		}
	}
	w.flush()
}

func (w *writer) add(rec *Record) {
	line, err := rec.JSON()
	if err != nil { // cannot happen: every field has a JSON form
		w.recorder.failed.Add(1)
		return
	}
	w.buf = append(append(w.buf, line...), '\n')
	w.lines++
}

// flush writes what there is. Of a Write that fails in the middle, the whole
// lines count as written; the torn one is closed before the next, which it
// would spoil.
func (w *writer) flush() {
	if w.lines == 0 {
		return
	}
	n, err := w.recorder.cfg.Sink.Write(w.buf)
	if err == nil && n < len(w.buf) {
		err = io.ErrShortWrite
	}
	taken := w.lines
	if err != nil {
		taken = uint64(bytes.Count(w.buf[:n], []byte{'\n'})) //nolint:gosec // G115: a count
		if w.torn && n > 0 {
			taken-- // the end of the line before
		}
	}
	w.recorder.written.Add(taken)
	w.recorder.failed.Add(w.lines - taken)
	if (err != nil) != w.failing && w.recorder.cfg.SinkError != nil {
		w.recorder.cfg.SinkError(err)
	}
	w.failing = err != nil
	if n > 0 {
		w.torn = w.buf[n-1] != '\n'
	}
	w.buf, w.lines = w.buf[:0], 0
	if w.torn {
		w.buf = append(w.buf, '\n')
	}
}
