package process

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestLogWriterNeverBlocks checks that lines are lost, and the loss is reported, if
// nobody reads the log, and that the end waits for a bounded time.
func TestLogWriterNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, pipe := io.Pipe() // full from the first byte on, because nobody reads
		w := NewLogWriter(pipe)
		for range maxLogLines + 1 { // one line is being written
			_, _ = io.WriteString(w, "line\n")
			synctest.Wait()
		}
		if since, err := w.Failing(); err != nil || !since.IsZero() {
			t.Errorf("before a line is lost: %v since %v", err, since)
		}
		_, _ = io.WriteString(w, "line\n")
		if since, err := w.Failing(); !errors.Is(err, errLogFull) || !since.Equal(time.Now()) {
			t.Errorf("when a line is lost: %v since %v", err, since)
		}
		began := time.Now()
		w.Close()
		if waited := time.Since(began); waited != logFlush {
			t.Errorf("the end waited %v for a log that nobody reads, want %v", waited, logFlush)
		}
		lines := make(chan int)
		go func() {
			all, _ := io.ReadAll(r)
			lines <- bytes.Count(all, []byte("line\n"))
		}()
		<-w.done
		if since, err := w.Failing(); err != nil || !since.IsZero() {
			t.Errorf("when somebody reads again: %v since %v", err, since)
		}
		_ = pipe.Close()
		if n := <-lines; n != maxLogLines+1 {
			t.Errorf("%d lines were written, want %d", n, maxLogLines+1)
		}
	})
}

// TestFailingLogReportsSinceWhen checks that Failing returns the error of the log and
// the time of the first failure.
func TestFailingLogReportsSinceWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, pipe := io.Pipe()
		_ = r.CloseWithError(io.ErrClosedPipe)
		w := NewLogWriter(pipe)
		began := time.Now()
		for range 2 {
			_, _ = io.WriteString(w, "line\n")
			time.Sleep(time.Second) // the bubble's time
		}
		if since, err := w.Failing(); !errors.Is(err, io.ErrClosedPipe) || !since.Equal(began) {
			t.Errorf("got %v since %v, want it since %v", err, since, began)
		}
		w.Close()
	})
}

// halfway is a writer that accepts a part of a line, and then nothing until mend is
// called.
type halfway struct {
	mu   sync.Mutex
	room int
	text []byte
}

func (h *halfway) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := min(h.room, len(p))
	h.room -= n
	h.text = append(h.text, p[:n]...)
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// mend gives the writer room for more, and returns what it has accepted so far.
func (h *halfway) mend() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.room += 100
	return string(h.text)
}

// TestLogRecoversWithoutAnotherLine checks that a log which works again is no longer
// reported as failing, without another line, and that the last line is written
// completely.
func TestLogRecoversWithoutAnotherLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &halfway{room: 8}
		w := NewLogWriter(out)
		_, _ = io.WriteString(w, "one\n")
		_, _ = io.WriteString(w, "another\n")
		time.Sleep(time.Minute)
		if _, err := w.Failing(); err == nil {
			t.Error("half a line is no failure")
		}
		_ = out.mend()
		time.Sleep(10 * time.Second)
		if since, err := w.Failing(); err != nil || !since.IsZero() {
			t.Errorf("when there is room again: %v since %v", err, since)
		}
		if got := out.mend(); got != "one\nanother\n" {
			t.Errorf("the log says %q", got)
		}
		w.Close()
	})
}
