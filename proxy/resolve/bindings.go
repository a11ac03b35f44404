package resolve

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// Bounds of the bindings of addresses to the names that they were the answer
// to. What was used longest ago makes room.
const (
	bindingLife        = time.Minute // at least, whatever the time to live
	maxBoundIdentities = 4096
	maxBound           = 512 << 10 // names, and aliases of them, of all identities
	maxBoundAddrs      = 1024      // of one identity
	maxBoundOf         = 8192      // names and aliases of all its addresses
	maxBoundNames      = 16        // of one address
)

// bindings remembers which names led an identity to an address, for
// connections to the bare address.
type bindings struct {
	mu         sync.Mutex
	identities lru[spiffeid.ID, *boundAddrs]
	bound      int // names and aliases of all identities, at most as many as most says
	most       int
}

func newBindings() *bindings {
	return &bindings{identities: newLRU[spiffeid.ID, *boundAddrs](maxBoundIdentities), most: maxBound}
}

// boundAddrs are those of one identity.
type boundAddrs struct {
	lru[netip.Addr, *boundNames]

	bound int // names and aliases of all of them
}

func (b *bindings) bind(id spiffeid.ID, addr netip.Addr, name boundName, now time.Time) {
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
	addrs.bind(addr, name, now)
	for b.bound += addrs.bound - before; b.bound > b.most; {
		b.bound -= b.identities.dropOldest().bound
	}
}

func (a *boundAddrs) bind(addr netip.Addr, name boundName, now time.Time) {
	names, ok := a.get(addr)
	if !ok {
		names = new(boundNames)
		if dropped, full := a.put(addr, names); full {
			a.bound -= dropped.size()
		}
	}
	before := names.size()
	names.add(name, now)
	for a.bound += names.size() - before; a.bound > maxBoundOf; {
		a.bound -= a.dropOldest().size()
	}
}

func (b *bindings) names(id spiffeid.ID, addr netip.Addr, now time.Time) []boundName {
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
	before := names.size()
	names.forget(now)
	gone := before - names.size()
	addrs.bound, b.bound = addrs.bound-gone, b.bound-gone
	if len(*names) == 0 {
		addrs.drop(addr)
		return nil
	}
	return slices.Clone(*names)
}

// boundNames are those of one address, each until its time.
type boundNames []boundName

type boundName struct {
	name  allowlist.Host
	way   wire.Way // of the last answer
	until time.Time
}

// size is how many names and aliases there are.
func (b *boundNames) size() int {
	size := len(*b)
	for i := range *b {
		size += len((*b)[i].way.Aliases)
	}
	return size
}

// add binds a name, or lets it live longer. A name that is too much takes the
// place of the one that ends first.
func (b *boundNames) add(name boundName, now time.Time) {
	for i := range *b {
		if n := &(*b)[i]; n.name == name.name {
			if !slices.Equal(n.way.Aliases, name.way.Aliases) {
				n.way.Aliases = slices.Clone(name.way.Aliases)
			}
			if n.way.Target = name.way.Target; name.until.After(n.until) {
				n.until = name.until
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
	name.way.Aliases = slices.Clone(name.way.Aliases) // or it would hold the whole answer
	*b = append(*b, name)
}

func (b *boundNames) forget(now time.Time) {
	*b = slices.DeleteFunc(*b, func(n boundName) bool { return !now.Before(n.until) })
}

// Bind remembers for an identity the addresses of an answer that the filter
// lets it see, before it sees them: until the answer's time is over, and for a
// minute at least. If they are bound already, it allocates nothing.
func (r *Resolver) Bind(id spiffeid.ID, a Answer, now time.Time, f Filter) {
	until := now.Add(max(a.TTL(now), bindingLife))
	for addr, way := range a.msg.Seen(f) {
		r.bindings.bind(id, addr, boundName{a.name, way, until}, now)
	}
}

// Binding is a name whose answer has led an identity to an address.
type Binding struct {
	Name allowlist.Host
	// Via are the names over which it did: aliases, and the target of a service.
	Via     []allowlist.Host
	inspect bool // value of the resolver's Config.Inspect
}

// Check returns why a connection that was decided by the name must not follow
// it to the address, as Resolve does.
func (b *Binding) Check(dec *allowlist.Decision) allowlist.Reason {
	for _, hop := range b.Via {
		if why := dec.CheckHop(hop, b.inspect); why != allowlist.NoReason {
			return why
		}
	}
	return allowlist.NoReason
}

// Bound returns the names whose answers have led an identity to an address and
// still hold; none for an address that it was not led to. The caller asks the
// policy whether the identity may still reach one of them on the port, and be
// led from there to the address.
func (r *Resolver) Bound(id spiffeid.ID, addr netip.Addr, now time.Time) []Binding {
	names := r.bindings.names(id, addr.Unmap(), now)
	bound := make([]Binding, 0, len(names))
	for _, n := range names {
		via := slices.Clip(n.way.Aliases)
		if !n.way.Target.IsZero() {
			via = append(via, n.way.Target)
		}
		bound = append(bound, Binding{n.name, via, r.inspect})
	}
	return bound
}
