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

	// mappedBounds is what every bound is divided by for what came by source-map.
	mappedBounds = 4
)

// bindings remembers which names led an identity to an address, for
// connections to the bare address. What came by source-map has a part of its own,
// so that whoever forges an address pushes out nothing else.
type bindings struct{ proved, mapped *boundPart }

func newBindings() *bindings {
	return &bindings{proved: newBoundPart(1), mapped: newBoundPart(mappedBounds)}
}

// of returns the part that a holder's bindings are in.
func (b *bindings) of(h allowlist.Holder) *boundPart {
	if h.Mapped() {
		return b.mapped
	}
	return b.proved
}

// boundPart is one part of the bindings. It is safe for concurrent use.
type boundPart struct {
	divisor int // of every bound

	mu         sync.Mutex
	identities lru[spiffeid.ID, *boundAddrs]
	bound      int // names and aliases of all identities, at most as many as most says
	most       int
}

func newBoundPart(divisor int) *boundPart {
	return &boundPart{
		divisor: divisor, most: maxBound / divisor, identities: newLRU[spiffeid.ID, *boundAddrs](maxBoundIdentities / divisor),
	}
}

// boundAddrs are those of one identity.
type boundAddrs struct {
	lru[netip.Addr, *boundNames]

	bound int // names and aliases of all of them
}

func (b *boundPart) bind(id spiffeid.ID, addr netip.Addr, name boundName, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	addrs, ok := b.identities.get(id)
	if !ok {
		addrs = &boundAddrs{lru: newLRU[netip.Addr, *boundNames](maxBoundAddrs / b.divisor)}
		if dropped, full := b.identities.put(id, addrs); full {
			b.bound -= dropped.bound
		}
	}
	before := addrs.bound
	addrs.bind(addr, name, now, b.divisor)
	for b.bound += addrs.bound - before; b.bound > b.most; {
		b.bound -= b.identities.dropOldest().bound
	}
}

func (a *boundAddrs) bind(addr netip.Addr, name boundName, now time.Time, divisor int) {
	names, ok := a.get(addr)
	if !ok {
		names = new(boundNames)
		if dropped, full := a.put(addr, names); full {
			a.bound -= dropped.size()
		}
	}
	before := names.size()
	names.add(name, now, maxBoundNames/divisor)
	for a.bound += names.size() - before; a.bound > maxBoundOf/divisor; {
		a.bound -= a.dropOldest().size()
	}
}

func (b *boundPart) names(id spiffeid.ID, addr netip.Addr, now time.Time) []boundName {
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
func (b *boundNames) add(name boundName, now time.Time, most int) {
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
	if len(*b) >= most {
		b.forget(now)
	}
	if len(*b) >= most {
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

// Bind remembers for a holder the addresses of an answer that the filter
// lets it see, before it sees them: until the answer's time is over, and for a
// minute at least. If they are bound already, it allocates nothing.
func (r *Resolver) Bind(h allowlist.Holder, a Answer, now time.Time, f Filter) {
	until := now.Add(max(a.TTL(now), bindingLife))
	part := r.bindings.of(h)
	for addr, way := range a.msg.Seen(f) {
		part.bind(h.ID(), addr, boundName{a.name, way, until}, now)
	}
}

// Binding is a name whose answer has led an identity to an address, and the way.
type Binding struct {
	Name allowlist.Host
	allowlist.Way
	// Mapped says that the identity was shown by source-map when it was told the
	// address: it need not have asked.
	Mapped bool
}

// Bound returns the names whose answers have led an identity to an address and
// still hold, whatever showed the identity: those that are mapped come last. There
// are none for an address that it was not led to. The caller asks the
// policy whether the identity may still reach one of them on the port, and be
// led from there to the address.
func (r *Resolver) Bound(id spiffeid.ID, addr netip.Addr, now time.Time) []Binding {
	addr = addr.Unmap()
	proved, mapped := r.bindings.proved.names(id, addr, now), r.bindings.mapped.names(id, addr, now)
	bound := make([]Binding, 0, len(proved)+len(mapped))
	for _, n := range proved {
		bound = append(bound, Binding{Name: n.name, Way: allowlist.Way{Via: n.via(), Inspect: r.inspect}})
	}
	for _, n := range mapped {
		bound = append(bound, Binding{Name: n.name, Way: allowlist.Way{Via: n.via(), Inspect: r.inspect}, Mapped: true})
	}
	return bound
}

// via returns the names that led to the address, beside the name itself.
func (n *boundName) via() []allowlist.Host {
	via := slices.Clip(n.way.Aliases)
	if !n.way.Target.IsZero() {
		via = append(via, n.way.Target)
	}
	return via
}
