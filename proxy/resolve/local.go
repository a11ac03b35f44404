package resolve

import (
	"net/netip"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// localAnswers holds the answers for names that servers are not asked for, by type.
type localAnswers struct {
	hosts    map[allowlist.Host]map[uint16]*wire.Message
	loopback map[uint16]*wire.Message // for localhost and every name below it
}

// newLocalAnswers returns the answers for localhost and the table of hosts.
func newLocalAnswers(hosts map[allowlist.Host][]netip.Addr) localAnswers {
	o := localAnswers{hosts: make(map[allowlist.Host]map[uint16]*wire.Message, len(hosts)), loopback: addressMessages(wire.Loopback())}
	for host, addrs := range hosts {
		o.hosts[host] = addressMessages(addrs)
	}
	return o
}

// find returns the answers for a name, or nil if servers are asked for it.
func (o *localAnswers) find(name allowlist.Host) map[uint16]*wire.Message {
	if name.IsLocalhost() {
		return o.loopback
	}
	return o.hosts[name]
}

// addressMessages returns the answers, by type, for a name that has addresses only.
func addressMessages(addrs []netip.Addr) map[uint16]*wire.Message {
	byType := map[uint16]*wire.Message{anyType: wire.Local(anyType, nil, 0)}
	for _, typ := range []uint16{wire.TypeA, wire.TypeAAAA} {
		byType[typ] = wire.Local(typ, addrs, hostsTTL)
	}
	return byType
}
