package allowlist

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Decision is the decision about one request. The zero value denies. Like its Outcome it
// is a plain value that may be copied.
type Decision struct {
	Request
	Outcome

	// Class is the class of an address literal that was refused because of its class;
	// Invalid otherwise.
	Class Class

	near *portTable // the rules of the host pattern with the nearest miss; nil if none
}

// Allowed reports whether the request may proceed to the check of its addresses.
func (d Decision) Allowed() bool { return d.Verdict == Allow || d.Verdict == Observe }

// OnlyPublic reports whether a rule without addresses allowed a name, which may then
// resolve to public addresses only.
func (d *Decision) OnlyPublic() bool {
	return d.Verdict == Allow && !d.Dest.Host.IsAddr() && d.Rule.Addresses == nil
}

// Narrow reports whether the rule that allowed the request restricts methods, and whether
// it restricts paths. The origin must then not read another method or path from the
// request than the one that was decided on.
func (d *Decision) Narrow() (methods, paths bool) {
	if d.Verdict != Allow || d.Rule == nil {
		return false, false
	}
	return d.Rule.methods != nil, len(d.Rule.Paths) > 0
}

// AllowedPorts returns the ports that the nearest rules allow, separated by commas, if
// the reason is port-not-allowed, and "" otherwise.
func (d Decision) AllowedPorts() string {
	if d.Reason != PortNotAllowed || d.near == nil {
		return ""
	}
	texts := make([]string, 0, len(d.near.spans))
	for _, s := range d.near.spans {
		if slices.ContainsFunc(s.rules, (*CompiledRule).connects) {
			texts = append(texts, s.String())
		}
	}
	return strings.Join(texts, ", ")
}

// TLS returns how the first bytes of the tunnel are checked. Unless the rule sets the TLS
// mode, it is TLSRequire on port 443 and TLSAuto elsewhere; it is never TLSDefault.
func (d Decision) TLS() (TLSMode, ECHMode) {
	var mode TLSMode
	var ech ECHMode
	if d.Rule != nil {
		mode, ech = d.Rule.TLS, d.Rule.ECH
	}
	switch {
	case mode != TLSDefault:
	case d.Dest.Port == 443:
		mode = TLSRequire
	default:
		mode = TLSAuto
	}
	return mode, ech
}

// AddrError is the error for an address of an allowed destination that must not be
// dialled.
type AddrError struct {
	Addr  netip.AddrPort
	Class Class
	// Rule is the name of the deny rule if Class is DenyRule; "" otherwise.
	Rule string
}

// Error returns a text with the address, its class and the deny rule if there is one. It
// is for records and must not be sent to callers.
func (e *AddrError) Error() string {
	class := e.Class.String()
	if e.Rule != "" {
		class += " " + e.Rule
	}
	return fmt.Sprintf("address %s is not allowed (%s)", e.Addr, class)
}

// CheckAddr returns nil if the decision lets the caller reach addr, and an *AddrError
// otherwise. It is called for every resolved address, again for the address that is
// dialled, and after a reload for the address of a live tunnel. A decision that does not
// allow the request refuses every address.
func (d Decision) CheckAddr(addr netip.AddrPort) error {
	class, rule := d.check(addr)
	if class == Public {
		return nil
	}
	err := &AddrError{Addr: addr, Class: class}
	if rule != nil {
		err.Rule = rule.Name()
	}
	return err
}

// check returns Public if addr may be reached, and otherwise the class for which it may
// not, with the deny rule if there is one.
func (d *Decision) check(ap netip.AddrPort) (Class, *CompiledRule) {
	if !d.Allowed() || d.policy == nil { // without a policy nothing was decided
		return Invalid, nil
	}
	addr := ap.Addr()
	if !addr.IsValid() || addr.Zone() != "" {
		return Invalid, nil
	}
	addr = addr.Unmap()
	if ap.Port() != d.Dest.Port || d.Dest.Host.IsAddr() && d.Dest.Host.Addr() != addr {
		return NotDestination, nil
	}
	if rule := d.policy.deniedAddr(d, addr); rule != nil {
		return DenyRule, rule
	}
	return d.checkClass(addr), nil
}

// checkClass is the part of check that does not depend on deny rules.
func (d *Decision) checkClass(addr netip.Addr) Class {
	if d.policy.classifier.IsListener(netip.AddrPortFrom(addr, d.Dest.Port)) {
		return OwnListener
	}
	class, prefix := d.policy.classifier.Classify(addr)
	if d.Verdict == Observe {
		return d.observed(class)
	}
	return d.Rule.admits(addr, class, prefix)
}

// admits returns Public if the rule lets a caller reach addr, whose class and prefix
// Classify returned, and otherwise the class for which it does not. A range of the rule
// opens a special class only if it lies wholly inside the prefix; a rule without ranges
// opens none.
func (r *CompiledRule) admits(addr netip.Addr, class Class, prefix netip.Prefix) Class {
	if r.ranges == nil {
		return class
	}
	ranged, ok := r.ranges.LookupPrefixLPM(netip.PrefixFrom(addr, addr.BitLen()))
	switch {
	case !ok && class != Public:
		return class
	case !ok:
		return OutsideRule
	case class == Public, class == Invalid:
		return class
	case ranged.IsSingleIP():
		return Public
	case !class.singleOnly() && ranged.Bits() >= prefix.Bits():
		return Public
	}
	return class
}

// deniedAddr returns the deny rule whose cidr contains a resolved address, or nil.
func (p *Policy) deniedAddr(d *Decision, addr netip.Addr) *CompiledRule {
	var c chain
	p.collect(d.ID, &c)
	dest := Destination{Host: HostOf(addr), Port: d.Dest.Port}
	if rule := c.deniedAddr(addr, dest.Port); rule != nil {
		return rule
	}
	return p.deniedEmbedded(&c, dest)
}

// checkLiteral turns the decision for an allowed address literal into a denial if the
// address may not be reached because of its class. No deny rule covers the address.
func (d *Decision) checkLiteral() {
	class := d.checkClass(d.Dest.Host.Addr())
	if class == Public {
		return
	}
	d.Class = class
	if d.Verdict == Observe {
		d.Reason = d.WouldReason
	} else {
		d.Reason = ResolvedAddressDenied
	}
	d.Verdict, d.WouldReason = Deny, NoReason
}
