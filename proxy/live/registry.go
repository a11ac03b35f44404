package live

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Registry holds every entry. The zero value is ready for use; all methods are safe
// for concurrent use.
type Registry struct {
	mu        sync.Mutex
	open      map[*Entry]bool // the value is true if the entry was told to end and has not been removed
	ended     tunnel.Reason   // the reason of EndAll; not zero means that no entry may begin any more
	waiting   chan struct{}   // closed when the last entry is removed; nil if nobody waits for that
	entryLeft chan<- struct{} // receives when an entry is removed or must be judged again; see setEntryLeft
}

// Add adds an entry. After EndAll the entry is ended at once. Later states of an
// [Enforcer] end the entry if they forbid it, but a state that came into force just
// before Add may have missed it. The caller must therefore load [Current] afterwards,
// and remove the entry if the state has changed and forbids it.
func (r *Registry) Add(e *Entry) {
	r.mu.Lock()
	if r.open == nil {
		r.open = make(map[*Entry]bool)
	}
	ended := r.ended
	r.open[e] = ended != 0
	r.mu.Unlock()
	if ended != 0 {
		e.tell(ended, allowlist.NoReason, nil)
	}
}

// Remove removes an entry. It does nothing for an entry that is not there.
func (r *Registry) Remove(e *Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, e)
	if len(r.open) == 0 && r.waiting != nil {
		close(r.waiting)
		r.waiting = nil
	}
	r.judgeAgain()
}

// JudgeAgain asks the enforcer to judge the held entries again, because one of them has
// changed and the last enforced policy may now forbid that one, too.
func (r *Registry) JudgeAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.judgeAgain()
}

// judgeAgain signals that what is held must be judged again. The caller holds mu.
func (r *Registry) judgeAgain() {
	select {
	case r.entryLeft <- struct{}{}:
	default: // a signal is pending, or nobody receives them
	}
}

// setEntryLeft sets the channel, of capacity one, that receives a value whenever an entry
// is removed or must be judged again. A nil channel receives nothing.
func (r *Registry) setEntryLeft(left chan<- struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entryLeft = left
}

// Len returns how many entries there are, connections included.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// Tunnels returns how many entries have a destination: requests, tunnels and
// exchanges, but not connections.
func (r *Registry) Tunnels() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for e := range r.open {
		if !e.isConnection() {
			n++
		}
	}
	return n
}

// Drain waits until there is no entry or the time has passed. Then it ends the entries
// that are left, and any that is added later, for the reason Drain. It does not wait
// until these have ended.
func (r *Registry) Drain(timeout time.Duration) {
	empty := r.emptied()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-empty:
	case <-timer.C:
	}
	r.EndAll(tunnel.Drain)
}

// emptied returns a channel that is closed when there is no entry. All callers that
// wait get the same channel.
func (r *Registry) emptied() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.open) == 0 {
		none := make(chan struct{})
		close(none)
		return none
	}
	if r.waiting == nil {
		r.waiting = make(chan struct{})
	}
	return r.waiting
}

// EndAll ends every entry for a reason, also those added later. None counts as
// Error, as it does for a tunnel.
func (r *Registry) EndAll(reason tunnel.Reason) {
	reason = cmp.Or(reason, tunnel.Error)
	r.mu.Lock()
	r.ended = reason
	r.mu.Unlock()
	for _, e := range r.notEnded() {
		r.tell(e, reason, allowlist.NoReason, nil)
	}
}

// End ends the entry with an id for a reason, and reports whether there is one
// that was not told before.
func (r *Registry) End(id string, reason tunnel.Reason, why allowlist.Reason) bool {
	for _, e := range r.notEnded() {
		if e.ID == id && id != "" {
			return r.tell(e, reason, why, nil)
		}
	}
	return false
}

// List returns every entry as it is now, the oldest first.
func (r *Registry) List() []EntrySnapshot {
	r.mu.Lock()
	all := make([]EntrySnapshot, 0, len(r.open))
	for e, told := range r.open {
		all = append(all, e.snapshot(told))
	}
	r.mu.Unlock()
	slices.SortFunc(all, func(a, b EntrySnapshot) int {
		return cmp.Or(a.Start.Compare(b.Start), strings.Compare(a.ID, b.ID))
	})
	return all
}

// notEnded returns the entries that were not told to end.
func (r *Registry) notEnded() []*Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries := make([]*Entry, 0, len(r.open))
	for e, told := range r.open {
		if !told {
			entries = append(entries, e)
		}
	}
	return entries
}

// tell tells an entry to end; by is the state that demands it, or nil. It returns false if
// the entry was told before or has been removed.
func (r *Registry) tell(e *Entry, reason tunnel.Reason, why allowlist.Reason, by *State) bool {
	r.mu.Lock()
	told, open := r.open[e]
	if open {
		r.open[e] = true
	}
	r.mu.Unlock()
	if told || !open {
		return false
	}
	e.tell(reason, why, by)
	return true
}
