package allowlist

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Decision is the answer to one request. The zero value denies. It is a value, as
// its Outcome is one.
type Decision struct {
	Request
	Outcome

	// Class of the destination, if it is an address that was refused by class.
	Class Class

	near *portTable // where the nearest miss was found
}

// Allowed reports whether the request may go on: to the address check.
func (d Decision) Allowed() bool { return d.Verdict == Allow || d.Verdict == Observe }

// Narrow reports whether the rule that allowed has looked at the method of a
// plain request, and whether at its path: an origin must then not take another
// one for it.
func (d *Decision) Narrow() (methods, paths bool) {
	if d.Verdict != Allow || d.Rule == nil {
		return false, false
	}
	return d.Rule.methods != nil, len(d.Rule.Paths) > 0
}

// AllowedPorts lists the ports that the nearest rules allow, for
// port-not-allowed; "" otherwise.
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

// TLS returns how the first bytes of the tunnel are checked: require on port
// 443 and auto elsewhere, unless the rule says otherwise. Never TLSDefault.
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

// AddrError says why an address of an allowed destination must not be dialled.
type AddrError struct {
	Addr  netip.AddrPort
	Class Class
	// Rule is the deny rule's name, for DenyRule.
	Rule string
}

// Error names the class and the address; it is for records, not for callers.
func (e *AddrError) Error() string {
	class := e.Class.String()
	if e.Rule != "" {
		class += " " + e.Rule
	}
	return fmt.Sprintf("address %s is not allowed (%s)", e.Addr, class)
}

// CheckAddr reports whether the decision lets the caller reach addr: nil, or
// an *AddrError. It is asked for every resolved address and again for the
// address really dialled, and after a reload for the address of a live tunnel.
// A decision that does not allow refuses every address.
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

// check returns Public if addr may be reached, else what is wrong with it.
func (d *Decision) check(ap netip.AddrPort) (Class, *CompiledRule) {
	if !d.Allowed() || d.policy == nil { // a verdict that no policy gave
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

// checkClass is the part of check that no deny rule has a say in.
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

// admits returns Public if the rule's ranges, or their absence, let addr
// through. A range opens a special class only if it lies wholly inside it.
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

// deniedAddr returns the deny rule whose cidr holds a resolved address.
func (p *Policy) deniedAddr(d *Decision, addr netip.Addr) *CompiledRule {
	var c chain
	p.collect(d.ID, &c)
	dest := Destination{Host: HostOf(addr), Port: d.Dest.Port}
	if rule := c.deniedAddr(addr, dest.Port); rule != nil {
		return rule
	}
	return p.deniedEmbedded(&c, dest)
}

// checkLiteral turns an allowed address literal, which no deny rule covers,
// into a denial by its class.
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
