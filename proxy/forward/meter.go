package forward

import (
	"sync"
	"time"
)

// Progress is reported after this time or number of bytes, as that of a tunnel is.
const (
	reportEvery = time.Minute
	reportBytes = 64 << 20
)

// meter counts the bytes that one exchange sends, reports them from time to time, and ends
// the exchange when no byte has moved for too long. start must be called first.
type meter struct {
	report func(up, down int64) // reports the bytes; nil if they are not reported
	limit  time.Duration        // how long no byte may move
	idle   *time.Timer          // ends the exchange

	mu         sync.Mutex // held while report runs; guards the fields below
	up, down   int64
	reported   int64     // up+down at the last report
	lastReport time.Time // time of the last report, or of the first byte
}

// start starts the timer. ended is called when no byte has moved for limit.
func (m *meter) start(limit time.Duration, ended func()) {
	m.limit, m.idle = limit, time.AfterFunc(limit, ended)
}

// stop stops the timer and the reports. A write to an origin that has stalled may return,
// and add bytes, after that.
func (m *meter) stop() {
	m.idle.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report = nil
}

// moved notes that bytes have moved.
func (m *meter) moved() { m.idle.Reset(m.limit) }

// add counts bytes that were sent to the origin (up) and to the client (down).
func (m *meter) add(up, down int64) {
	m.moved()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.up, m.down = m.up+up, m.down+down
	total := m.up + m.down
	now := time.Now()
	switch {
	case m.lastReport.IsZero():
		m.lastReport = now
	case m.report != nil && (total-m.reported >= reportBytes || now.Sub(m.lastReport) >= reportEvery):
		m.reported, m.lastReport = total, now
		m.report(m.up, m.down)
	}
}

// uploaded returns the bytes that were sent to origins.
func (m *meter) uploaded() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up
}
