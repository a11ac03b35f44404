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

// meter counts the bytes of one exchange and reports them now and then. The
// zero value counts and reports to nobody.
type meter struct {
	report func(up, down int64)

	mu       sync.Mutex // held while report runs
	up, down int64
	reported int64
	at       time.Time // of the last report, or of the first byte
}

// stop ends the reports: a write to an origin that has stalled may return later.
func (m *meter) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report = nil
}

func (m *meter) add(up, down int64) {
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
