package limit

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
)

// DefaultPlaces is how many long handshakes may run at the same time.
const DefaultPlaces = 32

// ErrDisplaced is the cause with which a place is taken away from one source
// because another source needs it.
var ErrDisplaced = errors.New("the place was needed for another address")

// Places is a small number of permits for expensive work, shared out evenly among
// source addresses. A caller that finds all of them taken waits. A permit that
// becomes free goes to the waiting source that has the fewest, and in turn among
// equals. If one source has more than its share, its oldest permit is taken away,
// so that nobody waits for a source that keeps what it has. It is safe for
// concurrent use.
type Places struct {
	mu    sync.Mutex
	free  int
	taken map[*Source][]*Place // places in use by source, the oldest first, without displaced ones
	turns []*Source            // sources that have waiting callers, the next one first
	wait  map[*Source][]*Place // places that callers wait for by source, the next one first
}

// Place is one of Places.
type Place struct {
	places *Places
	source *Source
	cut    func()        // ends the work that uses the place
	given  chan struct{} // closed when a caller that waits gets the place
}

// NewPlaces returns n places that are free; zero means DefaultPlaces.
func NewPlaces(n int) *Places {
	if n <= 0 {
		n = DefaultPlaces
	}
	return &Places{free: n, taken: map[*Source][]*Place{}, wait: map[*Source][]*Place{}}
}

// Take returns a place, and waits for one until ctx ends; then it returns the cause
// of ctx. The caller must call Close when its work is done. If the place is taken
// away, cut is called, once and from any goroutine; it must not block, and Close
// must follow soon. All callers with a nil source count as one source.
func (p *Places) Take(ctx context.Context, source *Source, cut func()) (*Place, error) {
	place := &Place{places: p, source: source, cut: cut}
	if displaced, taken := p.ask(place); taken {
		return place, nil
	} else if displaced != nil {
		displaced.cut()
	}
	select {
	case <-place.given:
		return place, nil
	case <-ctx.Done():
	}
	if p.leave(place) {
		return nil, context.Cause(ctx)
	}
	return place, nil // the place was given while ctx ended
}

// ask takes a free place, or else queues the caller and returns the place that is
// taken away for it, if there is one.
func (p *Places) ask(place *Place) (displaced *Place, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free > 0 {
		p.free--
		p.give(place)
		return nil, true
	}
	place.given = make(chan struct{})
	if len(p.wait[place.source]) == 0 {
		p.turns = append(p.turns, place.source)
	}
	p.wait[place.source] = append(p.wait[place.source], place)
	return p.displace(place.source), false
}

// displace takes the oldest place away from the source that has the most places, if
// it has more than the waiting source has and waits for together. The caller holds
// mu.
func (p *Places) displace(waiting *Source) *Place {
	most, n := waiting, len(p.taken[waiting])+len(p.wait[waiting])
	for source, taken := range p.taken {
		if len(taken) > n {
			most, n = source, len(taken)
		}
	}
	if most == waiting {
		return nil
	}
	oldest := p.taken[most][0]
	p.drop(oldest)
	return oldest
}

// leave stops waiting for a place. It returns false if the place has already been
// given.
func (p *Places) leave(place *Place) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.wait[place.source]
	i := slices.Index(waiting, place)
	if i < 0 {
		return false
	}
	p.setWaiting(place.source, slices.Delete(waiting, i, i+1))
	return true
}

// setWaiting replaces the list of places that a source waits for. The caller holds
// mu.
func (p *Places) setWaiting(source *Source, waiting []*Place) {
	if len(waiting) > 0 {
		p.wait[source] = waiting
		return
	}
	delete(p.wait, source)
	p.turns = slices.DeleteFunc(p.turns, func(s *Source) bool { return s == source })
}

// give adds a place to those that its source uses. The caller holds mu.
func (p *Places) give(place *Place) { p.taken[place.source] = append(p.taken[place.source], place) }

// drop removes a place from those that its source uses. It returns false if the
// place was not among them. The caller holds mu.
func (p *Places) drop(place *Place) bool {
	taken := p.taken[place.source]
	i := slices.Index(taken, place)
	if i < 0 {
		return false
	}
	if taken = slices.Delete(taken, i, i+1); len(taken) == 0 {
		delete(p.taken, place.source)
	} else {
		p.taken[place.source] = taken
	}
	return true
}

// Close returns the place, and hands it to the waiting source that has the fewest.
// It reports whether the place had been taken away before: then cut has been called
// or is being called.
func (l *Place) Close() (displaced bool) {
	p := l.places
	p.mu.Lock()
	defer p.mu.Unlock()
	displaced = !p.drop(l)
	if len(p.turns) == 0 {
		p.free++
		return displaced
	}
	// MinFunc returns the first of equals, which is the source whose turn is next.
	source := slices.MinFunc(p.turns, func(a, b *Source) int { return cmp.Compare(len(p.taken[a]), len(p.taken[b])) })
	next := p.wait[source][0]
	p.turns = append(slices.DeleteFunc(p.turns, func(s *Source) bool { return s == source }), source)
	p.setWaiting(source, p.wait[source][1:])
	p.give(next)
	close(next.given)
	return displaced
}
