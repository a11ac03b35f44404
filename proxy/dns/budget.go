package dns

import (
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits bound what callers may use. A zero field means its default.
type Limits struct {
	// PerSecond is how many queries an identity may ask in a second on average,
	// and at once at most. All callers without an identity count as one.
	PerSecond int
	// InFlight is how many queries of an identity may wait for an upstream
	// server, and Total those of all identities.
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
	DefaultPerSecond = 1000
	DefaultInFlight  = 256
	DefaultTotal     = 4096
	DefaultStreams   = 16
	DefaultPerStream = 64
)

// maxBudgets bounds the identities that are counted, beside those that have
// something open.
const maxBudgets = 16384

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{
		{&l.PerSecond, DefaultPerSecond},
		{&l.InFlight, DefaultInFlight},
		{&l.Total, DefaultTotal},
		{&l.Streams, DefaultStreams},
		{&l.PerStream, DefaultPerStream},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return l
}

// budgets counts what identities use. It is safe for concurrent use.
type budgets struct {
	limits Limits

	mu    sync.Mutex
	total int // lookups
	of    map[spiffeid.ID]*budget
}

// budget is what one identity uses.
type budget struct {
	tokens   float64   // queries that it may still ask now
	filled   time.Time // when tokens were counted
	inFlight int
	streams  int
}

func newBudgets(limits Limits) *budgets {
	return &budgets{limits: limits, of: make(map[spiffeid.ID]*budget)}
}

// get returns the budget of an identity. It makes room first by forgetting
// those that use nothing: a budget that was idle for a second is full.
func (b *budgets) get(id spiffeid.ID, now time.Time) *budget {
	if u := b.of[id]; u != nil {
		return u
	}
	if len(b.of) >= maxBudgets {
		for other, u := range b.of {
			if u.inFlight == 0 && u.streams == 0 && now.Sub(u.filled) >= time.Second {
				delete(b.of, other)
			}
		}
	}
	u := &budget{tokens: float64(b.limits.PerSecond), filled: now}
	b.of[id] = u
	return u
}

// ask counts a query and reports whether the identity may ask it.
func (b *budgets) ask(id spiffeid.ID, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	u, perSecond := b.get(id, now), float64(b.limits.PerSecond)
	u.tokens = min(perSecond, u.tokens+perSecond*max(0, now.Sub(u.filled).Seconds()))
	u.filled = now
	if u.tokens < 1 {
		return false
	}
	u.tokens--
	return true
}

// look takes up a lookup, which landed gives back, and reports whether there is
// room for it: among all, and among those of the identity.
func (b *budgets) look(id spiffeid.ID, now time.Time) (all, own bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.get(id, now)
	switch {
	case b.total >= b.limits.Total:
		return false, false
	case u.inFlight >= b.limits.InFlight:
		return true, false
	}
	b.total++
	u.inFlight++
	return true, true
}

func (b *budgets) landed(id spiffeid.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total--
	b.of[id].inFlight--
}

// open takes up a connection, which closed gives back, and reports whether
// there is room for it.
func (b *budgets) open(id spiffeid.ID, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.get(id, now)
	if u.streams >= b.limits.Streams {
		return false
	}
	u.streams++
	return true
}

func (b *budgets) closed(id spiffeid.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.of[id].streams--
}
