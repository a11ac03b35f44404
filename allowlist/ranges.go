package allowlist

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
)

// joinRanges returns ranges that open the same addresses for a rule as the given ones do,
// in canonical form and in order. It joins the two halves of a range, and leaves out a
// range inside another one that opens no more than the other one opens.
func (c *Classifier) joinRanges(ranges []netip.Prefix) []netip.Prefix {
	byLength := make([]netip.Prefix, len(ranges))
	for i, p := range ranges {
		byLength[i] = canonicalPrefix(p)
	}
	slices.SortFunc(byLength, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	kept := make(map[netip.Prefix]bool, len(ranges))
	for _, p := range byLength {
		c.joinRange(kept, p)
	}
	joined := slices.AppendSeq(byLength[:0], maps.Keys(kept))
	slices.SortFunc(joined, netip.Prefix.Compare)
	return joined
}

// joinRange adds a range to those that joinRanges keeps. It is called in the order of the
// prefix lengths, so that the ranges around p have been added before p.
//
// Two kinds of ranges are kept as they are: a single address may be the host's own, which
// no wider range opens; and an IPv6 range may lie inside a NAT64 prefix, which a wider
// range does not. A policy does not know the host or its NAT64 prefixes.
func (c *Classifier) joinRange(kept map[netip.Prefix]bool, p netip.Prefix) {
	if p.Addr().Is6() || p.IsSingleIP() || p.Bits() <= 0 {
		kept[p] = true
		return
	}
	around := wider(p)
	for outer := around; ; outer = wider(outer) {
		if kept[outer] && !c.opensMore(p, outer) {
			return
		}
		if outer.Bits() == 0 {
			break
		}
	}
	half := otherHalf(p)
	if !kept[half] || c.opensMore(p, around) || c.opensMore(half, around) {
		kept[p] = true
		return
	}
	delete(kept, half)
	c.joinRange(kept, around)
}

// opensMore reports whether a rule with the range p, of several IPv4 addresses, opens an
// address that the wider range outer does not open: p lies inside a special class, and
// outer does not. See CompiledRule.admits.
func (c *Classifier) opensMore(p, outer netip.Prefix) bool {
	special, class, ok := c.classes.LookupPrefixLPM(p)
	return ok && class != Public && !class.singleOnly() && special.Bits() > outer.Bits()
}

// wider returns the range around p with twice as many addresses.
func wider(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
}

// otherHalf returns the other half of the range wider(p), for an IPv4 range.
func otherHalf(p netip.Prefix) netip.Prefix {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])^1<<(32-p.Bits()))
	return netip.PrefixFrom(netip.AddrFrom4(b), p.Bits())
}
