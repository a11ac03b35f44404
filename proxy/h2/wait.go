package h2

import (
	"sync"
	"time"
)

// A signal wakes one goroutine that waits for a change. The zero value is ready to use.
type signal struct{ ch chan struct{} }

// wait waits for a signal. mu, which guards what changes, is unlocked meanwhile.
func (s *signal) wait(mu *sync.Mutex) {
	if s.ch == nil {
		s.ch = make(chan struct{}, 1)
	}
	ch := s.ch
	mu.Unlock()
	<-ch
	mu.Lock()
}

// signal wakes the goroutine that waits, or the next one. The caller holds the lock.
func (s *signal) signal() {
	if s.ch == nil {
		return
	}
	select {
	case s.ch <- struct{}{}:
	default:
	}
}

// deadline is the deadline of one direction. The zero value is none.
type deadline struct {
	timer  *time.Timer // nil if none runs
	passed bool
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// set sets the deadline; a zero time removes it. It calls wake when there is a deadline, and
// when it passes, with mu held.
func (d *deadline) set(mu *sync.Mutex, t time.Time, wake func()) {
	mu.Lock()
	defer mu.Unlock()
	d.stop()
	d.passed = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if d.passed = left <= 0; !d.passed {
		var timer *time.Timer
		timer = time.AfterFunc(left, func() {
			mu.Lock()
			defer mu.Unlock()
			if d.timer == timer { // neither stopped nor replaced
				d.timer, d.passed = nil, true
				wake()
			}
		})
		d.timer = timer
	}
	wake()
}
