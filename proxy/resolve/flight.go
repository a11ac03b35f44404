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

// maxFlights bounds how many questions are with servers at the same time.
const maxFlights = 4096

var (
	errClosed = errors.New("the resolver is closed")
	errBusy   = errors.New("too many questions are with servers")
)

// flights holds the questions that are with servers: each question once, however many
// callers wait for it and whichever of them give up.
type flights struct {
	run  func(context.Context, Question) (Answer, error)
	life time.Duration // longest duration of a flight, and of a look-up that needs several

	mu      sync.Mutex
	flying  map[Question]*flight
	closed  bool
	running sync.WaitGroup
}

// flight is one question that is with servers. Its fields other than cancel are set when
// done is closed.
type flight struct {
	done     chan struct{}
	cancel   context.CancelFunc
	answer   Answer
	err      error
	panicked string
}

// join returns the flight of a question, and begins it if there is none. Before it begins
// a flight it calls spend, which counts the question; if spend returns an error, no flight
// begins. The flight uses the values of the context, but not its cancellation or deadline.
func (f *flights) join(ctx context.Context, q Question, spend func() error) (*flight, error) {
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
	if err := spend(); err != nil {
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

// land ends a flight. It passes a panic, which would end the process, to the callers
// that wait for the flight, which recover from it.
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

// wait waits until a flight has ended, ctx is done, or early fires. It reports whether
// the flight has ended.
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

// close cancels all flights and waits for them.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.flying {
		fl.cancel()
	}
	f.mu.Unlock()
	f.running.Wait()
}
