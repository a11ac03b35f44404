package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"time"
)

// sendEarly sends the early bytes to the upstream, and before that asks the gate, if
// there is one. It returns false if the tunnel has ended.
func (t *Tunnel) sendEarly(early []byte) bool {
	if gate := t.gate; gate != nil {
		t.gate = nil // so that the gate's memory is freed while the tunnel lasts
		return t.admit(gate, early)
	}
	return len(early) == 0 || t.forward(t.upstream, early, &t.up)
}

// relay copies one direction until it ends. It holds a buffer only from when bytes can
// be read until they are written. It moves bulk between plain sockets inside the kernel,
// with a splicer.
//
// The frames of relay, of its callers and of the functions that pass calls determine how
// much stack an idle tunnel keeps, for each of its two directions. The runtime halves a
// stack of which less than a quarter is used, so that a stack of 8 KiB becomes one of 4
// KiB if less than 2 KiB are used.
func (t *Tunnel) relay(src, dst *side, count *atomic.Int64) {
	for splice := newSplicer(src, dst, t.cfg.Pipes); ; {
		ok, err := t.pass(src, dst, splice, count)
		switch {
		case !ok:
			return
		case errors.Is(err, io.EOF):
			t.finish(src, dst)
			return
		case err != nil:
			t.fail("reading from", src, err)
			return
		}
	}
}

// pass waits for bytes and forwards them. ok is false if the tunnel has ended; err is
// the error of the read.
func (t *Tunnel) pass(src, dst *side, splice *splicer, count *atomic.Int64) (ok bool, err error) {
	if splice.wanted() {
		n, err := splice.fill()
		return n == 0 || t.drain(dst, splice, n, count), err
	}
	b, n, err := src.read()
	ok = n == 0 || t.forward(dst, b[:n], count)
	if b != nil {
		buffers.put(b)
	}
	splice.noteRead(n)
	return ok, err
}

// drain forwards n bytes that a splicer holds in its pipe, as forward does.
func (t *Tunnel) drain(dst *side, splice *splicer, n int, count *atomic.Int64) bool {
	if !t.spend(dst, n) {
		splice.drop()
		return false
	}
	for n > 0 {
		t.touch()
		m, err := splice.drain()
		count.Add(int64(m))
		if err != nil {
			t.fail("writing to", dst, err)
			return false
		}
		n -= m
	}
	t.touch()
	t.progress()
	return true
}

// forward writes p, which was just read. It returns false if the tunnel has ended.
func (t *Tunnel) forward(dst *side, p []byte, count *atomic.Int64) bool {
	t.touch()
	if !t.spend(dst, len(p)) {
		return false
	}
	n, err := dst.conn.Write(p)
	count.Add(int64(n))
	if err != nil {
		t.fail("writing to", dst, err)
		return false
	}
	t.touch()
	t.progress()
	return true
}

// spend asks Config.Spend whether n bytes may be written to the upstream, and ends the
// tunnel if they may not.
func (t *Tunnel) spend(dst *side, n int) bool {
	if dst != t.upstream || t.cfg.Spend == nil {
		return true
	}
	prepaid := min(n, t.paid)
	t.paid -= prepaid
	if n == prepaid || t.cfg.Spend(n-prepaid) {
		return true
	}
	t.cut(Limit, nil)
	return false
}

// finish forwards the end of src: it closes dst for writing.
func (t *Tunnel) finish(src, dst *side) {
	t.ending.Lock()
	hidden := !dst.finished && src.hidesReset()
	if !hidden {
		t.first = cmp.Or(t.first, src.name)
		src.finished = true
	}
	t.ending.Unlock()
	if hidden {
		t.fail("reading from", src, syscall.ECONNRESET)
		return
	}
	err := dst.closeWrite()
	switch {
	case errors.Is(err, errNoCloseWrite):
		t.cut(src.name, nil)
	case err != nil:
		t.fail("ending the direction to", dst, err)
	}
}

// fail ends the tunnel because of an error of one side. If that side has finished
// sending before, it has simply left, which is the regular end and no error.
func (t *Tunnel) fail(doing string, s *side, err error) {
	t.ending.Lock()
	finished := s.finished
	if !finished && t.reason == None {
		t.broken = s.name
	}
	t.ending.Unlock()
	if finished {
		t.cut(s.name, nil)
		return
	}
	t.cut(Error, fmt.Errorf("%s the %s: %w", doing, s.name, err))
}

// touch notes that a byte has moved.
func (t *Tunnel) touch() { t.last.Store(int64(time.Since(t.start))) }

// startTimer starts the timer of tick.
func (t *Tunnel) startTimer() {
	t.reporting.Lock()
	defer t.reporting.Unlock()
	t.reportAt = t.cfg.ProgressEvery
	first := min(t.cfg.Idle, t.cfg.Max)
	if t.cfg.Progress != nil {
		first = min(first, t.reportAt)
	}
	t.timer = time.AfterFunc(first, t.tick)
}

// stopTimer stops the timer. When it returns, Progress does not run and will not run
// again.
func (t *Tunnel) stopTimer() {
	t.reporting.Lock()
	defer t.reporting.Unlock()
	t.stopped = true
	t.timer.Stop()
}

// tick ends the tunnel or reports progress if that is due, and sets the timer for what is
// due next. Bytes that move do not reset the timer, which would be expensive; tick takes
// them into account when it runs.
func (t *Tunnel) tick() {
	t.reporting.Lock()
	defer t.reporting.Unlock()
	if t.stopped {
		return
	}
	now := time.Since(t.start)
	left := t.cfg.Max - now
	idle := time.Duration(t.last.Load()) + t.cfg.Idle - now
	switch {
	case left <= 0:
		t.cut(MaxDuration, nil)
		return
	case idle <= 0:
		t.cut(Idle, nil)
		return
	}
	next := min(left, idle)
	if t.cfg.Progress != nil {
		if now >= t.reportAt {
			t.report(now)
		}
		next = min(next, t.reportAt-now)
	}
	t.timer.Reset(next)
}

// progress reports if ProgressBytes have moved since the last report.
func (t *Tunnel) progress() {
	if t.cfg.Progress == nil || t.up.Load()+t.down.Load() < t.reportBytes.Load() {
		return
	}
	t.reporting.Lock()
	defer t.reporting.Unlock()
	if t.up.Load()+t.down.Load() >= t.reportBytes.Load() {
		t.report(time.Since(t.start))
	}
}

// report calls Progress if bytes have moved since the last report. The caller holds
// reporting.
func (t *Tunnel) report(now time.Duration) {
	up, down := t.Counts()
	t.reportAt = now + t.cfg.ProgressEvery
	t.reportBytes.Store(up + down + t.cfg.ProgressBytes)
	if up+down > t.reported {
		t.reported = up + down
		t.cfg.Progress(up, down)
	}
}
