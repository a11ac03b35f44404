package resolve

import (
	"net/netip"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// own are the answers for the names that no server is asked for, by type.
type own struct {
	hosts    map[allowlist.Host]map[uint16]*wire.Message
	loopback map[uint16]*wire.Message // for localhost and every name below it
}

// newOwn makes the answers of the table of hosts.
func newOwn(hosts map[allowlist.Host][]netip.Addr) own {
	o := own{hosts: make(map[allowlist.Host]map[uint16]*wire.Message, len(hosts)), loopback: addressMessages(wire.Loopback())}
	for host, addrs := range hosts {
		o.hosts[host] = addressMessages(addrs)
	}
	return o
}

// of returns the answers for a name; nil if servers are asked for it.
func (o *own) of(name allowlist.Host) map[uint16]*wire.Message {
	if name.IsLocalhost() {
		return o.loopback
	}
	return o.hosts[name]
}

// addressMessages makes the answers for one name that has addresses and nothing
// else, by type.
func addressMessages(addrs []netip.Addr) map[uint16]*wire.Message {
	byType := map[uint16]*wire.Message{anyType: wire.Local(anyType, nil, 0)}
	for _, typ := range []uint16{wire.TypeA, wire.TypeAAAA} {
		byType[typ] = wire.Local(typ, addrs, hostsTTL)
	}
	return byType
}
