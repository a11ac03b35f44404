package dns

import (
	"sync"

	"github.com/exeat-dev/exeat/allowlist"
)

// Limits bound what callers may use at a time; queries per second are for the
// budgets. A zero field means its default.
type Limits struct {
	// InFlight is how many queries of a holder may wait for an upstream
	// server, and Total those of all: a quarter of these at most what came by
	// source-map.
	InFlight, Total int
	// Streams is how many connections over TCP, DoT and DoH an identity may
	// have. It is for whoever makes the slots of the listeners (limit.Slots);
	// this package does not look at it.
	Streams int
	// PerStream is how many queries on one connection are worked on; the next
	// one is read when one of them is answered.
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

// mappedShare is the part of all look-ups that may be those of mapped holders, one
// in so many: whoever forges their addresses leaves the rest to the others.
const mappedShare = 4

// usage counts the look-ups of holders at the moment. It is safe for concurrent
// use, and remembers nobody who has none.
type usage struct {
	limits Limits

	mu     sync.Mutex
	total  int
	mapped int // those of mapped holders
	of     map[allowlist.Holder]int
}

func newUsage(limits Limits) *usage {
	return &usage{limits: limits, of: make(map[allowlist.Holder]int)}
}

// look takes up a look-up, which landed gives back, and reports whether there is
// room for it: among all, and among those of the holder.
func (u *usage) look(h allowlist.Holder) (all, own bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.total >= u.limits.Total, h.Mapped() && u.mapped >= max(1, u.limits.Total/mappedShare):
		return false, false
	case u.of[h] >= u.limits.InFlight:
		return true, false
	}
	u.total++
	if h.Mapped() {
		u.mapped++
	}
	u.of[h]++
	return true, true
}

func (u *usage) landed(h allowlist.Holder) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total--
	if h.Mapped() {
		u.mapped--
	}
	if u.of[h]--; u.of[h] == 0 {
		delete(u.of, h)
	}
}
