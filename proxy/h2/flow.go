package h2

import (
	"slices"
	"time"
)

// recentResets remembers the last streams that this end has reset, on which the peer may
// have sent more before it knew.
type recentResets struct {
	most int // how many are remembered
	all  []lateStream
	next int // index of the oldest one, once there are as many
}

type lateStream struct {
	id     uint32
	window int64 // bytes that the peer may still send
}

func (r *recentResets) add(id uint32, window int64) {
	if len(r.all) < r.most {
		r.all = append(r.all, lateStream{id, window})
		return
	}
	r.all[r.next] = lateStream{id, window}
	r.next = (r.next + 1) % r.most
}

// find returns a stream; nil if it is not among them.
func (r *recentResets) find(id uint32) *lateStream {
	for i := range r.all {
		if r.all[i].id == id {
			return &r.all[i]
		}
	}
	return nil
}

// flow counts what may be sent and received on a connection, and what waits in its streams.
// Its fields are guarded by conn.mu, which the callers of its methods hold.
type flow struct {
	conn *Conn

	sendWindow int64       // bytes that the peer takes on all streams together
	waiting    []*Stream   // streams that wait for sendWindow
	recvWindow int64       // bytes that the peer may still send on all streams together
	credited   int64       // bytes that were received and will be added to recvWindow
	queued     int64       // bytes that wait in the streams
	owed       int64       // bytes among them that were not added to credited
	timer      *time.Timer // runs while credit is owed because of other connections
}

// grant notes that the peer may send n more bytes on the connection, and tells it when
// these are many.
func (f *flow) grant(n int64) {
	if f.credited += n; f.credited >= connWindow/2 {
		f.sendCredit()
	}
}

// sendCredit tells the peer what it may send.
func (f *flow) sendCredit() {
	f.recvWindow += f.credited
	_ = f.conn.out.frames.WriteWindowUpdate(0, uint32(f.credited)) //nolint:gosec // G115: credit is at most the window
	f.credited = 0
}

// keep counts n bytes that begin to wait in a stream. While few wait, the peer gets credit
// for the connection at once.
func (f *flow) keep(n int64) {
	f.queued += n
	f.owed += n
	f.conn.cfg.Memory.queued.Add(n)
	f.settle()
}

// forget counts n bytes that wait no longer.
func (f *flow) forget(n int64) {
	f.queued -= n
	f.conn.cfg.Memory.queued.Add(-n)
	f.settle()
}

// settle gives the credit that need not be held back. No more may be owed than bytes wait.
// If only other connections are the reason to hold it back, it looks again later: nothing
// may come or be taken on this one before the peer has credit.
func (f *flow) settle() {
	memory := f.conn.cfg.Memory
	due := max(0, f.owed-f.queued)
	if f.queued <= connMemory && memory.Queued() <= memory.most {
		due = f.owed
	}
	if due > 0 {
		f.owed -= due
		f.grant(due)
	}
	if f.owed > 0 && f.queued <= connMemory && f.timer == nil && f.conn.err == nil {
		f.timer = time.AfterFunc(creditTime, f.settleLater)
	}
}

// creditTime is the time after which a connection looks whether others have fewer bytes
// waiting.
const creditTime = 100 * time.Millisecond

// settleLater is called by the timer. mu is not held.
func (f *flow) settleLater() {
	f.conn.mu.Lock()
	f.timer = nil
	f.settle()
	f.conn.mu.Unlock()
	f.conn.out.flush()
}

// stop stops the timer.
func (f *flow) stop() {
	if f.timer != nil {
		f.timer.Stop()
	}
}

// reserve takes up to n bytes from the windows for a stream, and returns how many it got.
func (f *flow) reserve(s *Stream, n int) int {
	n = int(min(int64(n), s.out.window, f.sendWindow))
	if n <= 0 {
		return 0
	}
	s.out.window -= int64(n)
	f.sendWindow -= int64(n)
	f.wake()
	return n
}

// refund gives back what reserve has taken and was not sent.
func (f *flow) refund(s *Stream, n int) {
	if n == 0 {
		return
	}
	s.out.window += int64(n)
	f.sendWindow += int64(n)
	f.wake()
}

// wake wakes streams that wait for the window of the connection, those first that have
// waited longest, and only as many as it has room for. wake is called again when one
// of them has taken a part of the window, or takes nothing.
func (f *flow) wake() {
	n := min(len(f.waiting), int((f.sendWindow+smallPayload-1)/smallPayload))
	if n <= 0 {
		return
	}
	for _, s := range f.waiting[:n] {
		s.out.isWaiting = false
		s.out.changed.signal()
	}
	f.waiting = slices.Delete(f.waiting, 0, n)
}

// await notes that a stream waits for the window of the connection.
func (f *flow) await(s *Stream) {
	if !s.out.isWaiting {
		s.out.isWaiting = true
		f.waiting = append(f.waiting, s)
	}
}

// leave undoes await.
func (f *flow) leave(s *Stream) {
	if s.out.isWaiting {
		s.out.isWaiting = false
		f.waiting = slices.DeleteFunc(f.waiting, func(other *Stream) bool { return other == s })
	}
}
