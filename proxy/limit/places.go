package limit

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
)

// DefaultPlaces is how many handshakes may be long at a time.
const DefaultPlaces = 32

// ErrDisplaced is the cause with which a holder of a place is told that another
// source needs it.
var ErrDisplaced = errors.New("the place was needed for another address")

// Places are a few of something dear, which sources share: each that wants some
// has as many as the others. Who comes while all are taken waits, and a place that
// becomes free goes to the source that has fewest, in turn. If another source has
// more than its share, the one that it took first is taken away from it, so that
// nobody waits for a source that keeps what it has. It is safe for concurrent use.
type Places struct {
	mu    sync.Mutex
	free  int
	held  map[*Source][]*Place // the oldest first; those that were displaced are gone from it
	turns []*Source            // sources that wait, the next one first
	wait  map[*Source][]*Place // those that wait, the next one first
}

// Place is one of Places.
type Place struct {
	places *Places
	source *Source
	cut    func() // takes it away
	given  chan struct{}
}

// NewPlaces returns n places that are free; zero means DefaultPlaces.
func NewPlaces(n int) *Places {
	if n <= 0 {
		n = DefaultPlaces
	}
	return &Places{free: n, held: map[*Source][]*Place{}, wait: map[*Source][]*Place{}}
}

// Take waits for a place until ctx ends, and returns its cause then. Close of the
// place must follow, soon after cut was called: that is called once at most, from
// any goroutine, and must not wait. A nil Source stands for all that have none.
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
	return place, nil // it was given at the same time
}

// ask takes a place, or a turn, and says whose place is to be taken away for it.
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

// displace takes the oldest place from the source that has most, if that has more
// than the one that waits would have with all that it waits for.
func (p *Places) displace(waiting *Source) *Place {
	most, n := waiting, len(p.held[waiting])+len(p.wait[waiting])
	for source, held := range p.held {
		if len(held) > n {
			most, n = source, len(held)
		}
	}
	if most == waiting {
		return nil
	}
	oldest := p.held[most][0]
	p.drop(oldest)
	return oldest
}

// leave gives up waiting, unless the place was given already.
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

// setWaiting is called with mu held.
func (p *Places) setWaiting(source *Source, waiting []*Place) {
	if len(waiting) > 0 {
		p.wait[source] = waiting
		return
	}
	delete(p.wait, source)
	p.turns = slices.DeleteFunc(p.turns, func(s *Source) bool { return s == source })
}

// give is called with mu held.
func (p *Places) give(place *Place) { p.held[place.source] = append(p.held[place.source], place) }

// drop forgets who has a place, and reports whether it was known. It is called
// with mu held.
func (p *Places) drop(place *Place) bool {
	held := p.held[place.source]
	i := slices.Index(held, place)
	if i < 0 {
		return false
	}
	if held = slices.Delete(held, i, i+1); len(held) == 0 {
		delete(p.held, place.source)
	} else {
		p.held[place.source] = held
	}
	return true
}

// Close gives the place back, to the source whose turn it is. It reports whether
// it had been taken away: then cut was called, or is being called.
func (l *Place) Close() (displaced bool) {
	p := l.places
	p.mu.Lock()
	defer p.mu.Unlock()
	displaced = !p.drop(l)
	if len(p.turns) == 0 {
		p.free++
		return displaced
	}
	source := slices.MinFunc(p.turns, func(a, b *Source) int { return cmp.Compare(len(p.held[a]), len(p.held[b])) }) // of several that have fewest, the one whose turn is next
	next := p.wait[source][0]
	p.turns = append(slices.DeleteFunc(p.turns, func(s *Source) bool { return s == source }), source)
	p.setWaiting(source, p.wait[source][1:])
	p.give(next)
	close(next.given)
	return displaced
}
