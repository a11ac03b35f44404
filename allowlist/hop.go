package allowlist

import "net/netip"

// Way is how the look-up of a name led to an address. The zero value is the way of
// a name that has the address itself, or of an address that nobody looked up.
type Way struct {
	// Via are the names over which it did: aliases in order, and the target of a
	// service. It is shared, and not to be changed.
	Via []Host
	// Inspect means that each of them must be allowed by itself.
	Inspect bool
}

// Resolved is an address of a name, and the way to it.
type Resolved struct {
	Addr netip.Addr
	Way  Way
}

// CheckWay returns the reason for which a connection must not be led to an address
// on a way: that of CheckHop for the first name of it that has one.
func (d Decision) CheckWay(way Way) Reason {
	for _, hop := range way.Via {
		if why := d.CheckHop(hop, way.Inspect); why != NoReason {
			return why
		}
	}
	return NoReason
}

// CheckHop returns the reason for which a connection must not be led to
// another name than the one decided on, by an alias in the DNS: a deny rule, or
// with inspect, that the name is not allowed by itself. NoReason lets it go on.
// A decision that does not allow follows no name.
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

// CheckFollow returns the reason for which no server must be asked for a name that
// an alias leads to: that of CheckHop, and a special name must be allowed by itself.
func (d Decision) CheckFollow(hop Host, inspect bool) Reason {
	return d.CheckHop(hop, inspect || hop.isSpecial())
}

// CheckFollow returns the reason for which no server must be asked for a name that
// an answer leads to: that of CheckHop, and a special name must be allowed by itself.
func (d *NameDecision) CheckFollow(hop Host, inspect bool) Reason {
	return d.CheckHop(hop, inspect || hop.isSpecial())
}
