package dns

import (
	"net/netip"

	"github.com/gaissmai/bart"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Sources says which identity an address stands for. That proves little: an
// address can be forged in a datagram, and records say source-map. It is
// immutable; the zero value knows nobody.
type Sources struct {
	table bart.Table[spiffeid.ID]
}

// NewSources returns the sources of a map of ranges. Of two ranges that hold an
// address the longer prefix counts.
func NewSources(ranges map[netip.Prefix]spiffeid.ID) *Sources {
	s := new(Sources)
	for prefix, id := range ranges {
		s.table.Insert(prefix, id)
	}
	return s
}

// Find returns the identity that an address stands for; false if it stands for
// none.
func (s *Sources) Find(addr netip.Addr) (spiffeid.ID, bool) {
	return s.table.Lookup(addr.Unmap().WithZone(""))
}
