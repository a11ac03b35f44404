package resolve

import (
	"hash/maphash"
	"sync"
	"time"
)

// DefaultNames is how many distinct names below one wildcard rule an identity
// may look up within a minute.
const DefaultNames = 100

const (
	budgetWindow = time.Minute
	// maxBudgets bounds how many pairs of an identity and a rule are counted,
	// and maxCounted their names. What asked longest ago makes room.
	maxBudgets = 16384
	maxCounted = 1 << 20
)

// budgets counts the distinct names that each identity looks up below each
// wildcard rule: every new name carries information out, whoever answers.
type budgets struct {
	limit int // names of a pair
	most  int // names of all pairs
	seed  maphash.Seed

	mu      sync.Mutex
	sets    lru[Asker, *nameSet]
	counted int // names of all sets
}

func newBudgets(limit int) *budgets {
	return &budgets{limit: limit, most: maxCounted, seed: maphash.MakeSeed(), sets: newLRU[Asker, *nameSet](maxBudgets)}
}

// admit counts a name and reports whether it is within the bound. A name that
// was counted already within the last minute costs nothing.
func (b *budgets) admit(a Asker, name string, now time.Time) bool {
	if a.Wildcard == "" {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	set, ok := b.sets.get(a)
	if !ok {
		set = &nameSet{last: map[uint64]time.Time{}}
		if dropped, full := b.sets.put(a, set); full {
			b.counted -= len(dropped.last)
		}
	}
	before := len(set.last)
	admitted := set.admit(maphash.String(b.seed, name), now, b.limit)
	b.counted += len(set.last) - before
	for b.counted > b.most && b.sets.len() > 1 {
		b.counted -= len(b.sets.dropOldest().last)
	}
	return admitted
}

// nameSet is the names of the last minute, by a hash that callers do not know.
type nameSet struct {
	last map[uint64]time.Time
	// full until then: no name becomes a minute old before.
	full time.Time
}

func (s *nameSet) admit(name uint64, now time.Time, limit int) bool {
	if last, ok := s.last[name]; ok && now.Sub(last) < budgetWindow {
		s.last[name] = now
		return true
	}
	if len(s.last) >= limit && !now.Before(s.full) {
		s.forget(now)
	}
	if len(s.last) >= limit {
		return false
	}
	s.last[name] = now
	return true
}

// forget drops the names that are a minute old.
func (s *nameSet) forget(now time.Time) {
	oldest := now
	for name, last := range s.last {
		if now.Sub(last) >= budgetWindow {
			delete(s.last, name)
		} else if last.Before(oldest) {
			oldest = last
		}
	}
	s.full = oldest.Add(budgetWindow)
}
