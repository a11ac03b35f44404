package allowlist

import "net/netip"

// Way describes how the look-up of a name led to an address. The zero value means that
// the name has the address itself, or that the address was not looked up.
type Way struct {
	// Via holds the names between the name and its address: aliases in order, and the
	// target of a service. The slice is shared and must not be changed.
	Via []Host
	// Inspect means that the policy must allow each name in Via by itself.
	Inspect bool
}

// Resolved is an address of a name, and the way that led to it.
type Resolved struct {
	Addr netip.Addr
	Way  Way
}

// CheckWay returns the reason for which a connection must not use an address that was
// found on a way: the first reason that CheckHop returns for a name in Via, or NoReason.
func (d Decision) CheckWay(way Way) Reason {
	for _, hop := range way.Via {
		if why := d.CheckHop(hop, way.Inspect); why != NoReason {
			return why
		}
	}
	return NoReason
}

// CheckHop returns the reason for which a connection must not follow an alias in the DNS
// from the name that was decided on to another name: a deny rule for the other name, or
// with inspect the reason for which the policy does not allow it. It returns NoReason if
// the connection may follow. A decision that does not allow the request follows no name.
func (d Decision) CheckHop(hop Host, inspect bool) Reason {
	if !d.Allowed() || d.policy == nil || hop.name == "" {
		return MalformedTarget
	}
	req := d.Request
	req.Dest.Host = hop
	next := d.policy.Decide(req)
	if next.Reason == DeniedByRule || inspect && !next.Allowed() {
		return next.Reason
	}
	return NoReason
}

// CheckFollow returns the reason for which no server must be asked for a name that an
// alias leads to: that of CheckHop, with inspect for every special name.
func (d Decision) CheckFollow(hop Host, inspect bool) Reason {
	return d.CheckHop(hop, inspect || hop.IsSpecial())
}

// CheckFollow returns the reason for which no server must be asked for a name that an
// answer leads to: that of CheckHop, with inspect for every special name.
func (d *NameDecision) CheckFollow(hop Host, inspect bool) Reason {
	return d.CheckHop(hop, inspect || hop.IsSpecial())
}
