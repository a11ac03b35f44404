package process

import (
	"errors"
	"io"
	"sync"
	"time"
)

// maxLogLines bounds the lines of the log that wait for standard error.
const maxLogLines = 1024

// retryLog is the time after which the last line is retried if its write failed.
const retryLog = 5 * time.Second

// errLogFull means that lines are written faster than they are read.
var errLogFull = errors.New("nobody reads it, and lines are dropped")

// LogWriter writes the log of a long-running command. Write never blocks: otherwise a
// pipe that is full because nobody reads it would stop each goroutine that logs, among
// them the one that loads policies. It is used by a slog handler, which writes one line
// at a time.
type LogWriter struct {
	out     io.Writer
	lines   chan []byte   // lines that wait to be written
	closing chan struct{} // closed when no more lines will come
	done    chan struct{} // closed after the last line was written
	rest    []byte        // unwritten part of the last line; used by run only

	mu    sync.Mutex
	since time.Time // when lines began to be lost; zero if none are lost now
	err   error     // why they are lost
}

// NewLogWriter returns a writer to out. Close ends it.
func NewLogWriter(out io.Writer) *LogWriter {
	w := &LogWriter{
		out: out, lines: make(chan []byte, maxLogLines), closing: make(chan struct{}), done: make(chan struct{}),
	}
	go w.run()
	return w
}

// Write adds a line, or drops it if too many wait.
func (w *LogWriter) Write(line []byte) (int, error) {
	select {
	case w.lines <- append([]byte(nil), line...):
	default:
		w.note(errLogFull)
	}
	return len(line), nil
}

// run writes lines. It retries the last line that could not be written after some time,
// so that a log which works again is noticed even if there is no new line.
func (w *LogWriter) run() {
	defer close(w.done)
	for {
		var again <-chan time.Time
		if w.rest != nil {
			again = time.After(retryLog)
		}
		select {
		case line := <-w.lines:
			w.write(line)
		case <-again:
			w.write(w.rest)
		case <-w.closing:
			for len(w.lines) > 0 {
				w.write(<-w.lines)
			}
			return
		}
	}
}

func (w *LogWriter) write(line []byte) {
	n, err := w.out.Write(line)
	if w.rest = nil; err != nil {
		w.rest = line[min(max(n, 0), len(line)):]
	}
	w.note(err)
}

// note stores the result of writing a line.
func (w *LogWriter) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		w.since = time.Time{}
	case w.since.IsZero():
		w.since = time.Now()
	}
	w.err = err
}

// Failing returns why lines are lost and since when; nil if none are.
func (w *LogWriter) Failing() (since time.Time, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since, w.err
}

// logFlush bounds the wait for the log at the end of the process. It is less than
// logReserve, so that the end as a whole keeps to its time.
const logFlush = logReserve / 2

// Close writes the lines that wait, for at most logFlush. If out blocks, the goroutine
// that writes ends with the process.
func (w *LogWriter) Close() {
	close(w.closing)
	late := time.NewTimer(logFlush)
	defer late.Stop()
	select {
	case <-w.done:
	case <-late.C:
	}
}
