package allowlist

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Remedy is a change of the policy that would allow a denied request.
type Remedy struct {
	// Rule is the rule to add for the caller's own SPIFFE ID. It is nil if no rule would
	// help, or none that opens only what was requested.
	Rule *Rule
	// Note says why there is no rule, or what else the rule would allow; "" if there is
	// nothing to say.
	Note string
}

// Remedy returns a rule that would allow a request that was denied for the reason why, or
// that observe mode let through although enforcement would have denied it for this
// reason.
//
// The rule opens what was requested: the host, the port, and for a plain request the
// method and the path. It has the restrictions of the rule that missed: addresses, tls,
// ech and the date. If only an upgrade was missing, the new rule has the upgrade and the
// methods and paths of that rule, or those of the request if that rule has none. A rule
// for localhost contains the addresses of localhost.
func (d *Decision) Remedy(why Reason) Remedy {
	switch why { //nolint:exhaustive // a new rule helps against few of the reasons
	case IdentityUnknown, NotOnAllowlist, PortNotAllowed, RuleExpired, UpgradeNotAllowed, MethodNotAllowed, PathNotAllowed, IPNotOnAllowlist:
	default:
		return noRemedy(why, d.Rule)
	}
	if d.Verdict == Allow { // something else was refused, such as an alias
		return Remedy{}
	}
	missed := d.missed
	if why == PortNotAllowed {
		missed = d.near.nearest(&d.Request)
	}
	r := &Rule{Ports: []PortRange{{d.Dest.Port, d.Dest.Port}}}
	if addr := d.Dest.Host.Addr(); addr.IsValid() {
		if d.policy.neverOpens(netip.AddrPortFrom(addr, d.Dest.Port)) {
			return Remedy{Note: "No rule can open this address."}
		}
		r.CIDR = netip.PrefixFrom(addr, addr.BitLen())
	} else {
		r.Host = HostPattern{kind: patternExact, name: d.Dest.Host.name}
	}
	if why == UpgradeNotAllowed && missed != nil {
		r.keep(&d.Request, missed)
	}
	if !r.limitTo(&d.Request) {
		return Remedy{Note: "No rule is offered: the policy cannot name this method or path by itself, and a rule without it would open every other one."}
	}
	r.narrow(missed, d.Time)
	if d.Dest.Host.IsLocalhost() && len(r.Addresses) == 0 { // localhost has these two, and only a rule that names them opens them
		r.Addresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}
	}
	r.setTLS(&d.Request, missed)
	return d.policy.remedy(r, why, d.Request)
}

// Remedy returns a rule as the Remedy of a Decision does. The rule makes the name
// resolvable and opens no connection.
func (d *NameDecision) Remedy(why Reason) Remedy {
	switch why { //nolint:exhaustive // a new rule helps against few of the reasons
	case IdentityUnknown, NotOnAllowlist, RuleExpired, TypeNotAllowed, SpecialName:
	default:
		return noRemedy(why, d.Rule)
	}
	r := &Rule{Host: HostPattern{kind: patternExact, name: d.Host.name}, NoTunnel: true}
	if !ruleTypes.has(d.Type) {
		r.Types = []QueryType{d.Type}
	}
	r.narrow(d.missed, d.Time)
	return d.policy.remedy(r, why, Request{ID: d.ID, Proof: d.Proof, Dest: Destination{Host: d.Host}})
}

// noRemedy returns a note that says why there is no rule, for reasons against which a
// person may try to write one, and an empty Remedy for all others.
func noRemedy(why Reason, rule *CompiledRule) Remedy {
	switch why { //nolint:exhaustive // the others have nothing to do with a rule
	case DeniedByRule:
		if rule == nil {
			return Remedy{Note: "No rule can allow it: a deny rule is in the way."}
		}
		return Remedy{Note: "No rule can allow it: the deny rule " + rule.Name() + " at " + rule.Place() + " is in the way."}
	case QuarantinedIdentity:
		return Remedy{Note: "No rule can allow it: the identity is in quarantine."}
	case IdentitySourceNotAccepted:
		return Remedy{Note: "No rule can allow it: this way to prove the identity is not accepted, see accept."}
	}
	return Remedy{}
}

// remedy returns the remedy with a rule. If the policy does not know the caller yet, it
// first checks that neither the caller's proof nor a deny rule would refuse the request
// even with an entry.
func (p *Policy) remedy(r *Rule, why Reason, req Request) Remedy {
	if why != IdentityUnknown || p == nil {
		return Remedy{Rule: r}
	}
	var c chain
	p.collect(req.ID, &c)
	switch {
	case !c.accept().has(req.Proof):
		return noRemedy(IdentitySourceNotAccepted, nil)
	case c.n == 0:
		return Remedy{Rule: r}
	}
	var denied *CompiledRule
	c.each(req.Dest.Host, func(h *hostRules) bool {
		if req.Dest.Port != 0 {
			denied = h.denies(req.Dest.Port)
		} else if h.deny != nil && h.deny.everyPort { // the request is for a name only
			denied = h.deny.rules[0]
		}
		return denied == nil
	})
	if denied == nil && req.Dest.Port != 0 {
		denied = p.deniedEmbedded(&c, req.Dest)
	}
	if denied != nil {
		return noRemedy(DeniedByRule, denied)
	}
	return Remedy{Rule: r, Note: "With an entry of its own, the identity may do all that everyone may, too."}
}

// neverOpens reports whether no rule opens an address, not even a rule for only this
// address.
func (p *Policy) neverOpens(ap netip.AddrPort) bool {
	if p == nil {
		return false
	}
	class, _ := p.classifier.Classify(ap.Addr())
	return class == Invalid || p.classifier.IsListener(ap)
}

// nearest returns the rule that would admit the request, or else misses most nearly, if
// the ports of the rules did not matter. It returns nil if no rule allows connections.
func (p *portTable) nearest(req *Request) *CompiledRule {
	var found *CompiledRule
	var closest Reason
	if p == nil {
		return nil
	}
	for _, r := range p.rules {
		miss := r.miss(req)
		switch {
		case !r.connects():
		case miss == NoReason:
			return r
		case found == nil || distance(miss) > distance(closest):
			found, closest = r, miss
		}
	}
	return found
}

// keep copies the methods and the paths of the rule that missed if this rule admits the
// request without its upgrade.
func (r *Rule) keep(req *Request, missed *CompiledRule) {
	plain := *req
	plain.Upgrade = NoUpgrade
	if missed.miss(&plain) == NoReason {
		r.Methods, r.Paths = missed.Methods, missed.Paths
	}
}

// limitTo restricts the rule to the method and the path of a plain request, if the rule
// has no methods or paths yet. It reports whether a policy file can express the rule.
func (r *Rule) limitTo(req *Request) bool {
	if req.Method == "" {
		return true
	}
	r.Upgrade = req.Upgrade != NoUpgrade
	if len(r.Methods) == 0 {
		r.Methods = []string{req.Method}
	}
	if len(r.Paths) == 0 {
		r.Paths = []PathPattern{{kind: patternExact, path: req.Path}}
	}
	for _, m := range r.Methods {
		if !IsMethod(m) {
			return false
		}
	}
	for _, p := range r.Paths {
		if written, err := ParsePathPattern(p.String()); err != nil || written != p {
			return false
		}
	}
	return true
}

// narrow copies the addresses and the end of the rule that missed. If that rule has
// expired, the new one ends with the current day.
func (r *Rule) narrow(missed *CompiledRule, now time.Time) {
	if missed == nil {
		return
	}
	if !r.CIDR.IsValid() {
		r.Addresses = missed.Addresses
	}
	r.Expires = missed.Expires
	if missed.expired(now) {
		r.Expires = now.UTC().Truncate(day).Add(day)
	}
}

const day = 24 * time.Hour

// setTLS sets the TLS and ECH modes of the rule. It copies the TLS mode of the rule that
// missed if that rule has the port of the request, and for another port only if the mode
// is TLSRequire. A plain request is not encrypted and needs TLSAuto on port 443.
func (r *Rule) setTLS(req *Request, missed *CompiledRule) {
	if req.Method != "" {
		if req.Dest.Port == 443 {
			r.TLS = TLSAuto
		}
		return
	}
	if missed == nil {
		return
	}
	r.ECH = missed.ECH
	samePort := slices.ContainsFunc(missed.Ports, func(p PortRange) bool { return p.has(req.Dest.Port) })
	if samePort || missed.TLS == TLSRequire {
		r.TLS = missed.TLS
	}
}

// IsMethod reports whether s is spelled like a method in a rule: at most 32 upper-case
// letters, digits, hyphens and underscores, with a letter first.
func IsMethod(s string) bool {
	const maxMethod = 32
	if len(s) > maxMethod || s == "" || s[0] < 'A' || s[0] > 'Z' {
		return false
	}
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}
