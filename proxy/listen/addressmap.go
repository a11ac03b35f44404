package listen

import (
	"net/netip"

	"github.com/gaissmai/bart"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// AddressMap maps addresses to identities. An address proves little, because it can be
// forged in a datagram; records show the proof as source-map. An AddressMap is
// immutable, and its zero value contains no address.
type AddressMap struct {
	table bart.Table[spiffeid.ID]
}

// NewAddressMap returns a map of ranges to identities. If several ranges contain an
// address, the one with the longest prefix counts.
func NewAddressMap(ranges map[netip.Prefix]spiffeid.ID) *AddressMap {
	m := new(AddressMap)
	for prefix, id := range ranges {
		m.table.Insert(prefix, id)
	}
	return m
}

// Find returns the identity of an address, or false if the address is not in the map.
func (m *AddressMap) Find(addr netip.Addr) (spiffeid.ID, bool) {
	return m.table.Lookup(addr.Unmap().WithZone(""))
}
