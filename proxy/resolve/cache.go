package resolve

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// DefaultCacheBytes bounds the memory of the cache.
const DefaultCacheBytes = 64 << 20

const (
	cacheShards = 16
	// entryOverhead is the size of an entry without its message and name: the struct,
	// and its share of the map.
	entryOverhead = 352
)

// cache keeps answers for all callers, and no decisions about them. It is bounded in
// bytes. Answers that were not used again make room for new ones (SIEVE: a hit sets a
// bit, and a hand that moves from the oldest entry to the newest evicts the first one
// without the bit).
type cache struct {
	seed   maphash.Seed
	stale  time.Duration // how long an expired entry is usable
	shards [cacheShards]shard
}

// shard is the part of the cache for the names with the same hash.
type shard struct {
	mu      sync.RWMutex
	entries map[Question]*entry
	bytes   int    // sum of the sizes of the entries
	most    int    // bound on bytes
	flushes uint64 // number of flushes of names in this shard

	newest, oldest *entry // ends of the list of entries
	hand           *entry // entry that evict looks at next; nil means the oldest
}

// entry is one cached answer. Only hit and retry change after put.
type entry struct {
	question Question
	msg      *wire.Message
	at       time.Time    // when the answer came
	until    time.Time    // when the answer expires
	size     int          // bytes of memory, for the bound on the shard
	hit      atomic.Bool  // the entry was used since the hand passed it
	retry    atomic.Int64 // servers are not asked again before this time, in Unix nanoseconds

	older, newer *entry // neighbours in the order of arrival
}

func newCache(bytes int, stale time.Duration) *cache {
	c := &cache{seed: maphash.MakeSeed(), stale: stale}
	for i := range c.shards {
		c.shards[i].entries = map[Question]*entry{}
		c.shards[i].most = bytes / cacheShards
	}
	return c
}

// shard returns the shard of all questions about a name.
func (c *cache) shard(name allowlist.Host) *shard {
	return &c.shards[maphash.String(c.seed, name.String())%cacheShards]
}

// get returns the entry for a question, even if it has expired, or nil if there is
// none.
func (c *cache) get(q Question) *entry {
	s := c.shard(q.Name)
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.entries[q]
	if e != nil && !e.hit.Load() {
		e.hit.Store(true)
	}
	return e
}

// fresh reports whether the entry has not expired.
func (e *entry) fresh(now time.Time) bool { return now.Before(e.until) }

// usable reports whether the entry may be served if no server answers.
func (c *cache) usable(e *entry, now time.Time) bool { return now.Before(e.until.Add(c.stale)) }

// generation returns a number that changes with every flush of a name in the same
// shard. An answer is not put into the cache if the number has changed since the
// question was sent.
func (c *cache) generation(name allowlist.Host) uint64 {
	s := c.shard(name)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.flushes
}

// put keeps an answer and replaces the one before, unless its time to live is zero, it
// is larger than a shard, or there was a flush since generation.
func (c *cache) put(q Question, msg *wire.Message, now time.Time, generation uint64) {
	s := c.shard(q.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if generation != s.flushes {
		return
	}
	if old := s.entries[q]; old != nil {
		s.remove(old)
	}
	e := &entry{question: q, msg: msg, at: now, until: now.Add(time.Duration(msg.Life()) * time.Second)}
	e.size = entryOverhead + len(q.Name.String()) + msg.Size()
	if msg.Life() == 0 || e.size > s.most {
		return
	}
	for s.bytes+e.size > s.most {
		s.evict()
	}
	s.entries[q] = e
	s.bytes += e.size
	e.older = s.newest
	if s.newest != nil {
		s.newest.newer = e
	} else {
		s.oldest = e
	}
	s.newest = e
}

// flush removes the answers of every type for a name and returns their number.
func (c *cache) flush(name allowlist.Host) int {
	s := c.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushes++
	n := 0
	for q, e := range s.entries {
		if q.Name == name {
			s.remove(e)
			n++
		}
	}
	return n
}

// evict removes the first entry from the hand on that was not used since the hand
// passed it. There is one, because the first pass clears the bits.
func (s *shard) evict() {
	e := s.hand
	if e == nil {
		e = s.oldest
	}
	for e.hit.Swap(false) {
		if e = e.newer; e == nil {
			e = s.oldest
		}
	}
	s.hand = e // remove moves it on
	s.remove(e)
}

// remove removes an entry from the shard, and moves the hand on if it points to the
// entry.
func (s *shard) remove(e *entry) {
	delete(s.entries, e.question)
	s.bytes -= e.size
	if s.hand == e {
		s.hand = e.newer
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		s.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		s.newest = e.older
	}
}

// size returns the number of entries and their bytes.
func (c *cache) size() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		entries += len(s.entries)
		bytes += s.bytes
		s.mu.RUnlock()
	}
	return entries, bytes
}
