package process

import (
	"errors"
	"io"
	"sync"
	"time"
)

// maxLogLines is how many lines of the log may wait for standard error.
const maxLogLines = 1024

// logAgain is how long after it failed the last line is tried again.
const logAgain = 5 * time.Second

// errLogFull says that nobody reads the log fast enough.
var errLogFull = errors.New("nobody reads it, and lines are dropped")

// LogWriter writes the log of a long-running command. Write never waits: a pipe
// that is full because nobody reads it would otherwise stop whoever logs, and
// with it the next policy. It belongs to a slog handler, which writes a line at
// a time.
type LogWriter struct {
	out     io.Writer
	lines   chan []byte   // what waits to be written
	closing chan struct{} // closed when no more lines come
	done    chan struct{} // closed when the last line has been written
	rest    []byte        // of the last line, what could not be written; only for run

	mu    sync.Mutex
	since time.Time // when lines began to be lost; zero if they are not
	err   error     // why they are lost
}

// NewLogWriter returns a writer to out, which Close ends.
func NewLogWriter(out io.Writer) *LogWriter {
	w := &LogWriter{
		out: out, lines: make(chan []byte, maxLogLines), closing: make(chan struct{}), done: make(chan struct{}),
	}
	go w.run()
	return w
}

// Write takes a line, or drops it if too many wait.
func (w *LogWriter) Write(line []byte) (int, error) {
	select {
	case w.lines <- append([]byte(nil), line...):
	default:
		w.note(errLogFull)
	}
	return len(line), nil
}

// run writes lines. The last one that could not be written is tried again by time, so
// that a log which works again is known to, also if there is nothing to say.
func (w *LogWriter) run() {
	defer close(w.done)
	for {
		var again <-chan time.Time
		if w.rest != nil {
			again = time.After(logAgain)
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

// note remembers what came of a line.
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

// Failing returns why lines are lost and since when; nil if they are not.
func (w *LogWriter) Failing() (since time.Time, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since, w.err
}

// logFlush is how long the end of the process waits for its log to be written. It is
// less than logReserve, so that all of the end keeps to its time.
const logFlush = logReserve / 2

// Close writes what waits, for at most logFlush. Where nobody reads, the
// goroutine that writes ends with the process.
func (w *LogWriter) Close() {
	close(w.closing)
	late := time.NewTimer(logFlush)
	defer late.Stop()
	select {
	case <-w.done:
	case <-late.C:
	}
}
