package forward

import (
	"sync"
	"time"
)

// When progress is reported: the same as of a tunnel.
const (
	reportEvery = time.Minute
	reportBytes = 64 << 20
)

// meter counts the bytes that one exchange sends, reports them now and then, and
// ends the exchange when nothing has moved for too long. Start comes first.
type meter struct {
	report func(up, down int64) // nil: nobody is told
	limit  time.Duration        // how long nothing may move
	idle   *time.Timer          // ends the exchange

	mu       sync.Mutex // held while report runs
	up, down int64
	reported int64
	at       time.Time // of the last report, or of the first byte
}

// start begins to watch: ended is called once nothing has moved for limit.
func (m *meter) start(limit time.Duration, ended func()) {
	m.limit, m.idle = limit, time.AfterFunc(limit, ended)
}

// stop ends that and the reports: a write to an origin that has stalled may
// return later.
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
	case m.at.IsZero():
		m.at = now
	case m.report != nil && (total-m.reported >= reportBytes || now.Sub(m.at) >= reportEvery):
		m.reported, m.at = total, now
		m.report(m.up, m.down)
	}
}

// uploaded returns the bytes that were sent to origins.
func (m *meter) uploaded() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up
}
