package dns

import (
	"sync"

	"github.com/exeat-dev/exeat/allowlist"
)

// Limits bounds what callers may use at the same time; budgets bound queries per
// second. A zero field means its default.
type Limits struct {
	// InFlight is how many queries of one holder may wait for an upstream server, and
	// Total how many of all holders may. Mapped holders may have at most a quarter of
	// Total.
	InFlight, Total int
	// Streams is how many connections over TCP, DoT and DoH an identity may have. It is
	// a setting for the slots of the listeners (limit.Slots); this package does not use
	// it.
	Streams int
	// PerStream is how many queries of one connection are answered at the same time;
	// another one is read when one of them has been answered.
	PerStream int
}

// The defaults of Limits.Streams and Limits.Total.
const (
	DefaultStreams = 256
	DefaultTotal   = 4096
)

// The other defaults of Limits.
const (
	defaultInFlight  = 256
	defaultPerStream = 64
)

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{
		{&l.InFlight, defaultInFlight},
		{&l.Total, DefaultTotal},
		{&l.PerStream, defaultPerStream},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return l
}

// mappedShare divides the bound on all look-ups: mapped holders may have one part, so
// that clients which forge addresses leave the rest to other holders.
const mappedShare = 4

// usage counts the running look-ups of each holder. It is safe for concurrent use, and
// keeps nothing of a holder that has none.
type usage struct {
	limits Limits

	mu      sync.Mutex
	total   int                      // number of look-ups of all holders
	mapped  int                      // number of look-ups of mapped holders
	running map[allowlist.Holder]int // number of look-ups of each holder
}

func newUsage(limits Limits) *usage {
	return &usage{limits: limits, running: make(map[allowlist.Holder]int)}
}

// begin counts a look-up, unless all holders together (total is false) or this holder
// (holder is false) have as many as they may. end must follow if both are true.
func (u *usage) begin(h allowlist.Holder) (total, holder bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.total >= u.limits.Total, h.Mapped() && u.mapped >= max(1, u.limits.Total/mappedShare):
		return false, false
	case u.running[h] >= u.limits.InFlight:
		return true, false
	}
	u.total++
	if h.Mapped() {
		u.mapped++
	}
	u.running[h]++
	return true, true
}

// end counts a look-up as ended that begin has counted.
func (u *usage) end(h allowlist.Holder) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total--
	if h.Mapped() {
		u.mapped--
	}
	if u.running[h]--; u.running[h] == 0 {
		delete(u.running, h)
	}
}
