package audit

import "time"

// signal wakes the one goroutine that waits for it. A signal that is sent while it does
// not wait ends its next wait.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

// send sends the signal. It never blocks.
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
