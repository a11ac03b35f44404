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
	// have. How many there are in all is for the slots of the listeners.
	Streams int
	// PerStream is how many queries on one connection are worked on; the next
	// one is read when one of them is answered.
	PerStream int
}

// The defaults of Limits.
const (
	defaultInFlight  = 256
	defaultTotal     = 4096
	defaultStreams   = 16
	defaultPerStream = 64
)

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{
		{&l.InFlight, defaultInFlight},
		{&l.Total, defaultTotal},
		{&l.Streams, defaultStreams},
		{&l.PerStream, defaultPerStream},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return l
}

// mappedShare is the part of all lookups that may be those of mapped holders, one
// in so many: whoever forges their addresses leaves the rest to the others.
const mappedShare = 4

// usage counts what holders use at the moment. It is safe for concurrent
// use, and remembers nobody who uses nothing.
type usage struct {
	limits Limits

	mu     sync.Mutex
	total  int // lookups
	mapped int // those of mapped holders
	of     map[allowlist.Holder]used
}

// used is what one holder uses.
type used struct{ inFlight, streams int }

func newUsage(limits Limits) *usage {
	return &usage{limits: limits, of: make(map[allowlist.Holder]used)}
}

// look takes up a lookup, which landed gives back, and reports whether there is
// room for it: among all, and among those of the holder.
func (u *usage) look(h allowlist.Holder) (all, own bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.of[h]
	switch {
	case u.total >= u.limits.Total, h.Mapped() && u.mapped >= max(1, u.limits.Total/mappedShare):
		return false, false
	case n.inFlight >= u.limits.InFlight:
		return true, false
	}
	u.total++
	if h.Mapped() {
		u.mapped++
	}
	n.inFlight++
	u.of[h] = n
	return true, true
}

func (u *usage) landed(h allowlist.Holder) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total--
	if h.Mapped() {
		u.mapped--
	}
	n := u.of[h]
	n.inFlight--
	u.keep(h, n)
}

// open takes up a connection, which closed gives back, and reports whether
// there is room for it.
func (u *usage) open(h allowlist.Holder) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.of[h]
	if n.streams >= u.limits.Streams {
		return false
	}
	n.streams++
	u.of[h] = n
	return true
}

func (u *usage) closed(h allowlist.Holder) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.of[h]
	n.streams--
	u.keep(h, n)
}

// keep is called with mu held.
func (u *usage) keep(h allowlist.Holder, n used) {
	if n == (used{}) {
		delete(u.of, h)
		return
	}
	u.of[h] = n
}
