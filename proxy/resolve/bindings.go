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

// Bounds on the bindings of addresses to the names whose answers contained them. The
// least recently used ones are dropped.
const (
	bindingLife         = time.Minute // shortest life, whatever the time to live
	maxBoundIdentities  = 4096
	maxBound            = 512 << 10 // names and their aliases, of all identities
	maxBoundAddrs       = 1024      // addresses of one identity
	maxBoundPerIdentity = 8192      // names and aliases of all addresses of one identity
	maxBoundNames       = 16        // names of one address

	// mappedBounds divides every bound for mapped holders.
	mappedBounds = 4
)

// bindings remembers which names led an identity to an address, for connections to the
// bare address. Mapped holders have a part of their own, so that a client that forges
// an address displaces no bindings of other holders.
type bindings struct{ proved, mapped *boundPart }

func newBindings() *bindings {
	return &bindings{proved: newBoundPart(1), mapped: newBoundPart(mappedBounds)}
}

// part returns the part for a holder's bindings.
func (b *bindings) part(h allowlist.Holder) *boundPart {
	if h.Mapped() {
		return b.mapped
	}
	return b.proved
}

// boundPart is one part of the bindings. It is safe for concurrent use.
type boundPart struct {
	divisor int // divides every bound

	mu         sync.Mutex
	identities lru[spiffeid.ID, *boundAddrs]
	total      int // number of names and aliases of all identities
	most       int
}

func newBoundPart(divisor int) *boundPart {
	return &boundPart{
		divisor: divisor, most: maxBound / divisor, identities: newLRU[spiffeid.ID, *boundAddrs](maxBoundIdentities / divisor),
	}
}

// boundAddrs holds the bound addresses of one identity.
type boundAddrs struct {
	lru[netip.Addr, *boundNames]

	total int // number of names and aliases of all of them
}

func (b *boundPart) bind(id spiffeid.ID, addr netip.Addr, name boundName, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	addrs, ok := b.identities.get(id)
	if !ok {
		addrs = &boundAddrs{lru: newLRU[netip.Addr, *boundNames](maxBoundAddrs / b.divisor)}
		if dropped, full := b.identities.put(id, addrs); full {
			b.total -= dropped.total
		}
	}
	before := addrs.total
	addrs.bind(addr, name, now, b.divisor)
	for b.total += addrs.total - before; b.total > b.most; {
		b.total -= b.identities.dropOldest().total
	}
}

func (a *boundAddrs) bind(addr netip.Addr, name boundName, now time.Time, divisor int) {
	names, ok := a.get(addr)
	if !ok {
		names = new(boundNames)
		if dropped, full := a.put(addr, names); full {
			a.total -= dropped.size()
		}
	}
	before := names.size()
	names.add(name, now, maxBoundNames/divisor)
	for a.total += names.size() - before; a.total > maxBoundPerIdentity/divisor; {
		a.total -= a.dropOldest().size()
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
	addrs.total, b.total = addrs.total-gone, b.total-gone
	if len(*names) == 0 {
		addrs.drop(addr)
		return nil
	}
	return slices.Clone(*names)
}

// boundNames holds the names that are bound to one address.
type boundNames []boundName

type boundName struct {
	name  allowlist.Host
	way   wire.Way // the way to the address in the last answer
	until time.Time
}

// size returns the number of names and aliases.
func (b *boundNames) size() int {
	size := len(*b)
	for i := range *b {
		size += len((*b)[i].way.Aliases)
	}
	return size
}

// add binds a name, or extends its life. If there are too many names, it replaces the
// one that expires first.
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
	name.way.Aliases = slices.Clone(name.way.Aliases) // the copy does not keep the answer in memory
	*b = append(*b, name)
}

func (b *boundNames) forget(now time.Time) {
	*b = slices.DeleteFunc(*b, func(n boundName) bool { return !now.Before(n.until) })
}

// Bind binds the addresses of an answer that the filter allows a holder to see, before
// the holder sees them, until the answer expires and for at least a minute. It
// allocates nothing for addresses that are bound already.
func (r *Resolver) Bind(h allowlist.Holder, a Answer, now time.Time, f Filter) {
	until := now.Add(max(a.TTL(now), bindingLife))
	part := r.bindings.part(h)
	for addr, way := range a.msg.Seen(f) {
		part.bind(h.ID(), addr, boundName{a.name, way, until}, now)
	}
}

// Binding is a name whose answer has led an identity to an address, with the way to it.
type Binding struct {
	Name allowlist.Host
	allowlist.Way
	// Mapped says that the proof of the identity was source-map when the address was
	// bound: the query may have been forged.
	Mapped bool
}

// Bound returns the names whose answers have led an identity to an address and whose
// binding has not expired, for every proof of the identity. The names of mapped holders
// come last. The caller checks with the policy whether the identity may still reach one
// of the names on the port, and be led from there to the address.
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

// via returns the names that lead to the address, except the name itself.
func (n *boundName) via() []allowlist.Host {
	via := slices.Clip(n.way.Aliases)
	if !n.way.Target.IsZero() {
		via = append(via, n.way.Target)
	}
	return via
}
