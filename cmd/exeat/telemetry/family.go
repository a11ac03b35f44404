package telemetry

import (
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// A family holds the label values of one metric: it makes the attribute set of each
// combination once, so that later uses do not allocate.
type family[K comparable] struct {
	describe func(K) []attribute.KeyValue

	mu   sync.RWMutex
	made map[K][]metric.AddOption
}

func newFamily[K comparable](describe func(K) []attribute.KeyValue) *family[K] {
	return &family[K]{describe: describe, made: make(map[K][]metric.AddOption)}
}

// of returns the options of a combination. A metric must have few combinations, because
// they are kept for ever.
func (f *family[K]) of(key K) []metric.AddOption {
	f.mu.RLock()
	opts, ok := f.made[key]
	f.mu.RUnlock()
	if ok {
		return opts
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if opts, ok = f.made[key]; !ok {
		opts = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(f.describe(key)...))}
		f.made[key] = opts
	}
	return opts
}

// label returns the family of a metric with one label.
func label(name string) *family[string] {
	return newFamily(func(value string) []attribute.KeyValue { return []attribute.KeyValue{attribute.String(name, value)} })
}

// A limiter returns the first values unchanged, and one common value for all others.
type limiter struct {
	limit int

	mu    sync.RWMutex
	known map[string]struct{}
}

func newLimiter(limit int) *limiter { return &limiter{limit: limit, known: make(map[string]struct{})} }

// under returns the value, or _other if there are limit other values already.
func (l *limiter) under(value string) string {
	l.mu.RLock()
	_, ok := l.known[value]
	full := len(l.known) >= l.limit
	l.mu.RUnlock()
	switch {
	case ok:
		return value
	case full:
		return otherLabel
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok = l.known[value]; !ok && len(l.known) >= l.limit {
		return otherLabel
	}
	l.known[value] = struct{}{}
	return value
}
