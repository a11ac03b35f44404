package resolve

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// maxFlights bounds how many questions are with servers at a time.
const maxFlights = 4096

var (
	errClosed = errors.New("the resolver is closed")
	errBusy   = errors.New("too many questions are with servers")
)

// flights are the questions that are with servers: each question once, however
// many callers wait for it, and whichever of them give up.
type flights struct {
	run  func(context.Context, Question) (Answer, error)
	life time.Duration // the most that a flight, or a look-up of several, takes

	mu      sync.Mutex
	flying  map[Question]*flight
	closed  bool
	running sync.WaitGroup
}

// flight is one of them. Its fields but cancel are there once done is closed.
type flight struct {
	done     chan struct{}
	cancel   context.CancelFunc
	answer   Answer
	err      error
	panicked string
}

// join returns the flight of a question, a new one unless it is under way. Leave
// is asked before a new one begins, and its error is why none does. The context
// gives its values, and neither its end nor its deadline.
func (f *flights) join(ctx context.Context, q Question, leave func() error) (*flight, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flying[q]; fl != nil {
		return fl, nil
	}
	switch {
	case f.closed:
		return nil, &allowlist.ReasonError{Reason: allowlist.ResolveFailed, Err: errClosed}
	case len(f.flying) >= maxFlights:
		return nil, errBusy
	}
	if err := leave(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.life)
	fl := &flight{done: make(chan struct{}), cancel: cancel}
	f.flying[q] = fl
	f.running.Go(func() {
		defer f.land(q, fl)
		fl.answer, fl.err = f.run(ctx, q)
	})
	return fl, nil
}

// land ends a flight. A panic in it would end the process; it is handed to
// those who wait, whose door contains it.
func (f *flights) land(q Question, fl *flight) {
	if cause := recover(); cause != nil {
		fl.panicked = fmt.Sprintf("%v\n\n%s", cause, debug.Stack())
	}
	fl.cancel()
	f.mu.Lock()
	delete(f.flying, q)
	f.mu.Unlock()
	close(fl.done)
}

// wait waits for a flight to end, or for the caller's time, or for early to
// fire. It reports whether the flight has ended.
func (fl *flight) wait(ctx context.Context, early <-chan time.Time) bool {
	select {
	case <-fl.done:
		if fl.panicked != "" {
			panic(fl.panicked)
		}
		return true
	case <-ctx.Done():
	case <-early:
	}
	return false
}

// close ends all flights and waits for them.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.flying {
		fl.cancel()
	}
	f.mu.Unlock()
	f.running.Wait()
}
