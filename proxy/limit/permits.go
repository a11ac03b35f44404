package limit

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// DefaultPermits is how many long handshakes may run at the same time.
const DefaultPermits = 32

// Permits is a small number of permits for expensive work, shared out evenly among
// source addresses. A caller that finds all of them taken waits. A permit that
// becomes free goes to the waiting source that has the fewest, and to equal ones in
// turn. If one source has more than its share, its oldest permit is taken away,
// so that nobody waits for a source that keeps what it has. It is safe for
// concurrent use.
type Permits struct {
	mu      sync.Mutex
	free    int
	taken   map[*Source][]*Permit // permits in use by source, the oldest first, without displaced ones
	turns   []*Source             // sources that have waiting callers, the next one first
	waiting map[*Source][]*Permit // permits that callers wait for by source, the next one first
}

// Permit is one permit, in use or waited for.
type Permit struct {
	permits *Permits
	source  *Source
	cut     func()        // ends the work that uses the permit
	given   chan struct{} // closed when a caller that waits gets the permit
}

// NewPermits returns n permits that are free; zero means DefaultPermits.
func NewPermits(n int) *Permits {
	if n <= 0 {
		n = DefaultPermits
	}
	return &Permits{free: n, taken: map[*Source][]*Permit{}, waiting: map[*Source][]*Permit{}}
}

// Take returns a permit, and waits for one until ctx ends; then it returns the cause
// of ctx. The caller must call Close when its work is done. If the permit is taken
// away, cut is called, once and from any goroutine; it must not block, and Close
// must follow soon. All callers with a nil source count as one source.
func (p *Permits) Take(ctx context.Context, source *Source, cut func()) (*Permit, error) {
	permit := &Permit{permits: p, source: source, cut: cut}
	if displaced, taken := p.takeOrQueue(permit); taken {
		return permit, nil
	} else if displaced != nil {
		displaced.cut()
	}
	select {
	case <-permit.given:
		return permit, nil
	case <-ctx.Done():
	}
	if p.stopWaiting(permit) {
		return nil, context.Cause(ctx)
	}
	return permit, nil // the permit was given while ctx ended
}

// takeOrQueue takes a free permit, or else queues the caller and returns the permit that is
// taken away for it, if there is one.
func (p *Permits) takeOrQueue(permit *Permit) (displaced *Permit, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free > 0 {
		p.free--
		p.addTaken(permit)
		return nil, true
	}
	permit.given = make(chan struct{})
	if len(p.waiting[permit.source]) == 0 {
		p.turns = append(p.turns, permit.source)
	}
	p.waiting[permit.source] = append(p.waiting[permit.source], permit)
	return p.displace(permit.source), false
}

// displace takes the oldest permit away from the source that has the most permits, if
// it has more than the waiting source has and waits for together. The caller holds
// mu.
func (p *Permits) displace(waiting *Source) *Permit {
	most, n := waiting, len(p.taken[waiting])+len(p.waiting[waiting])
	for source, taken := range p.taken {
		if len(taken) > n {
			most, n = source, len(taken)
		}
	}
	if most == waiting {
		return nil
	}
	oldest := p.taken[most][0]
	p.removeTaken(oldest)
	return oldest
}

// stopWaiting stops waiting for a permit. It returns false if the permit has already been
// given.
func (p *Permits) stopWaiting(permit *Permit) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.waiting[permit.source]
	i := slices.Index(waiting, permit)
	if i < 0 {
		return false
	}
	p.setWaiting(permit.source, slices.Delete(waiting, i, i+1))
	return true
}

// setWaiting replaces the list of permits that a source waits for. The caller holds
// mu.
func (p *Permits) setWaiting(source *Source, waiting []*Permit) {
	if len(waiting) > 0 {
		p.waiting[source] = waiting
		return
	}
	delete(p.waiting, source)
	p.turns = slices.DeleteFunc(p.turns, func(s *Source) bool { return s == source })
}

// addTaken adds a permit to those that its source uses. The caller holds mu.
func (p *Permits) addTaken(permit *Permit) {
	p.taken[permit.source] = append(p.taken[permit.source], permit)
}

// removeTaken removes a permit from those that its source uses. It returns false if the
// permit was not among them. The caller holds mu.
func (p *Permits) removeTaken(permit *Permit) bool {
	taken := p.taken[permit.source]
	i := slices.Index(taken, permit)
	if i < 0 {
		return false
	}
	if taken = slices.Delete(taken, i, i+1); len(taken) == 0 {
		delete(p.taken, permit.source)
	} else {
		p.taken[permit.source] = taken
	}
	return true
}

// Close returns the permit, and hands it to the waiting source that has the fewest.
// It reports whether the permit had been taken away before: then cut has been called
// or is being called.
func (l *Permit) Close() (displaced bool) {
	p := l.permits
	p.mu.Lock()
	defer p.mu.Unlock()
	displaced = !p.removeTaken(l)
	if len(p.turns) == 0 {
		p.free++
		return displaced
	}
	// MinFunc returns the first of equals, which is the source whose turn is next.
	source := slices.MinFunc(p.turns, func(a, b *Source) int { return cmp.Compare(len(p.taken[a]), len(p.taken[b])) })
	next := p.waiting[source][0]
	p.turns = append(slices.DeleteFunc(p.turns, func(s *Source) bool { return s == source }), source)
	p.setWaiting(source, p.waiting[source][1:])
	p.addTaken(next)
	close(next.given)
	return displaced
}
