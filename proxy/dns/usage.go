package dns

import (
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits bound what callers may use at a time; queries per second are for the
// budgets. A zero field means its default.
type Limits struct {
	// InFlight is how many queries of an identity may wait for an upstream
	// server, and Total those of all identities. All callers without an
	// identity count as one.
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

// usage counts what identities use at the moment. It is safe for concurrent
// use, and remembers nobody who uses nothing.
type usage struct {
	limits Limits

	mu    sync.Mutex
	total int // lookups
	of    map[spiffeid.ID]used
}

// used is what one identity uses.
type used struct{ inFlight, streams int }

func newUsage(limits Limits) *usage {
	return &usage{limits: limits, of: make(map[spiffeid.ID]used)}
}

// look takes up a lookup, which landed gives back, and reports whether there is
// room for it: among all, and among those of the identity.
func (u *usage) look(id spiffeid.ID) (all, own bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.of[id]
	switch {
	case u.total >= u.limits.Total:
		return false, false
	case n.inFlight >= u.limits.InFlight:
		return true, false
	}
	u.total++
	n.inFlight++
	u.of[id] = n
	return true, true
}

func (u *usage) landed(id spiffeid.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total--
	n := u.of[id]
	n.inFlight--
	u.keep(id, n)
}

// open takes up a connection, which closed gives back, and reports whether
// there is room for it.
func (u *usage) open(id spiffeid.ID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.of[id]
	if n.streams >= u.limits.Streams {
		return false
	}
	n.streams++
	u.of[id] = n
	return true
}

func (u *usage) closed(id spiffeid.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.of[id]
	n.streams--
	u.keep(id, n)
}

// keep is called with mu held.
func (u *usage) keep(id spiffeid.ID, n used) {
	if n == (used{}) {
		delete(u.of, id)
		return
	}
	u.of[id] = n
}
