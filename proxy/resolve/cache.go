package resolve

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// DefaultCacheBytes bounds the memory of the answers that are kept.
const DefaultCacheBytes = 64 << 20

const (
	cacheShards = 16
	// entryOverhead is what an entry takes beside its message and name: itself,
	// and its share of the map.
	entryOverhead = 352
)

// cache keeps answers, whoever asked, and no verdict about them. It is bounded
// in bytes; what was not asked for again makes room for what is new (SIEVE: a
// hit sets a bit, and a hand that goes from the oldest entry to the newest
// takes the first without it).
type cache struct {
	seed   maphash.Seed
	stale  time.Duration // how long an entry is of use after its time
	shards [cacheShards]shard
}

// shard is the part of the cache that holds the names of one hash.
type shard struct {
	mu      sync.RWMutex
	entries map[Question]*entry
	bytes   int
	most    int
	flushes uint64 // how often a name was flushed

	newest, oldest, hand *entry
}

// entry is one kept answer. Only hit and failed change after it was put.
type entry struct {
	question Question
	msg      *wire.Message
	at       time.Time
	until    time.Time
	size     int
	hit      atomic.Bool
	retry    atomic.Int64 // no server is asked again before, in Unix nanoseconds

	older, newer *entry
}

func newCache(bytes int, stale time.Duration) *cache {
	c := &cache{seed: maphash.MakeSeed(), stale: stale}
	for i := range c.shards {
		c.shards[i].entries = map[Question]*entry{}
		c.shards[i].most = bytes / cacheShards
	}
	return c
}

// shard returns where all questions about a name are.
func (c *cache) shard(name allowlist.Host) *shard {
	return &c.shards[maphash.String(c.seed, name.String())%cacheShards]
}

// get returns the entry of a question, also one past its time; nil if there is
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

// fresh reports whether the entry's time is not over.
func (e *entry) fresh(now time.Time) bool { return now.Before(e.until) }

// usable reports whether the entry may serve if no server answers.
func (c *cache) usable(e *entry, now time.Time) bool { return now.Before(e.until.Add(c.stale)) }

// generation changes with every flush of a name that shares the shard. An
// answer that was asked for before is not put after it.
func (c *cache) generation(name allowlist.Host) uint64 {
	s := c.shard(name)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.flushes
}

// put keeps an answer, in the place of the one before, unless its time to live
// is zero, it is larger than the cache, or a flush came in between.
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

// flush removes every type of a name and returns how many there were.
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

// evict removes the first entry from the hand on that was not asked for since
// the hand came by. There is one, since the first pass clears the bits.
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
	s.hand = e // from where remove moves it on
	s.remove(e)
}

// remove takes an entry out of the shard; the hand moves on if it was there.
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

// size returns how many entries there are, and their bytes.
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
