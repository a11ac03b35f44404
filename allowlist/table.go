package allowlist

import (
	"errors"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// table holds the rules of one entry by host. Every look-up is a hash access by a
// canonical value, and only the suffix and prefix lengths that occur are tried, so the
// cost grows neither with the number of rules nor with the number of labels that a caller
// sends.
type table struct {
	exact, one, many index[string, hostRules] // by name, and by the x of *.x and **.x
	manyDepths       depths                   // label counts of the names in many
	addrs            *addrTable               // nil if no rule has a cidr
}

// denials is the set of the kinds of deny rules that an entry has, so that a decision
// need not search for rules of other kinds.
type denials uint8

const (
	deniesExact denials = 1 << iota // rules for an exact name
	deniesBelow                     // rules for *.x or **.x
	deniesAddr                      // rules for a cidr
)

// denial returns the kind of a deny rule.
func (r *CompiledRule) denial() denials {
	switch {
	case r.CIDR.IsValid():
		return deniesAddr
	case r.Host.kind == patternExact:
		return deniesExact
	}
	return deniesBelow
}

// addrTable holds the rules with a cidr.
type addrTable struct {
	cidrs        index[netip.Prefix, hostRules]
	bits4, bits6 depths // lengths of the IPv4 and IPv6 prefixes in cidrs
}

// hostRules holds the allow and deny rules of one host pattern, so that one look-up finds
// both.
type hostRules struct {
	deny  *portTable // nil if there is no deny rule
	allow portTable
}

// list says which of an entry's two lists a rule is in.
type list bool

const (
	allowList list = false
	denyList  list = true
)

func (h *hostRules) add(in list, r *CompiledRule) {
	if in == allowList {
		h.allow.rules = append(h.allow.rules, r)
		return
	}
	if h.deny == nil {
		h.deny = new(portTable)
	}
	h.deny.rules = append(h.deny.rules, r)
}

func (h *hostRules) finish() {
	h.allow.finish()
	if h.deny != nil {
		h.deny.finish()
	}
}

func (a *addrTable) add(h hasher, in list, r *CompiledRule) {
	if r.CIDR.Addr().Is4() {
		a.bits4.set(r.CIDR.Bits())
	} else {
		a.bits6.set(r.CIDR.Bits())
	}
	a.cidrs.put(h.prefix(r.CIDR), r.CIDR).add(in, r)
}

func (t *table) add(h hasher, in list, r *CompiledRule) error {
	if r.CIDR.IsValid() == !r.Host.IsZero() {
		return errors.New("a rule needs either a host or a cidr")
	}
	if r.CIDR.IsValid() {
		if t.addrs == nil {
			t.addrs = new(addrTable)
		}
		t.addrs.add(h, in, r)
		return nil
	}
	var at *index[string, hostRules]
	switch r.Host.kind {
	case patternExact:
		at = &t.exact
	case patternOne:
		at = &t.one
	case patternMany:
		at = &t.many
		t.manyDepths.set(labels(r.Host.name))
	case patternNone, patternAll:
		return errors.New("a rule has no host pattern")
	}
	at.put(h.text(r.Host.name), r.Host.name).add(in, r)
	return nil
}

func (t *table) finish() {
	for _, x := range []*index[string, hostRules]{&t.exact, &t.one, &t.many} {
		for h := range x.values {
			h.finish()
		}
	}
	if t.addrs == nil {
		return
	}
	for h := range t.addrs.cidrs.values {
		h.finish()
	}
}

// portTable holds the rules of one host pattern in one list, by port. The zero value has
// no rules.
type portTable struct {
	// simple, if not nil, is the only rule, and it has one range of ports and no other
	// condition. Nearly all rules of a policy are so, so it is found without spans.
	simple *CompiledRule
	ports  PortRange // the range of ports of simple
	// reachable says that a rule allows connections, and does not only make the name
	// resolvable.
	reachable bool

	// everyPort says that the rules together cover all ports.
	everyPort bool

	rules []*CompiledRule // in file order
	// resolves holds the rules that decide whether the name may be resolved, for which
	// type and to which addresses, without those that make no difference; in file order.
	resolves []*CompiledRule
	spans    []span // sorted and disjoint; a port outside all of them has no rule
}

// span is a range of ports and the rules that apply to it, in file order.
type span struct {
	PortRange
	rules []*CompiledRule
}

// at returns the rules that apply to a port.
func (p *portTable) at(port uint16) []*CompiledRule {
	i, found := slices.BinarySearchFunc(p.spans, port, func(s span, port uint16) int {
		switch {
		case s.Last < port:
			return -1
		case s.First > port:
			return 1
		}
		return 0
	})
	if !found {
		return nil
	}
	return p.spans[i].rules
}

// finish computes all fields from rules.
func (p *portTable) finish() {
	p.reachable = slices.ContainsFunc(p.rules, (*CompiledRule).connects)
	p.split()
	p.everyPort = p.coversEveryPort()
	if len(p.rules) == 1 {
		p.resolves = p.rules
		return
	}
	for _, r := range p.rules {
		if !slices.ContainsFunc(p.resolves, r.resolvesNoMoreThan) {
			p.resolves = append(p.resolves, r)
		}
	}
}

// coversEveryPort reports whether there is no gap between the spans.
func (p *portTable) coversEveryPort() bool {
	next := 1
	for _, s := range p.spans {
		if int(s.First) != next {
			return false
		}
		next = int(s.Last) + 1
	}
	return next == 1<<16
}

// resolvesNoMoreThan reports whether another rule of the same host allows every query
// type and every address that r allows, and never expires.
func (r *CompiledRule) resolvesNoMoreThan(other *CompiledRule) bool {
	return other.Expires.IsZero() && r.types&^other.types == 0 && r.ranges == nil && other.ranges == nil
}

// split computes spans: it splits the ports at every boundary of a range and lists for
// each piece the rules that can win there. It also sets simple.
func (p *portTable) split() {
	if len(p.rules) == 1 && len(p.rules[0].Ports) == 1 {
		r := p.rules[0]
		p.spans = []span{{PortRange: r.Ports[0], rules: p.rules}}
		if r.unconditional() {
			p.simple, p.ports = r, r.Ports[0]
		}
		return
	}
	var cuts []int
	for _, r := range p.rules {
		for _, ports := range r.Ports {
			cuts = append(cuts, int(ports.First), int(ports.Last)+1)
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	pieces := make([][]*CompiledRule, len(cuts))
	for _, r := range p.rules {
		for _, ports := range r.Ports {
			from, _ := slices.BinarySearch(cuts, int(ports.First))
			for i := from; cuts[i] <= int(ports.Last); i++ {
				pieces[i] = appendCompeting(pieces[i], r)
			}
		}
	}
	for i, rules := range pieces {
		if len(rules) > 0 {
			ports := PortRange{uint16(cuts[i]), uint16(cuts[i+1] - 1)} //nolint:gosec // inside a rule's range
			p.spans = append(p.spans, span{ports, rules})
		}
	}
}

// appendCompeting appends a rule unless it can never win because the last rule always
// matches first. After an unconditional rule only a rule with an upgrade can win.
func appendCompeting(rules []*CompiledRule, r *CompiledRule) []*CompiledRule {
	if n := len(rules); n > 0 {
		last := rules[n-1]
		if last == r || last.unconditional() && (last.Upgrade || !r.Upgrade) {
			return rules
		}
	}
	return append(rules, r)
}

// unconditional reports whether the rule admits every request to its host and ports that
// asks for no upgrade, at any time.
func (r *CompiledRule) unconditional() bool {
	return r.Expires.IsZero() && !r.plainOnly() && !r.NoTunnel
}

// connects reports whether the rule allows connections, and does not only make its name
// resolvable.
func (r *CompiledRule) connects() bool { return !r.NoTunnel }

// plainOnly reports whether the rule admits plain requests only.
func (r *CompiledRule) plainOnly() bool { return r.methods != nil || len(r.Paths) > 0 }

// depths is a set of numbers from 0 to 128: prefix lengths, or numbers of labels or
// segments.
type depths [3]uint64

func (d *depths) set(n int) { d[n>>6] |= 1 << (n & 63) }

func (d *depths) has(n int) bool { return n>>6 < len(d) && d[n>>6]&(1<<(n&63)) != 0 }

// below returns the largest member that is smaller than n, or -1 if there is none.
func (d *depths) below(n int) int {
	for word := min(n>>6, len(d)-1); word >= 0; word-- {
		w := d[word]
		if word == n>>6 {
			w &= 1<<(n&63) - 1
		}
		if w != 0 {
			return word<<6 + bits.Len64(w) - 1
		}
	}
	return -1
}

// union adds the members of e.
func (d *depths) union(e *depths) {
	for i := range d {
		d[i] |= e[i]
	}
}

func labels(name string) int { return strings.Count(name, ".") + 1 }

// segments returns the number of segments in the path of an ID.
func segments(id spiffeid.ID) int { return strings.Count(id.Path(), "/") }

// parent returns an ID without its last segment. The ID must have one.
func parent(id string) string { return id[:strings.LastIndexByte(id, '/')] }
