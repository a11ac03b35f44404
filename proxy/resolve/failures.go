package resolve

import (
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

const (
	// failureLife is how long a question that no server answered is not asked again
	// (RFC 9520 section 3.2).
	failureLife = time.Second
	maxFailures = 4096
)

// failures remembers for a moment which questions no server answered, because repeated
// questions would make servers in trouble work twice.
type failures struct {
	mu     sync.Mutex
	recent lru[Question, failed]
}

type failed struct {
	err   error
	until time.Time // when servers may be asked again
}

func newFailures() *failures { return &failures{recent: newLRU[Question, failed](maxFailures)} }

// get returns the error of a question that failed a moment ago, or nil.
func (f *failures) get(q Question, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last, ok := f.recent.get(q); ok && now.Before(last.until) {
		return last.err
	}
	return nil
}

func (f *failures) put(q Question, err error, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recent.drop(q)
	f.recent.put(q, failed{err, now.Add(failureLife)})
}

func (f *failures) flush(name allowlist.Host) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for q := range f.recent.byKey {
		if q.Name == name {
			f.recent.drop(q)
		}
	}
}
