package allowlist

import (
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Decide decides one request. It allocates nothing, and no part of its cost grows with
// the number of rules.
//
// It checks in the order of docs/policy.md: values that no parser returns, quarantine, the
// identity, its proof, deny rules, allow rules, and for an address literal its class. Of
// the allow rules that match, an exact host wins over *.x, and *.x over **.x (the longest
// first; for addresses the longest prefix), then the more specific identity pattern, then
// the earlier rule in file order.
//
// The decision's Upgrade is never MayUpgrade: it is MustUpgrade if a rule allows the
// upgrade, and NoUpgrade if the request must be sent without it.
func (p *Policy) Decide(req Request) Decision {
	if req.Upgrade == MayUpgrade {
		req.Upgrade = MustUpgrade
		if d := p.Decide(req); d.Verdict == Allow {
			return d
		}
		req.Upgrade = NoUpgrade
	}
	d := Decision{Request: req, Outcome: Outcome{policy: p}}
	if p == nil || p.inline == nil { // or not made by Compile
		d.Reason = PolicyUnavailable
		return d
	}
	if d.Reason = malformed(&req); d.Reason != NoReason {
		return d
	}
	var c chain
	d.Reason, d.Quarantine = p.known(&c, req.ID, req.Proof)
	d.Owner = c.owner()
	if d.Reason != NoReason {
		return d
	}
	d.Mode, d.observePrivate = c.mode(req.Time)
	if d.Rule = p.deniedEmbedded(&c, req.Dest); d.Rule != nil {
		d.Reason = DeniedByRule
		return d
	}
	c.decide(&d)
	if d.Verdict != Deny && req.Dest.Host.IsAddr() {
		d.checkLiteral()
	}
	d.checkCleartext()
	return d
}

// checkCleartext denies a plain request to a destination that takes TLS only.
func (d *Decision) checkCleartext() {
	if !d.Allowed() || d.Method == "" {
		return
	}
	if mode, _ := d.TLS(); mode == TLSRequire {
		d.Verdict, d.Reason, d.WouldReason = Deny, NotTLS, NoReason
	}
}

// malformed returns the reason to refuse a request with values that no parser returns, so
// that no mode lets a zero value through: no host, no port, no identity, or the ID of a
// trust domain, which names no workload.
func malformed(req *Request) Reason {
	switch {
	case req.Dest.Host.IsZero():
		return MalformedTarget
	case req.Dest.Port == 0:
		return MalformedPort
	}
	return malformedID(req.ID)
}

// malformedID returns the reason to refuse an ID that names no workload, or NoReason.
func malformedID(id spiffeid.ID) Reason {
	switch {
	case id.IsZero():
		return IdentityMissing
	case id.Path() == "":
		return IdentityInvalid
	}
	return NoReason
}

// known fills the chain with the entries of an identity and returns NoReason if the
// decision depends on what the identity asks for. Otherwise it returns the reason to
// refuse every request; the chain is then empty unless only the proof is not accepted.
func (p *Policy) known(c *chain, id spiffeid.ID, proof Proof) (Reason, *Quarantined) {
	if q := p.quarantined(id); q != nil {
		return QuarantinedIdentity, q
	}
	if !p.collect(id, c) {
		c.n = 0
		return IdentityUnknown, nil
	}
	if !c.accept().has(proof) {
		return IdentitySourceNotAccepted, nil
	}
	return NoReason, nil
}

// quarantined returns the line of a quarantine list that matches an identity, from the
// policy's own lines first, or nil.
func (p *Policy) quarantined(id spiffeid.ID) *Quarantined {
	if q := p.inline.find(id); q != nil {
		return q
	}
	return p.list.find(id)
}

// chain holds the entries that match one identity, the most specific first.
type chain struct {
	entries [maxSegments + 4]*entry // exact, /*, /** of depth 0 to maxSegments, everyone
	n       int
	hash    hasher  // the hasher of the policy that the entries belong to
	denies  denials // the kinds of deny rules that the entries have
	allowed bool    // an allow rule has matched, and only deny rules still matter
}

func (c *chain) push(e *entry) {
	if e != nil {
		c.entries[c.n] = e
		c.n++
		c.denies |= e.denies
	}
}

func (c *chain) all() []*entry { return c.entries[:c.n] }

// collect fills the chain and reports whether the identity is known: an entry for
// identities matches it, or an everyone entry has unlisted set.
func (p *Policy) collect(id spiffeid.ID, c *chain) bool {
	c.hash = p.hash
	s := id.String()
	c.push(p.exact.get(p.hash.text(s), s))
	depth := segments(id)
	for direct := true; depth > 0; direct = false {
		depth--
		s = parent(s)
		many := p.manyDepths.has(depth)
		if !direct && !many {
			continue
		}
		hash := p.hash.text(s)
		if direct {
			c.push(p.one.get(hash, s))
		}
		if many {
			c.push(p.many.get(hash, s))
		}
	}
	known := c.n > 0
	if p.everyone.used == 0 {
		return known
	}
	if e := p.everyone.get(p.hash.text(s), s); e != nil {
		c.push(e)
		known = known || e.unlisted
	}
	return known
}

// owner returns the owner in the most specific entry that names one, or "".
func (c *chain) owner() string {
	for _, e := range c.all() {
		if e.owner != "" {
			return e.owner
		}
	}
	return ""
}

// accept returns the proofs that the most specific entry accepts which names any. If none
// does, it returns the default, x509-svid and listener.
func (c *chain) accept() Proofs {
	for _, e := range c.all() {
		if e.accept != 0 {
			return e.accept
		}
	}
	return defaultProofs
}

// defaultProofs are the proofs that are accepted if no entry sets them.
const defaultProofs = Proofs(1<<ProofX509SVID | 1<<ProofListener)

// mode returns the mode of the most specific entry that decides it (see
// Entry.decidedMode), and ModeEnforce if any entry forces it.
func (c *chain) mode(now time.Time) (m Mode, observePrivate bool) {
	for _, e := range c.all() {
		if e.force {
			return ModeEnforce, false
		}
		if m == ModeUnset && e.mode != ModeUnset {
			m, observePrivate = e.mode, e.observePrivate
			if m == ModeObserve && !now.Before(e.observeUntil) {
				m = ModeEnforce
			}
		}
	}
	if m != ModeObserve {
		return ModeEnforce, false
	}
	return m, observePrivate
}

// deniedEmbedded returns the deny rule that covers the IPv4 address which a NAT64 address
// embeds, because both reach the same host, or nil.
func (p *Policy) deniedEmbedded(c *chain, dest Destination) *CompiledRule {
	inner, ok := p.classifier.embedded(dest.Host.addr)
	if !ok {
		return nil
	}
	return c.deniedAddr(inner, dest.Port)
}

// deniedAddr returns the deny rule whose cidr contains an address, or nil.
func (c *chain) deniedAddr(addr netip.Addr, port uint16) *CompiledRule {
	if c.denies&deniesAddr == 0 {
		return nil
	}
	var found *CompiledRule
	c.each(HostOf(addr), func(h *hostRules) bool {
		found = h.denies(port)
		return found == nil
	})
	return found
}

// denies returns the deny rule that covers a port, or nil.
func (h *hostRules) denies(port uint16) *CompiledRule {
	if h.deny == nil {
		return nil
	}
	if h.deny.simple != nil && h.deny.ports.has(port) {
		return h.deny.simple
	}
	if rules := h.deny.at(port); len(rules) > 0 {
		return rules[0]
	}
	return nil
}

// decide sets the verdict, the rule and the reason of a decision: a deny rule wins, then
// the first allow rule that admits the request, and otherwise the reason is that of the
// nearest miss.
func (c *chain) decide(d *Decision) {
	nearest := NotOnAllowlist
	if d.Dest.Host.IsAddr() {
		nearest = IPNotOnAllowlist
	}
	c.each(d.Dest.Host, func(h *hostRules) bool {
		if rule := h.denies(d.Dest.Port); rule != nil {
			d.Verdict, d.Rule, nearest = Deny, rule, DeniedByRule
			return false
		}
		if c.allowed {
			return true
		}
		rule, miss := h.allow.match(&d.Request)
		switch {
		case rule != nil && miss == NoReason:
			d.Verdict, d.Rule, d.near = Allow, rule, nil
			c.allowed = true
			return c.denies != 0
		case distance(miss) > distance(nearest):
			nearest, d.Rule, d.near = miss, rule, &h.allow
		}
		return true
	})
	if d.Verdict == Allow {
		return
	}
	d.Reason, d.missed = nearest, d.Rule
	if d.Mode == ModeObserve && nearest.observable() {
		d.Verdict, d.Reason, d.WouldReason, d.Rule = Observe, NoReason, nearest, nil
	}
}

// match returns the rule that admits the request and NoReason, or the rule that missed
// most nearly, which may be nil, and the reason of the miss.
func (p *portTable) match(req *Request) (rule *CompiledRule, nearest Reason) {
	if p.simple != nil && p.ports.has(req.Dest.Port) && req.Upgrade == NoUpgrade {
		return p.simple, NoReason
	}
	for _, r := range p.at(req.Dest.Port) {
		miss := r.miss(req)
		if miss == NoReason {
			return r, NoReason
		}
		if distance(miss) > distance(nearest) {
			rule, nearest = r, miss
		}
	}
	if p.reachable && distance(nearest) < distance(PortNotAllowed) {
		return nil, PortNotAllowed
	}
	return rule, nearest
}

// miss returns the reason for which a rule that covers the host does not admit the
// request, and NoReason if it does. It does not check the port.
func (r *CompiledRule) miss(req *Request) Reason {
	switch {
	case r.NoTunnel:
		return NotOnAllowlist
	case r.expired(req.Time):
		return RuleExpired
	case req.Upgrade != NoUpgrade && !r.Upgrade: // the request would become a tunnel
		return UpgradeNotAllowed
	case !r.plainOnly():
		return NoReason
	case req.Method == "": // the request is a tunnel
		return MethodNotAllowed
	case r.methods != nil && !r.methods[req.Method]:
		return MethodNotAllowed
	case len(r.Paths) == 0:
		return NoReason
	case req.Path != Asterisk && CheckPath(req.Path) != nil:
		return MalformedTarget
	}
	for _, p := range r.Paths {
		if p.matches(req.Path) {
			return NoReason
		}
	}
	return PathNotAllowed
}

// distance orders the reasons of misses. A larger number is a nearer miss, which a later
// check found.
func distance(miss Reason) int {
	switch miss { //nolint:exhaustive // every other reason is no near miss
	case NotOnAllowlist, IPNotOnAllowlist:
		return 1
	case PortNotAllowed:
		return 2
	case RuleExpired:
		return 3
	case UpgradeNotAllowed:
		return 4
	case MethodNotAllowed:
		return 5
	case PathNotAllowed:
		return 6
	case MalformedTarget:
		return 7
	}
	return 0
}

// each visits the rules of the patterns that cover a host, in the order in
// which they win, until visit returns false.
func (c *chain) each(h Host, visit func(*hostRules) bool) {
	if h.IsAddr() {
		c.eachPrefix(h.Addr(), visit)
		return
	}
	hash := c.hash.text(h.name)
	for _, e := range c.all() {
		if r := e.exact.get(hash, h.name); r != nil && !visit(r) {
			return
		}
	}
	if c.allowed && c.denies&deniesBelow == 0 {
		return
	}
	if dot := strings.IndexByte(h.name, '.'); dot >= 0 {
		c.eachSuffix(h.name[dot+1:], visit)
	}
}

// eachSuffix visits the rules of the patterns that cover the names one label below
// suffix: those of *.suffix, then those of **.suffix and of its shorter suffixes.
func (c *chain) eachSuffix(suffix string, visit func(*hostRules) bool) {
	hash := c.hash.text(suffix)
	var depths depths
	for _, e := range c.all() {
		if r := e.one.get(hash, suffix); r != nil && !visit(r) {
			return
		}
		depths.union(&e.manyDepths)
	}
	for n := labels(suffix); n > 0; n-- {
		if depths.has(n) {
			hash := c.hash.text(suffix)
			for _, e := range c.all() {
				if r := e.many.get(hash, suffix); r != nil && !visit(r) {
					return
				}
			}
		}
		suffix = suffix[strings.IndexByte(suffix, '.')+1:]
	}
}

// eachPrefix visits the rules whose cidr contains an address, the longest prefix first.
func (c *chain) eachPrefix(addr netip.Addr, visit func(*hostRules) bool) {
	var lengths depths
	for _, e := range c.all() {
		switch {
		case e.addrs == nil:
		case addr.Is4():
			lengths.union(&e.addrs.bits4)
		default:
			lengths.union(&e.addrs.bits6)
		}
	}
	for bits := lengths.below(addr.BitLen() + 1); bits >= 0; bits = lengths.below(bits) {
		prefix := netip.PrefixFrom(addr, bits).Masked()
		hash := c.hash.prefix(prefix)
		for _, e := range c.all() {
			if e.addrs == nil {
				continue
			}
			if r := e.addrs.cidrs.get(hash, prefix); r != nil && !visit(r) {
				return
			}
		}
	}
}
