package listen

import (
	"net/netip"

	"github.com/gaissmai/bart"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// AddressMap says which identity an address stands for. That proves little: an
// address can be forged in a datagram, and records say source-map. It is
// immutable; the zero value knows nobody.
type AddressMap struct {
	table bart.Table[spiffeid.ID]
}

// NewAddressMap returns the map of ranges to identities. Of two ranges that hold
// an address the longer prefix counts.
func NewAddressMap(ranges map[netip.Prefix]spiffeid.ID) *AddressMap {
	m := new(AddressMap)
	for prefix, id := range ranges {
		m.table.Insert(prefix, id)
	}
	return m
}

// Find returns the identity that an address stands for; false if it stands for
// none.
func (m *AddressMap) Find(addr netip.Addr) (spiffeid.ID, bool) {
	return m.table.Lookup(addr.Unmap().WithZone(""))
}
