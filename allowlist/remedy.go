package allowlist

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Remedy is what the policy would need to allow what was denied.
type Remedy struct {
	// Rule is to be added for the caller's own SPIFFE ID; nil if no rule would
	// help, or none that opens only what was asked for.
	Rule *Rule
	// Note says why there is no rule, or what comes with it; "" if there is
	// nothing to say.
	Note string
}

// Remedy returns what would allow a request that was denied for a reason, or
// would have been if it had not only been observed.
//
// The rule opens what was asked for: the host, the port, and of a plain request
// the method and the path. What narrows the rule that missed narrows it, too:
// addresses, tls, ech and the date. Where only an upgrade was missing, it has the
// upgrade and the methods and paths of that rule, or those of the request where
// the rule has none. A rule for localhost names its addresses.
func (d *Decision) Remedy(why Reason) Remedy {
	switch why { //nolint:exhaustive // most refusals are not for a new rule to mend
	case IdentityUnknown, NotOnAllowlist, PortNotAllowed, RuleExpired, UpgradeNotAllowed, MethodNotAllowed, PathNotAllowed, IPNotOnAllowlist:
	default:
		return noRemedy(why, d.Rule)
	}
	if d.Verdict == Allow { // the refusal is about something else, such as an alias
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
	if d.Dest.Host.IsLocalhost() && len(r.Addresses) == 0 { // it is these two, and only a rule that names them opens them
		r.Addresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}
	}
	r.lookAt(&d.Request, missed)
	return d.policy.remedy(r, why, d.Request)
}

// Remedy is as that of a Decision. The rule is for a name to resolve, and opens
// no connection.
func (d *NameDecision) Remedy(why Reason) Remedy {
	switch why { //nolint:exhaustive // most refusals are not for a new rule to mend
	case IdentityUnknown, NotOnAllowlist, RuleExpired, TypeNotAllowed, SpecialName:
	default:
		return noRemedy(why, d.Rule)
	}
	r := &Rule{Host: HostPattern{kind: patternExact, name: d.Host.name}, NoTunnel: true}
	if !ruleTypes.has(d.Type) {
		r.Types = []QueryType{d.Type}
	}
	r.narrow(d.missed, d.Time)
	return d.policy.remedy(r, why, Request{ID: d.ID, Source: d.Source, Dest: Destination{Host: d.Host}})
}

// noRemedy says why no rule is offered, where a person may think of one.
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

// remedy offers a rule for a caller whom the policy may not know yet.
func (p *Policy) remedy(r *Rule, why Reason, req Request) Remedy {
	if why != IdentityUnknown || p == nil {
		return Remedy{Rule: r}
	}
	var c chain
	p.collect(req.ID, &c)
	switch {
	case !c.accept().has(req.Source):
		return noRemedy(IdentitySourceNotAccepted, nil)
	case c.n == 0:
		return Remedy{Rule: r}
	}
	var denied *CompiledRule
	c.each(req.Dest.Host, func(h *hostRules) bool {
		if req.Dest.Port != 0 {
			denied = h.denies(req.Dest.Port)
		} else if h.deny != nil && h.deny.everyPort { // a name to resolve
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

// neverOpens reports whether no range opens an address, not even the one that
// is nothing but it.
func (p *Policy) neverOpens(ap netip.AddrPort) bool {
	if p == nil {
		return false
	}
	class, _ := p.classifier.Classify(ap.Addr())
	return class == Invalid || p.classifier.IsListener(ap)
}

// nearest returns the rule that comes closest to a request for a port that no
// rule has.
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

// keep takes the methods and the paths of a rule that admits the request but
// for its upgrade.
func (r *Rule) keep(req *Request, missed *CompiledRule) {
	plain := *req
	plain.Upgrade = NoUpgrade
	if missed.miss(&plain) == NoReason {
		r.Methods, r.Paths = missed.Methods, missed.Paths
	}
}

// limitTo makes the rule one for the method and the path of a plain request,
// where it is for any. It reports whether that can be written.
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

// narrow takes from the rule that missed which addresses it opens and until
// when; in place of one that has expired the new one holds for today.
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

// lookAt takes from the rule that missed how it looks at the first bytes of a
// tunnel: on a port of its own as it does there, on another one if that is
// stricter. A plain request is in clear, which port 443 takes only if told so.
func (r *Rule) lookAt(req *Request, missed *CompiledRule) {
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
	own := slices.ContainsFunc(missed.Ports, func(p PortRange) bool { return p.has(req.Dest.Port) })
	if own || missed.TLS == TLSRequire {
		r.TLS = missed.TLS
	}
}

// IsMethod reports whether a method is spelled as rules name them.
func IsMethod(s string) bool {
	const maxMethod = 32
	if len(s) > maxMethod || s == "" || s[0] < 'A' || s[0] > 'Z' {
		return false
	}
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}
