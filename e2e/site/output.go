package site

import (
	"errors"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Output collects what a process writes, and lets callers wait for a part of it. It is
// safe for concurrent use.
type Output struct {
	mu      sync.Mutex
	text    strings.Builder
	ended   bool
	changed chan struct{} // closed at the next change
}

// NewOutput returns an empty Output.
func NewOutput() *Output { return &Output{changed: make(chan struct{})} }

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p)
	o.wake()
	return len(p), nil
}

// end says that nothing more will be written, which ends every wait.
func (o *Output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.wake()
}

func (o *Output) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// String returns what was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Until waits until good reports true for the whole lines that were written so far. It
// returns an error if the output ends or the time is over before.
func (o *Output) Until(patience time.Duration, good func(text string) bool) error {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		o.mu.Lock()
		text, ended, changed := o.text.String(), o.ended, o.changed
		o.mu.Unlock()
		if good(text[:strings.LastIndexByte(text, '\n')+1]) {
			return nil
		}
		if ended {
			return errors.New("the output ended before")
		}
		select {
		case <-changed:
		case <-late.C:
			return errors.New("waited in vain")
		}
	}
}

// Line waits for whole lines that match, and returns the match and its groups.
func (o *Output) Line(patience time.Duration, pattern *regexp.Regexp) ([]string, error) {
	var match []string
	err := o.Until(patience, func(text string) bool {
		match = pattern.FindStringSubmatch(text)
		return match != nil
	})
	return match, err
}

// tail returns the last lines of the output.
func (o *Output) tail(lines int) string {
	all := strings.Split(strings.TrimRight(o.String(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
