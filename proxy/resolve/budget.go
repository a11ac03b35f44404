package resolve

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// DefaultNames is how many distinct names below one wildcard rule an identity may look
// up within a minute.
const DefaultNames = 100

// questionsPerName is how many questions may be sent to servers for an identity within
// a minute, for each name that it may have below one wildcard rule: a name has several
// types, and answers with a time to live of less than a minute are looked up again.
const questionsPerName = 10

const (
	budgetWindow = time.Minute
	// maxBudgets bounds how many pairs of a holder and a rule are counted, and how many
	// holders; maxCounted bounds the names of all pairs. The least recently used ones
	// are dropped.
	maxBudgets = 16384
	maxCounted = 1 << 20
)

// budgets counts the questions that leave the gateway for names below wildcards,
// because their askers choose these names: the distinct names of each holder below each
// wildcard rule, since every new name carries information out, whoever answers; and all
// questions of each holder, since the order and the types of questions for known names
// carry some, too.
type budgets struct {
	limit int // bound on the names of a pair
	most  int // bound on the names of all pairs
	seed  maphash.Seed

	mu        sync.Mutex
	sets      lru[wildcard, *nameSet]
	counted   int // number of names of all pairs
	questions lru[allowlist.Holder, *questionWindow]
	begin     time.Time // the times that are passed to questionWindow count from here
}

// wildcard is the key for counting names: a holder and a wildcard rule.
type wildcard struct {
	holder allowlist.Holder
	rule   string
}

func newBudgets(limit int) *budgets {
	return &budgets{
		limit: limit, most: maxCounted, seed: maphash.MakeSeed(), begin: time.Now(),
		sets: newLRU[wildcard, *nameSet](maxBudgets), questions: newLRU[allowlist.Holder, *questionWindow](maxBudgets),
	}
}

// spend counts a question that is about to be sent to a server, or returns why it must
// not be sent. The target of an alias does not count as a name, because the asker has
// not chosen it.
func (b *budgets) spend(a Asker, name string, now time.Time) error {
	if a.Wildcard == "" {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	left, ok := b.questions.get(a.Holder)
	if !ok {
		left = new(questionWindow)
		b.questions.put(a.Holder, left)
	}
	switch at := now.Sub(b.begin); {
	case left.within(at) >= b.limit*questionsPerName:
		return &allowlist.ReasonError{Reason: allowlist.NameBudget, Err: errQuestions}
	case !a.alias && !b.admit(a, name, now):
		return &allowlist.ReasonError{Reason: allowlist.NameBudget, Err: errNames}
	default:
		left.add()
	}
	return nil
}

// questionWindow counts the questions of the last minute, in parts of a minute. The oldest
// part counts completely even though the minute began within it, so that no minute,
// whenever it begins, has more questions than the bound.
type questionWindow struct {
	parts [partsOfMinute + 1]int // number of questions in each part, by the number of the part modulo the length
	last  int64                  // number of the newest part
}

const partsOfMinute = 6

// within returns an upper bound of the questions in the minute that ends at a time. The
// time must not be earlier than in the call before.
func (d *questionWindow) within(at time.Duration) int {
	part := max(d.last, int64(at/(budgetWindow/partsOfMinute)))
	for range min(part-d.last, int64(len(d.parts))) {
		d.last++
		d.parts[d.last%int64(len(d.parts))] = 0
	}
	d.last = part
	sum := 0
	for _, n := range d.parts {
		sum += n
	}
	return sum
}

// add counts a question at the time that was passed to within.
func (d *questionWindow) add() { d.parts[d.last%int64(len(d.parts))]++ }

// admit counts a name, and reports whether it is within the bound. A name that was
// counted in the last minute already costs nothing. The caller holds mu.
func (b *budgets) admit(a Asker, name string, now time.Time) bool {
	key := wildcard{a.Holder, a.Wildcard}
	set, ok := b.sets.get(key)
	if !ok {
		set = &nameSet{last: map[uint64]time.Time{}}
		if dropped, full := b.sets.put(key, set); full {
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

// nameSet holds the names of the last minute, by a hash that callers cannot predict.
type nameSet struct {
	last map[uint64]time.Time // when each name was last looked up
	// fullUntil is the time before which no name becomes a minute old.
	fullUntil time.Time
}

// admit counts a name, and reports whether it is within the limit.
func (s *nameSet) admit(name uint64, now time.Time, limit int) bool {
	if last, ok := s.last[name]; ok && now.Sub(last) < budgetWindow {
		s.last[name] = now
		return true
	}
	if len(s.last) >= limit && !now.Before(s.fullUntil) {
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
	s.fullUntil = oldest.Add(budgetWindow)
}
