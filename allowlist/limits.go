package allowlist

import (
	"cmp"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Or returns l, with each limit that is not set in l replaced by that of other.
func (l Limits) Or(other Limits) Limits {
	return Limits{
		Tunnels:           cmp.Or(l.Tunnels, other.Tunnels),
		ConnectsPerSecond: cmp.Or(l.ConnectsPerSecond, other.ConnectsPerSecond),
		DNSPerSecond:      cmp.Or(l.DNSPerSecond, other.DNSPerSecond),
		UploadPerHour:     cmp.Or(l.UploadPerHour, other.UploadPerHour),
	}
}

// Limits returns the limits of an identity. Each is the limit of the most specific entry
// that sets it, and zero if no entry does. It allocates nothing.
func (p *Policy) Limits(id spiffeid.ID) Limits {
	var l Limits
	if p == nil || !p.limited {
		return l
	}
	var c chain
	p.collect(id, &c)
	for _, e := range c.all() {
		l = l.Or(e.limits)
	}
	return l
}

// EachShared calls visit for every pattern that covers an identity and has limits for all
// its identities together. It does not call visit for an identity that the policy does
// not know or that is in quarantine, because such an identity must not use up what others
// share. It allocates nothing.
func (p *Policy) EachShared(id spiffeid.ID, visit func(IdentityPattern, Limits)) {
	if p == nil || !p.shared {
		return
	}
	var c chain
	if !p.collect(id, &c) || p.quarantined(id) != nil {
		return
	}
	for _, e := range c.all() {
		if e.shared != (Limits{}) {
			visit(e.pattern, e.shared)
		}
	}
}

// Shared returns the limits that the entry of a pattern sets for all its identities
// together. They are zero if it sets none.
func (p *Policy) Shared(pattern IdentityPattern) Limits {
	if p == nil || !p.shared {
		return Limits{}
	}
	var at *index[string, entry]
	switch pattern.kind {
	case patternExact:
		at = &p.exact
	case patternOne:
		at = &p.one
	case patternMany:
		at = &p.many
	case patternAll:
		at = &p.everyone
	case patternNone:
		return Limits{}
	}
	e := at.get(p.hash.text(pattern.prefix), pattern.prefix)
	if e == nil {
		return Limits{}
	}
	return e.shared
}
