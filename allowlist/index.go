package allowlist

import (
	"hash/maphash"
	"net/netip"
	"slices"
)

// index is a hash table that is filled once and then only read. It differs from a map in
// two ways that make decisions fast: the caller hashes a key once and looks it up in many
// tables, and a look-up reads one slot where a map follows four pointers to it. The zero
// value is empty.
type index[K comparable, V any] struct {
	slots []slot[K, V] // the length is a power of two
	used  int          // number of slots with a value
}

type slot[K comparable, V any] struct {
	hash  uint64
	key   K
	value *V // nil if the slot is free
}

// get returns the value of a key, or nil if there is none.
func (x *index[K, V]) get(hash uint64, key K) *V {
	if x.used == 0 {
		return nil
	}
	return x.find(hash, key).value
}

// find returns the slot of a key, or the free slot where the key belongs. There is always
// a free slot, because put keeps half of them free. The index must have slots.
func (x *index[K, V]) find(hash uint64, key K) *slot[K, V] {
	mask := uint64(len(x.slots) - 1) //nolint:gosec // get and put call find only if there is at least one slot
	for i := hash & mask; ; i = (i + 1) & mask {
		s := &x.slots[i]
		if s.value == nil || s.hash == hash && s.key == key {
			return s
		}
	}
}

// put returns the value of a key, and adds a zero value first if there is none.
func (x *index[K, V]) put(hash uint64, key K) *V {
	if v := x.get(hash, key); v != nil {
		return v
	}
	if 2*(x.used+1) > len(x.slots) {
		old := x.slots
		x.slots = make([]slot[K, V], max(2, 2*len(old)))
		for _, s := range old {
			if s.value != nil {
				*x.find(s.hash, s.key) = s
			}
		}
	}
	s := x.find(hash, key)
	*s = slot[K, V]{hash: hash, key: key, value: new(V)}
	x.used++
	return s.value
}

// values yields all values in no particular order.
func (x *index[K, V]) values(yield func(*V) bool) {
	for i := range x.slots {
		if v := x.slots[i].value; v != nil && !yield(v) {
			return
		}
	}
}

// sorted returns all values in the order of their keys.
func (x *index[K, V]) sorted(compare func(a, b K) int) []*V {
	used := make([]*slot[K, V], 0, x.used)
	for i := range x.slots {
		if x.slots[i].value != nil {
			used = append(used, &x.slots[i])
		}
	}
	slices.SortFunc(used, func(a, b *slot[K, V]) int { return compare(a.key, b.key) })
	all := make([]*V, len(used))
	for i, s := range used {
		all[i] = s.value
	}
	return all
}

// hasher hashes the keys of an index. Its seed is random, so that nobody can choose names
// that collide.
type hasher struct{ seed maphash.Seed }

func newHasher() hasher { return hasher{seed: maphash.MakeSeed()} }

func (h hasher) text(s string) uint64 { return maphash.String(h.seed, s) }

func (h hasher) prefix(p netip.Prefix) uint64 {
	var key [17]byte
	b := p.Addr().As16()
	copy(key[:], b[:])
	key[16] = byte(p.Bits()) //nolint:gosec // 0 to 128
	return maphash.Bytes(h.seed, key[:])
}
