package resolve

import "container/list"

// lru is a map of bounded size, in which a new entry replaces the least recently used
// one. It is not safe for concurrent use.
type lru[K comparable, V any] struct {
	capacity int
	byKey    map[K]*list.Element
	order    *list.List // *pair[K, V] elements, the last used one in front
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](most int) lru[K, V] {
	return lru[K, V]{capacity: most, byKey: map[K]*list.Element{}, order: list.New()}
}

// get returns the value of a key and marks it as used.
func (l *lru[K, V]) get(key K) (value V, ok bool) {
	e, ok := l.byKey[key]
	if !ok {
		return value, false
	}
	l.order.MoveToFront(e)
	return e.Value.(*pair[K, V]).value, true //nolint:errcheck,forcetypeassert // nothing else is put in
}

// put adds a key that is not in the map. If the map was full, it returns the value that
// it has dropped.
func (l *lru[K, V]) put(key K, value V) (dropped V, full bool) {
	if full = len(l.byKey) >= l.capacity; full {
		dropped = l.dropOldest()
	}
	l.byKey[key] = l.order.PushFront(&pair[K, V]{key, value})
	return dropped, full
}

// dropOldest removes the least recently used key. The map must not be empty.
func (l *lru[K, V]) dropOldest() V {
	last := l.order.Remove(l.order.Back()).(*pair[K, V]) //nolint:errcheck,forcetypeassert // nothing else is put in
	delete(l.byKey, last.key)
	return last.value
}

// drop removes a key, if it is in the map.
func (l *lru[K, V]) drop(key K) {
	if e, ok := l.byKey[key]; ok {
		l.order.Remove(e)
		delete(l.byKey, key)
	}
}

func (l *lru[K, V]) len() int { return len(l.byKey) }
