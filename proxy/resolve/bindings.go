package resolve

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// Bounds of the bindings of addresses to the names that they were the answer
// to. What was used longest ago makes room.
const (
	bindingLife        = time.Minute // at least, whatever the time to live
	maxBoundIdentities = 4096
	maxBound           = 256 << 10 // names of all addresses of all identities
	maxBoundAddrs      = 1024      // of one identity
	maxBoundOf         = 4096      // names of all its addresses
	maxBoundNames      = 16        // of one address
)

// bindings remembers which names led an identity to an address, for
// connections to the bare address.
type bindings struct {
	mu         sync.Mutex
	identities lru[spiffeid.ID, *boundAddrs]
	bound      int // names of all identities, at most as many as most says
	most       int
}

func newBindings() *bindings {
	return &bindings{identities: newLRU[spiffeid.ID, *boundAddrs](maxBoundIdentities), most: maxBound}
}

// boundAddrs are those of one identity.
type boundAddrs struct {
	lru[netip.Addr, *boundNames]

	bound int // names of all of them
}

func (b *bindings) bind(id spiffeid.ID, addr netip.Addr, name allowlist.Host, until, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	addrs, ok := b.identities.get(id)
	if !ok {
		addrs = &boundAddrs{lru: newLRU[netip.Addr, *boundNames](maxBoundAddrs)}
		if dropped, full := b.identities.put(id, addrs); full {
			b.bound -= dropped.bound
		}
	}
	before := addrs.bound
	addrs.bind(addr, name, until, now)
	for b.bound += addrs.bound - before; b.bound > b.most; {
		b.bound -= b.identities.dropOldest().bound
	}
}

func (a *boundAddrs) bind(addr netip.Addr, name allowlist.Host, until, now time.Time) {
	names, ok := a.get(addr)
	if !ok {
		names = new(boundNames)
		if dropped, full := a.put(addr, names); full {
			a.bound -= len(*dropped)
		}
	}
	before := len(*names)
	names.add(name, until, now)
	for a.bound += len(*names) - before; a.bound > maxBoundOf; {
		a.bound -= len(*a.dropOldest())
	}
}

func (b *bindings) names(id spiffeid.ID, addr netip.Addr, now time.Time) []allowlist.Host {
	b.mu.Lock()
	defer b.mu.Unlock()
	addrs, ok := b.identities.get(id)
	if !ok {
		return nil
	}
	names, ok := addrs.get(addr)
	if !ok {
		return nil
	}
	before := len(*names)
	names.forget(now)
	gone := before - len(*names)
	addrs.bound, b.bound = addrs.bound-gone, b.bound-gone
	if len(*names) == 0 {
		addrs.drop(addr)
		return nil
	}
	out := make([]allowlist.Host, 0, len(*names))
	for _, n := range *names {
		out = append(out, n.name)
	}
	return out
}

// boundNames are those of one address, each until its time.
type boundNames []boundName

type boundName struct {
	name  allowlist.Host
	until time.Time
}

// add binds a name, or lets it live longer. A name that is too much takes the
// place of the one that ends first.
func (b *boundNames) add(name allowlist.Host, until, now time.Time) {
	for i := range *b {
		if n := &(*b)[i]; n.name == name {
			if until.After(n.until) {
				n.until = until
			}
			return
		}
	}
	if len(*b) == maxBoundNames {
		b.forget(now)
	}
	if len(*b) == maxBoundNames {
		first := 0
		for i, n := range *b {
			if n.until.Before((*b)[first].until) {
				first = i
			}
		}
		*b = slices.Delete(*b, first, first+1)
	}
	*b = append(*b, boundName{name, until})
}

func (b *boundNames) forget(now time.Time) {
	*b = slices.DeleteFunc(*b, func(n boundName) bool { return !now.Before(n.until) })
}

// Bind remembers for an identity the addresses of an answer that the filter
// lets it see, before it sees them: until the answer's time is over, and for a
// minute at least. If they are bound already, it allocates nothing.
func (r *Resolver) Bind(id spiffeid.ID, a Answer, now time.Time, f Filter) {
	until := now.Add(max(a.TTL(now), bindingLife))
	for addr := range a.msg.Seen(f) {
		r.bindings.bind(id, addr, a.name, until, now)
	}
}

// Bound returns the names whose answers have led an identity to an address and
// still hold; none for an address that it was not led to. The caller asks the
// policy whether the identity may still reach one of them on the port.
func (r *Resolver) Bound(id spiffeid.ID, addr netip.Addr, now time.Time) []allowlist.Host {
	return r.bindings.names(id, addr.Unmap(), now)
}
