package allowlist

import (
	"errors"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// table finds the rules of one entry by host. Every look-up is a hash access
// by a canonical value; only the suffix and prefix lengths that occur are
// tried, so the cost does not grow with the number of rules nor with the
// number of labels that a caller sends.
type table struct {
	exact, one, many index[string, hostRules]
	manyDepths       depths     // label counts of the suffixes in many
	addrs            *addrTable // nil if no rule has a cidr
}

// denials says which kinds of deny rules there are, so that a decision need not
// look for the others.
type denials uint8

const (
	deniesExact denials = 1 << iota // a name
	deniesBelow                     // *.x or **.x
	deniesAddr                      // a range
)

func (r *CompiledRule) denial() denials {
	switch {
	case r.CIDR.IsValid():
		return deniesAddr
	case r.Host.kind == patternExact:
		return deniesExact
	}
	return deniesBelow
}

// addrTable finds rules by address.
type addrTable struct {
	cidrs        index[netip.Prefix, hostRules]
	bits4, bits6 depths // prefix lengths that occur in cidrs
}

// hostRules are the rules of one host pattern: one look-up finds what allows
// and what denies.
type hostRules struct {
	deny  *portTable // nil if nothing denies
	allow portTable
}

// list is one of an entry's two lists of rules.
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

// portTable holds one list's rules of one host pattern, by port. The zero
// value has none.
type portTable struct {
	// simple, if not nil, is the only rule, has one range of ports and asks
	// for nothing else: nearly all of a policy, so it is found without spans.
	simple *CompiledRule
	ports  PortRange // of simple
	// reachable: some rule is for connecting, not only for resolving.
	reachable bool

	// everyPort: the rules cover all ports between them.
	everyPort bool

	rules []*CompiledRule // in file order
	// resolves are those rules that make a difference to who may resolve the
	// name, for which type and into which addresses; in file order.
	resolves []*CompiledRule
	spans    []span // sorted, disjoint; a port outside them has no rule
}

// span is a range of ports and the rules that hold for it, in file order.
type span struct {
	PortRange
	rules []*CompiledRule
}

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

// finish computes all but rules.
func (p *portTable) finish() {
	p.reachable = slices.ContainsFunc(p.rules, (*CompiledRule).connects)
	p.cut()
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

// coversEveryPort looks for a gap between the spans.
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

// resolvesNoMoreThan reports whether another rule of the same host lets every
// question and every address through that r lets through, for ever.
func (r *CompiledRule) resolvesNoMoreThan(other *CompiledRule) bool {
	return other.Expires.IsZero() && r.types&^other.types == 0 && r.ranges == nil && other.ranges == nil
}

// cut cuts the ports at every boundary of a range and lists for each piece the
// rules that can win there.
func (p *portTable) cut() {
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

// appendCompeting adds a rule that can still win: behind an unconditional one
// only a rule for upgrades can.
func appendCompeting(rules []*CompiledRule, r *CompiledRule) []*CompiledRule {
	if n := len(rules); n > 0 {
		last := rules[n-1]
		if last == r || last.unconditional() && (last.Upgrade || !r.Upgrade) {
			return rules
		}
	}
	return append(rules, r)
}

func (r *CompiledRule) unconditional() bool {
	return r.Expires.IsZero() && !r.plainOnly() && !r.NoTunnel
}

// connects is false for a name to resolve only.
func (r *CompiledRule) connects() bool { return !r.NoTunnel }

func (r *CompiledRule) plainOnly() bool { return r.methods != nil || len(r.Paths) > 0 }

// depths is a set of small numbers: prefix lengths, label or segment counts,
// 0 to 128.
type depths [3]uint64

func (d *depths) set(n int) { d[n>>6] |= 1 << (n & 63) }

func (d *depths) has(n int) bool { return n>>6 < len(d) && d[n>>6]&(1<<(n&63)) != 0 }

// below returns the largest member smaller than n, -1 if there is none.
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

// segments counts those of an ID's path.
func segments(id spiffeid.ID) int { return strings.Count(id.Path(), "/") }

// parent cuts the last segment off an ID that has one.
func parent(id string) string { return id[:strings.LastIndexByte(id, '/')] }
