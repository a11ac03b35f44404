package allowlist

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// Class is the kind of an IP address, or why an address must not be reached. Only
// Public is reachable without a rule that opens the class. The zero value is Invalid,
// which is never reachable.
type Class uint8

// The address classes. Those from Public to SiteLocal come from the IANA special-purpose
// address registries (RFC 6890 and later entries) and the metadata addresses of cloud
// providers; the others depend on the host, the rule or the request.
const (
	Invalid Class = iota
	Public
	Unspecified    // 0.0.0.0/8, ::
	Loopback       // 127/8, ::1
	Private        // RFC 1918, fc00::/7
	LinkLocal      // 169.254/16, fe80::/10
	Metadata       // cloud metadata services
	SharedSpace    // 100.64/10, RFC 6598
	Documentation  // RFC 5737, RFC 3849, RFC 9637
	Benchmarking   // RFC 2544, RFC 5180
	ProtocolUse    // 192.0.0/24, ORCHID, discard-only and the like
	Multicast      // 224/4, ff00::/8
	Broadcast      // 255.255.255.255
	Reserved       // 240/4, and IPv6 outside 2000::/3
	Transition     // 6to4, Teredo, 6to4 relays, IPv4-compatible, SIIT, ISATAP
	LocalNAT64     // 64:ff9b:1::/48, RFC 8215, unless configured
	SiteLocal      // fec0::/10
	OwnAddress     // an address of this host
	OwnListener    // a listener of this gateway: never reachable
	OutsideRule    // not in the rule's addresses
	DenyRule       // in the cidr of a deny rule
	NotDestination // not the address literal or not the port that was decided on
)

// String returns the word that records use as address_class.
func (c Class) String() string {
	switch c {
	case Invalid:
		return "invalid"
	case Public:
		return "public"
	case Unspecified:
		return "unspecified"
	case Loopback:
		return "loopback"
	case Private:
		return "private"
	case LinkLocal:
		return "link-local"
	case Metadata:
		return "metadata"
	case SharedSpace:
		return "shared-space"
	case Documentation:
		return "documentation"
	case Benchmarking:
		return "benchmarking"
	case ProtocolUse:
		return "protocol-use"
	case Multicast:
		return "multicast"
	case Broadcast:
		return "broadcast"
	case Reserved:
		return "reserved"
	case Transition:
		return "transition"
	case LocalNAT64:
		return "local-nat64"
	case SiteLocal:
		return "site-local"
	case OwnAddress:
		return "own-address"
	case OwnListener:
		return "own-listener"
	case OutsideRule:
		return "outside-rule"
	case DenyRule:
		return "deny-rule"
	case NotDestination:
		return "not-destination"
	}
	return "invalid"
}

// singleOnly reports whether only single addresses (/32 or /128) open the class.
func (c Class) singleOnly() bool {
	return c == Loopback || c == LinkLocal || c == Metadata || c == OwnAddress || c == Unspecified
}

// classRange is one row of the table of classes. The class applies to all addresses of
// the prefix that lie in no longer prefix of the table.
type classRange struct {
	prefix string
	class  Class
}

// classRanges returns the table of classes. It is taken from the IANA IPv4 and IPv6
// Special-Purpose Address Registries. 168.63.129.16 is Azure's wireserver in a public
// range; 100.100.100.200 is the metadata address of Alibaba Cloud, 192.0.0.192 of
// Oracle, 100.96.0.96 of Volcengine, fd00:42::42 of Scaleway, fe80::a9fe:a9fe of
// OpenStack and fd20:ce::254 of Google Cloud; fd00:ec2::254, fd00:ec2::23,
// 169.254.170.2 and 169.254.170.23 belong to AWS.
func classRanges() []classRange {
	return []classRange{
		{"0.0.0.0/0", Public},
		{"0.0.0.0/8", Unspecified},
		{"10.0.0.0/8", Private},
		{"100.64.0.0/10", SharedSpace},
		{"100.100.100.200/32", Metadata},
		{"100.96.0.96/32", Metadata},
		{"127.0.0.0/8", Loopback},
		{"168.63.129.16/32", Metadata},
		{"169.254.0.0/16", LinkLocal},
		{"169.254.169.254/32", Metadata},
		{"169.254.170.2/32", Metadata},
		{"169.254.170.23/32", Metadata},
		{"172.16.0.0/12", Private},
		{"192.0.0.0/24", ProtocolUse},
		{"192.0.0.192/32", Metadata},
		{"192.0.2.0/24", Documentation},
		{"192.88.99.0/24", Transition},
		{"192.168.0.0/16", Private},
		{"198.18.0.0/15", Benchmarking},
		{"198.51.100.0/24", Documentation},
		{"203.0.113.0/24", Documentation},
		{"224.0.0.0/4", Multicast},
		{"240.0.0.0/4", Reserved},
		{"255.255.255.255/32", Broadcast},

		{"::/3", Reserved}, // not ::/0, since a rule's ::/0 would lie inside it and open it
		{"2000::/3", Public},
		{"4000::/2", Reserved},
		{"8000::/1", Reserved},
		{"::/96", Transition},
		{"::/128", Unspecified},
		{"::1/128", Loopback},
		{"::ffff:0:0:0/96", Transition},
		{"64:ff9b:1::/48", LocalNAT64},
		{"100::/64", ProtocolUse},
		{"2001::/23", ProtocolUse},
		{"2001::/32", Transition},
		{"2001:2::/48", Benchmarking},
		{"2001:10::/28", ProtocolUse},
		{"2001:20::/28", ProtocolUse},
		{"2001:db8::/32", Documentation},
		{"2002::/16", Transition},
		{"3fff::/20", Documentation},
		{"5f00::/16", ProtocolUse},
		{"fc00::/7", Private},
		{"fd00:42::42/128", Metadata},
		{"fd00:ec2::23/128", Metadata},
		{"fd00:ec2::254/128", Metadata},
		{"fd20:ce::254/128", Metadata},
		{"fe80::/10", LinkLocal},
		{"fe80::a9fe:a9fe/128", Metadata},
		{"fec0::/10", SiteLocal},
		{"ff00::/8", Multicast},
	}
}

// Local describes the host that the gateway runs on, for the address check.
type Local struct {
	// Listeners are the addresses on which the gateway listens. One on an unspecified
	// address stands for its port on every address of the host.
	Listeners []netip.AddrPort
	// Addresses are the addresses of the host's interfaces.
	Addresses []netip.Addr
	// NAT64 are the operator's NAT64 prefixes beside 64:ff9b::/96. An address inside one
	// has the class of the IPv4 address that it embeds. If the length of the prefix is
	// not one of RFC 6052 (see IsNAT64), its addresses have the class LocalNAT64.
	NAT64 []netip.Prefix
}

// classTable (a bart.Table[Class]) and prefixSet (a bart.Lite) find the longest prefix
// that contains an address or a range. They are interfaces so that only this package
// compiles these generic types. Every package into which the compiler inlines a look-up
// in one of them would compile all their methods anew, which takes longer than to
// compile the whole of most packages.
type (
	classTable interface {
		Insert(netip.Prefix, Class)
		LookupPrefixLPM(netip.Prefix) (netip.Prefix, Class, bool)
	}
	prefixSet interface {
		Insert(netip.Prefix)
		LookupPrefixLPM(netip.Prefix) (netip.Prefix, bool)
	}
)

// Classifier finds the class of an address. It is immutable; make one with
// NewClassifier.
type Classifier struct {
	classes   classTable
	nat64     prefixSet               // NAT64 prefixes
	hostAddrs map[netip.Addr]bool     // addresses of the host
	listeners map[netip.AddrPort]bool // listeners of the gateway
	ports     map[uint16]bool         // ports of all listeners
	anyPort   map[uint16]bool         // ports of the listeners on an unspecified address
}

// NewClassifier returns a classifier for the host that local describes.
func NewClassifier(local Local) *Classifier {
	c := &Classifier{
		classes:   new(bart.Table[Class]),
		nat64:     new(bart.Lite),
		hostAddrs: map[netip.Addr]bool{},
		listeners: map[netip.AddrPort]bool{},
		ports:     map[uint16]bool{},
		anyPort:   map[uint16]bool{},
	}
	for _, r := range classRanges() {
		c.classes.Insert(netip.MustParsePrefix(r.prefix), r.class)
	}
	c.nat64.Insert(netip.MustParsePrefix("64:ff9b::/96"))
	for _, p := range local.NAT64 {
		if IsNAT64(p) {
			c.nat64.Insert(p.Masked())
		} else {
			c.classes.Insert(p, LocalNAT64)
		}
	}
	for _, a := range local.Addresses {
		c.hostAddrs[a.Unmap().WithZone("")] = true
	}
	for _, l := range local.Listeners {
		addr := l.Addr().Unmap().WithZone("")
		if addr.IsUnspecified() {
			c.anyPort[l.Port()] = true
		}
		c.ports[l.Port()] = true
		c.listeners[netip.AddrPortFrom(addr, l.Port())] = true
	}
	return c
}

// Classify returns the class of an address and the prefix of the table that the class
// comes from. A range of a rule opens the class only if it lies inside this prefix. An
// OwnAddress and an ISATAP address have a prefix that contains only them. IPv4-mapped
// addresses are unmapped first.
func (c *Classifier) Classify(addr netip.Addr) (Class, netip.Prefix) {
	if !addr.IsValid() || addr.Zone() != "" {
		return Invalid, netip.Prefix{}
	}
	addr = addr.Unmap()
	single := netip.PrefixFrom(addr, addr.BitLen())
	if addr.Is6() {
		if nat64, inner, ok := c.nat64Of(addr); ok {
			return c.classifyEmbedded(nat64, addr, inner)
		}
		if isISATAP(addr) {
			return Transition, single
		}
	}
	prefix, class, ok := c.classes.LookupPrefixLPM(single)
	if !ok {
		return Invalid, netip.Prefix{}
	}
	if c.hostAddrs[addr] && class != Loopback && class != Metadata {
		return OwnAddress, single
	}
	return class, prefix
}

// SingleOnly returns the class of a range of several addresses that lies wholly inside a
// class which only single addresses open. An allow rule for such a range allows nothing.
// It returns Invalid for every other range.
func (c *Classifier) SingleOnly(p netip.Prefix) Class {
	const wellKnown = 96 // length of 64:ff9b::/96, inside which an IPv4 range is an IPv6 range
	p = canonicalPrefix(p)
	if p.IsSingleIP() {
		return Invalid
	}
	if nat64, inner, ok := c.nat64Of(p.Addr()); ok && nat64.Bits() == wellKnown && p.Bits() >= wellKnown {
		p = netip.PrefixFrom(inner, p.Bits()-wellKnown)
	}
	if _, class, ok := c.classes.LookupPrefixLPM(p); ok && class.singleOnly() {
		return class
	}
	return Invalid
}

// IsListener reports whether a connection to addr would reach a listener of the gateway.
// A connection to an unspecified address reaches this host.
func (c *Classifier) IsListener(addr netip.AddrPort) bool {
	a := addr.Addr().Unmap()
	if inner, ok := c.embedded(a); ok {
		a = inner
	}
	switch {
	case c.listeners[netip.AddrPortFrom(a, addr.Port())]:
		return true
	case a.IsUnspecified():
		return c.ports[addr.Port()]
	}
	return c.anyPort[addr.Port()] && (a.IsLoopback() || c.hostAddrs[a])
}

// SourceOf returns the address under which the traffic from addr is counted: an IPv4
// address itself, and for an IPv6 address the first address of its /64, because a host
// that has one address of a /64 can use all of them. The zero Addr counts as one source.
func SourceOf(addr netip.Addr) netip.Addr {
	addr = addr.Unmap()
	if !addr.Is6() {
		return addr
	}
	prefix, _ := addr.Prefix(64) // an IPv6 address always has a /64
	return prefix.Addr()
}

// IsNAT64 reports whether a prefix is usable for NAT64: it is IPv6 and has one of the
// lengths of RFC 6052 section 2.2.
func IsNAT64(p netip.Prefix) bool {
	switch p.Bits() {
	case 32, 40, 48, 56, 64, 96:
		return p.Addr().Is6() && !p.Addr().Is4In6()
	}
	return false
}

// embedded returns the IPv4 address that addr embeds if it is inside a NAT64 prefix.
func (c *Classifier) embedded(addr netip.Addr) (netip.Addr, bool) {
	_, inner, ok := c.nat64Of(addr)
	return inner, ok
}

// nat64Of returns the NAT64 prefix that contains an address, and the IPv4 address that
// the address embeds.
func (c *Classifier) nat64Of(addr netip.Addr) (prefix netip.Prefix, inner netip.Addr, ok bool) {
	if !addr.Is6() {
		return netip.Prefix{}, netip.Addr{}, false
	}
	prefix, ok = c.nat64.LookupPrefixLPM(netip.PrefixFrom(addr, addr.BitLen()))
	if !ok {
		return netip.Prefix{}, netip.Addr{}, false
	}
	b := addr.As16()
	var v4 [4]byte
	for i, at := range embeddedAt(prefix.Bits()) {
		v4[i] = b[at]
	}
	return prefix, netip.AddrFrom4(v4), true
}

// embeddedAt returns the offsets of the four bytes of the IPv4 address: they follow the
// NAT64 prefix, whose length is bits, and skip byte 8 (RFC 6052 section 2.2).
func embeddedAt(bits int) (at [4]int) {
	next := bits / 8
	for i := range at {
		if next == 8 {
			next++
		}
		at[i] = next
		next++
	}
	return at
}

// classifyEmbedded returns the class of inner, which addr embeds inside a NAT64 prefix,
// and the prefix of addr that corresponds to the table's prefix of inner.
func (c *Classifier) classifyEmbedded(nat64 netip.Prefix, addr, inner netip.Addr) (Class, netip.Prefix) {
	class, around := c.Classify(inner)
	bits := nat64.Bits() + around.Bits()
	if at := embeddedAt(nat64.Bits()); at[0] <= 9 && bits > 64 || at[0] == 9 {
		bits += 8
	}
	return class, netip.PrefixFrom(addr, bits).Masked()
}

// isISATAP reports whether the interface identifier of an IPv6 address is
// 0000:5efe:a.b.c.d or 0200:5efe:a.b.c.d (RFC 5214 section 6.1).
func isISATAP(addr netip.Addr) bool {
	b := addr.As16()
	return b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}
