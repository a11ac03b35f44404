package audit

import "time"

// signal wakes the one goroutine that waits for it. What is sent while nobody
// waits ends the next wait.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

// send never waits.
func (s signal) send() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// wait returns when the signal is sent, or at due unless that is zero.
func (s signal) wait(due time.Time) {
	if due.IsZero() {
		<-s
		return
	}
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-s:
	case <-timer.C:
	}
}
