package allowlist

import (
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// NameRequest is a DNS question that the policy decides.
type NameRequest struct {
	ID    spiffeid.ID // verified; the zero ID is never allowed
	Proof Proof       // proof of the identity
	Host  Host        // a name; an address is refused as malformed
	Type  QueryType
	// Time is the time of the request, which is compared with expiry dates.
	Time time.Time
}

// NameDecision is the decision about one NameRequest. The zero value denies. Like its
// Outcome it is a plain value that may be copied.
type NameDecision struct {
	NameRequest
	Outcome

	// Above means that the name was not allowed, but the policy lets this identity
	// resolve names below it. The answer must then not say that these do not exist (RFC
	// 8020).
	Above bool
	// Special means that the name is never looked up unless a rule allows it.
	Special bool
}

// DecideName decides whether an identity may resolve a name. It allocates nothing, and no
// part of its cost grows with the number of rules.
//
// It checks in the order of Decide. A name is resolvable if the host pattern of an allow
// rule covers it, whatever ports, methods or paths the rule has, and also if the rule has
// NoTunnel. A deny rule applies only if it covers every port, so that DecideName allows
// every name that Decide allows on some port. The type is checked last: a name that is
// allowed for other types only is refused as type-not-allowed. A name that no rule allows
// and that a search list has made from one that is allowed is refused as special-name.
func (p *Policy) DecideName(req NameRequest) NameDecision {
	d := p.decideName(req)
	if max(d.Reason, d.WouldReason) != NotOnAllowlist || !p.searched(req) {
		return d
	}
	if d.Verdict == Observe {
		d.WouldReason = SpecialName
	} else {
		d.Reason = SpecialName
	}
	return d
}

// maxSearched is the largest number of labels in a domain of a search list.
const maxSearched = 8

// searched reports whether the name of a request is a name that the identity may resolve,
// with a domain of a search list appended. A stub resolver with a search list asks for
// such names before it asks for the name that is meant.
func (p *Policy) searched(req NameRequest) bool {
	var c chain
	p.collect(req.ID, &c)
	for range maxSearched {
		dot := strings.LastIndexByte(req.Host.name, '.')
		if dot < 0 {
			return false
		}
		req.Host.name = req.Host.name[:dot]
		d := NameDecision{NameRequest: req}
		if c.decideName(&d); d.Verdict == Allow {
			return true
		}
	}
	return false
}

// decideName decides a request as DecideName does, but without regard to search lists.
func (p *Policy) decideName(req NameRequest) NameDecision {
	d := NameDecision{NameRequest: req, Outcome: Outcome{policy: p}}
	if p == nil || p.inline == nil { // or not made by Compile
		d.Reason = PolicyUnavailable
		return d
	}
	if d.Reason = malformedName(&req); d.Reason != NoReason {
		return d
	}
	var c chain
	d.Reason, d.Quarantine = p.known(&c, req.ID, req.Proof)
	d.Owner = c.owner()
	if d.Reason != NoReason {
		return d
	}
	d.Mode, d.observePrivate = c.mode(req.Time)
	d.Special = req.Host.IsSpecial()
	c.decideName(&d)
	if d.Verdict != Allow {
		d.Above = d.Mode == ModeObserve || c.above(req.Host, req.Time)
	}
	return d
}

// Knows returns the reason for which the policy refuses every request of an identity with
// this proof, and NoReason if the decision depends on the request.
func (p *Policy) Knows(id spiffeid.ID, proof Proof) Reason {
	if p == nil || p.inline == nil {
		return PolicyUnavailable
	}
	if reason := malformedID(id); reason != NoReason {
		return reason
	}
	var c chain
	reason, _ := p.known(&c, id, proof)
	return reason
}

// Allowed reports whether the name may be looked up.
func (d *NameDecision) Allowed() bool {
	return d.Verdict == Allow || d.Verdict == Observe && !d.Special
}

func malformedName(req *NameRequest) Reason {
	if req.Host.name == "" {
		return MalformedTarget
	}
	return malformedID(req.ID)
}

// decideName sets the verdict, the rule and the reason of a decision about a name, as
// decide does for a destination.
func (c *chain) decideName(d *NameDecision) {
	nearest := NotOnAllowlist
	if d.Special {
		nearest = SpecialName
	}
	c.each(d.Host, func(h *hostRules) bool {
		if h.deny != nil && h.deny.everyPort {
			d.Verdict, d.Rule, nearest = Deny, h.deny.rules[0], DeniedByRule
			return false
		}
		if c.allowed {
			return true
		}
		for _, r := range h.allow.resolves {
			switch {
			case r.expired(d.Time):
				if nearest == NotOnAllowlist || nearest == SpecialName {
					nearest, d.Rule = RuleExpired, r
				}
			case !r.types.has(d.Type):
				if nearest != TypeNotAllowed {
					nearest, d.Rule = TypeNotAllowed, r
				}
			default:
				d.Verdict, d.Rule = Allow, r
				c.allowed = true
				return c.denies != 0
			}
		}
		return true
	})
	if d.Verdict == Allow {
		return
	}
	d.Reason, d.missed = nearest, d.Rule
	if d.Mode != ModeObserve || !nearest.observable() && nearest != SpecialName {
		return
	}
	if !observeTypes.has(d.Type) {
		d.Reason = TypeNotAllowed
		return
	}
	d.Verdict, d.Reason, d.WouldReason, d.Rule = Observe, NoReason, nearest, nil
}

// CheckAddr returns Public if the answer to the question may contain addr, and otherwise
// the class for which it may not. The answer may contain an address that one of the rules
// for the name admits, because the rule that wins for a connection depends on the port. A
// decision that does not allow the name refuses every address.
func (d *NameDecision) CheckAddr(addr netip.Addr) Class {
	if !d.Allowed() || d.policy == nil || !addr.IsValid() || addr.Zone() != "" {
		return Invalid
	}
	addr = addr.Unmap()
	var c chain
	d.policy.collect(d.ID, &c)
	if d.policy.deniedEverywhere(&c, addr) {
		return DenyRule
	}
	class, prefix := d.policy.classifier.Classify(addr)
	if d.Verdict == Observe {
		return d.observed(class)
	}
	refused := class
	admitted := false
	c.each(d.Host, func(h *hostRules) bool {
		for _, r := range h.allow.resolves {
			if r.expired(d.Time) {
				continue
			}
			if refused = r.admits(addr, class, prefix); refused == Public {
				admitted = true
				return false
			}
		}
		return true
	})
	if admitted {
		return Public
	}
	if refused == Public { // every rule has expired
		return Invalid
	}
	return refused
}

// CheckHop returns the reason for which an alias in an answer must not be followed to the
// name hop: a deny rule that covers every port of hop, or with inspect the reason for
// which the policy does not allow hop. It returns NoReason if it may be followed.
func (d *NameDecision) CheckHop(hop Host, inspect bool) Reason {
	if !d.Allowed() || d.policy == nil || hop.name == "" {
		return MalformedTarget
	}
	req := d.NameRequest
	req.Host = hop
	next := d.policy.decideName(req)
	switch {
	case next.Reason == DeniedByRule:
		return DeniedByRule
	case inspect && !next.Allowed():
		return max(next.Reason, next.WouldReason)
	}
	return NoReason
}

// deniedEverywhere reports whether a deny rule covers every port of an address, or of the
// IPv4 address that it embeds.
func (p *Policy) deniedEverywhere(c *chain, addr netip.Addr) bool {
	if c.denies&deniesAddr == 0 {
		return false
	}
	denied := false
	visit := func(h *hostRules) bool {
		denied = h.deny != nil && h.deny.everyPort
		return !denied
	}
	c.eachPrefix(addr, visit)
	if inner, ok := p.classifier.embedded(addr); ok && !denied {
		c.eachPrefix(inner, visit)
	}
	return denied
}

// above reports whether an entry of the chain allows names below h at the time now.
func (c *chain) above(h Host, now time.Time) bool {
	hash := c.hash.text(h.name)
	for _, e := range c.all() {
		if until := e.parents.get(hash, h.name); until != nil && (until.IsZero() || now.Before(*until)) {
			return true
		}
	}
	return false
}

func (r *CompiledRule) expired(now time.Time) bool {
	return !r.Expires.IsZero() && !now.Before(r.Expires)
}
