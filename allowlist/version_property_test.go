package allowlist

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// versioned returns a random spec without a version, whose allow rules also have TLS
// modes and addresses, and whose quarantine has several lines.
func (g generator) versioned() *Spec {
	spec := g.spec()
	spec.Version, spec.Quarantine = "", nil
	for i := range spec.Entries {
		for j := range spec.Entries[i].Allow {
			r := &spec.Entries[i].Allow[j]
			r.TLS = pick(g, TLSDefault, TLSDefault, TLSRequire, TLSAuto, TLSOff)
			if !r.CIDR.IsValid() && g.IntN(3) == 0 {
				r.Addresses = g.ranges()
			}
		}
	}
	for range g.IntN(4) {
		spec.Quarantine = append(spec.Quarantine, g.quarantined())
	}
	return spec
}

func (g generator) ranges() []netip.Prefix {
	all := []netip.Prefix{}
	for range g.IntN(4) {
		all = append(all, netip.MustParsePrefix(pick(g, "0.0.0.0/0", "8.0.0.0/7", "8.8.0.0/16", "8.8.8.0/24", "8.8.8.8/32", "10.0.0.0/8", "10.0.0.0/7", "10.0.0.0/15", "10.0.1.1/32", "127.0.0.1/32", "::/0", "2606:4700::/32", "64:ff9b::/96")))
	}
	return all
}

func (g generator) quarantined() Quarantined {
	pattern := must(ParseIdentityPattern(pick(g, g.id()+pick(g, "", "/*", "/**"), "spiffe://td/**")))
	return Quarantined{Pattern: pattern, Reason: pick(g, "", "", "INC-1")}
}

// anew returns the list in another order, with one of its values twice.
func anew[T any](g generator, list []T) []T {
	list = slices.Clone(list)
	if len(list) > 0 {
		list = append(list, pick(g, list...))
	}
	g.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// respell returns a spec that means the same, in another spelling, and a quarantine list
// beside it.
func (g generator) respell(spec *Spec) (*Spec, []Quarantined) {
	other := &Spec{Entries: slices.Clone(spec.Entries)}
	for i := range other.Entries {
		e := &other.Entries[i]
		e.Allow, e.Deny = g.respellRules(e.Allow, PortRange{443, 443}), g.respellRules(e.Deny, PortRange{1, 65535})
		everyone := e.Pattern.kind == patternAll
		if e.Mode == ModeUnset && (e.decidedMode() == ModeEnforce || everyone) {
			e.Mode = pick(g, ModeUnset, ModeEnforce)
		}
		if everyone && e.Accept == 0 {
			e.Accept = pick(g, 0, ProofsOf(ProofX509SVID, ProofListener))
		}
	}
	g.Shuffle(len(other.Entries), func(i, j int) {
		other.Entries[i], other.Entries[j] = other.Entries[j], other.Entries[i]
	})
	inline := slices.Clone(spec.Quarantine)
	list := slices.Clone(inline)
	for _, q := range inline {
		if q.Pattern.kind == patternMany { // the reason of a line in the list is never given
			list = append(list, Quarantined{Pattern: must(ParseIdentityPattern(q.Pattern.prefix + "/z")), Reason: "INC-2"})
		}
		if q.Pattern.kind == patternMany && !slices.ContainsFunc(inline, func(o Quarantined) bool { return o.Pattern != q.Pattern && q.Pattern.Contains(o.Pattern) }) {
			inline = append(inline, Quarantined{Pattern: must(ParseIdentityPattern(q.Pattern.prefix + "/y/*")), Reason: q.Reason})
		}
	}
	if g.IntN(2) == 0 {
		other.Quarantine = inline
	} else {
		other.Quarantine, list = nil, inline
	}
	return other, list
}

func (g generator) respellRules(rules []Rule, defaultPorts PortRange) []Rule {
	if rules == nil {
		return nil
	}
	rules = slices.Clone(rules)
	for i := range rules {
		g.respellRule(&rules[i], defaultPorts)
	}
	if len(rules) > 0 { // a rule that does the same as an earlier one
		second := pick(g, rules...)
		second.Name += "-second"
		rules = append(rules, second)
	}
	if g.IntN(2) == 0 { // rules for different hosts change places
		slices.SortStableFunc(rules, func(a, b Rule) int {
			x, y := fmt.Sprint(a.Host, canonicalPrefix(a.CIDR)), fmt.Sprint(b.Host, canonicalPrefix(b.CIDR))
			return len(x) - len(y)
		})
	}
	return rules
}

func (g generator) respellRule(r *Rule, defaultPorts PortRange) {
	r.At, r.UseAt = "other.yaml:7", pick(g, "", "use.yaml:8")
	r.Methods, r.Types, r.Paths = anew(g, r.Methods), anew(g, r.Types), anew(g, r.Paths)
	for _, p := range r.Paths {
		if p.kind == patternMany {
			r.Paths = append(r.Paths, must(ParsePathPattern(p.path+pick(g, "x", "x/*", "*", "x/**", ""))))
		}
	}
	if len(r.Ports) == 0 {
		r.Ports = []PortRange{defaultPorts}
	}
	r.TLS = g.respellTLS(r)
	ports := anew(g, r.Ports)
	for i, p := range ports {
		cut := p.First + uint16(g.IntN(int(p.Last-p.First)+1))
		ports = append(ports, PortRange{cut, p.Last})
		if cut > p.First {
			ports[i].Last = cut - 1
		}
	}
	r.Ports = ports
	r.Expires = r.Expires.In(time.FixedZone("", 3600))
	if r.CIDR.IsValid() {
		r.CIDR = pick(g, spellings(r.CIDR)[:min(2, len(spellings(r.CIDR)))]...)
	}
	if r.Addresses != nil {
		r.Addresses = g.respellRanges(r.Addresses)
	}
}

// respellTLS writes out the default TLS mode of a rule, or leaves out a mode that is it.
func (g generator) respellTLS(r *Rule) TLSMode {
	only := len(r.Ports) == 1 && r.Ports[0] == PortRange{443, 443}
	none := !slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.First <= 443 && 443 <= p.Last })
	switch {
	case only && (r.TLS == TLSDefault || r.TLS == TLSRequire):
		return pick(g, TLSDefault, TLSRequire)
	case none && (r.TLS == TLSDefault || r.TLS == TLSAuto):
		return pick(g, TLSDefault, TLSAuto)
	}
	return r.TLS
}

func (g generator) respellRanges(ranges []netip.Prefix) []netip.Prefix {
	all := anew(g, ranges)
	for i, p := range all {
		if p.Addr().Is6() {
			continue
		}
		all[i] = pick(g, spellings(p)[:2]...)
		switch p.String() {
		case "8.8.0.0/16", "8.8.8.0/24", "10.0.0.0/15": // inside one class
			low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
			all = append(all, low, netip.PrefixFrom(p.Addr(), p.Bits()+3))
			if g.IntN(2) == 0 {
				all[i] = otherHalf(low)
			}
		}
	}
	return all
}

// change returns a spec that differs from the given one in one place, which most often
// changes its meaning.
func (g generator) change(spec *Spec) *Spec {
	other := &Spec{Entries: slices.Clone(spec.Entries), Quarantine: slices.Clone(spec.Quarantine)}
	if g.IntN(5) == 0 {
		other.Quarantine = append(other.Quarantine, g.quarantined())
		return other
	}
	e := &other.Entries[g.IntN(len(other.Entries))]
	if len(e.Allow) == 0 || g.IntN(5) == 0 {
		e.Mode, e.ObserveUntil = pick(g, ModeUnset, ModeEnforce, ModeObserve), now().Add(time.Hour)
		e.Accept = pick(g, 0, ProofsOf(ProofX509SVID, ProofListener), ProofsOf(ProofX509SVID))
		return other
	}
	e.Allow = slices.Clone(e.Allow)
	r := &e.Allow[g.IntN(len(e.Allow))]
	switch g.IntN(4) {
	case 0:
		r.Ports = append(slices.Clone(r.Ports), pick(g, PortRange{80, 80}, PortRange{443, 443}, PortRange{444, 445}))
	case 1:
		r.TLS = pick(g, TLSDefault, TLSRequire, TLSAuto)
	case 2:
		r.Paths = append(slices.Clone(r.Paths), must(ParsePathPattern(pick(g, "/p", "/p/q", "/p/*", "/p/**"))))
	default:
		if !r.CIDR.IsValid() {
			r.Addresses = append(slices.Clone(r.Addresses), g.ranges()...)
		}
	}
	return other
}

// observed returns what a policy says of a request, in decisions and in their records.
func observed(p *Policy, g generator) string {
	req := g.request()
	d := p.Decide(req)
	text := answer(d)
	if d.Quarantine != nil {
		text += " for " + d.Quarantine.Reason
	}
	mode, ech := d.TLS()
	text += fmt.Sprint(" ", mode, ech)
	for _, addr := range []string{"8.8.8.8", "8.8.8.9", "8.9.0.1", "9.0.0.1", "10.0.0.1", "10.0.1.1", "127.0.0.1", "2606:4700::1", "64:ff9b::a00:1"} {
		text += fmt.Sprint(" ", d.CheckAddr(netip.AddrPortFrom(netip.MustParseAddr(addr), req.Dest.Port)) == nil)
	}
	if !req.Dest.Host.IsAddr() {
		name := p.DecideName(NameRequest{ID: req.ID, Proof: req.Proof, Host: req.Dest.Host, Type: pick(g, TypeA, TypeTXT), Time: req.Time})
		text += fmt.Sprint(" ", name.Verdict, name.Reason, name.WouldReason)
		if name.Rule != nil {
			text += " by " + name.Rule.Name()
		}
	}
	return text
}

// TestVersionsSayWhatIsMeant checks that policies which mean the same in different
// spellings have the same version and decide alike, and that policies which decide
// differently have different versions.
func TestVersionsSayWhatIsMeant(t *testing.T) {
	differ, unchanged := 0, 0
	host := NewClassifier(Local{Addresses: []netip.Addr{netip.MustParseAddr("8.8.8.8")}}) // inside ranges of the rules
	for seed := range uint64(500) {
		g := newGenerator(seed)
		spec := g.versioned()
		p := must(Compile(*spec))
		respelled, list := g.respell(spec)
		same := must(Compile(*respelled)).WithQuarantine(NewQuarantineList(list))
		if p.Version() != same.Version() {
			t.Errorf("seed %d: another spelling has the version %s, want %s:\n%+v\n%+v", seed, same.Version(), p.Version(), spec.Entries, respelled.Entries)
		}
		if p.QuarantineVersion() != same.QuarantineVersion() {
			t.Errorf("seed %d: another spelling of the quarantine has the version %s, want %s:\n%+v\n%+v\n%+v",
				seed, same.QuarantineVersion(), p.QuarantineVersion(), spec.Quarantine, respelled.Quarantine, list)
		}
		changed := must(Compile(*g.change(spec)))
		equal := p.Version() == changed.Version() && p.QuarantineVersion() == changed.QuarantineVersion()
		if equal {
			unchanged++
		}
		for n := range uint64(30) {
			ask := func(p *Policy) string { return observed(p.WithClassifier(host), newGenerator(seed<<8+n)) }
			want := ask(p)
			if got := ask(same); got != want {
				t.Errorf("seed %d: another spelling says %s, want %s", seed, got, want)
			}
			if ask(changed) == want {
				continue
			}
			differ++
			if equal {
				t.Errorf("seed %d: two policies that decide differently have the version %s: %s, and %s", seed, p.Version(), want, ask(changed))
			}
		}
		if t.Failed() {
			return
		}
	}
	if differ < 200 || unchanged < 30 {
		t.Errorf("%d decisions differed, and %d changes changed no version: too few to mean anything", differ, unchanged)
	}
}

func tls(mode TLSMode) func(*Rule) { return func(r *Rule) { r.TLS = mode } }

// TestVersionTellsSimilarPoliciesApart checks pairs of policies that are written nearly
// like pairs which mean the same, and mean different things.
func TestVersionTellsSimilarPoliciesApart(t *testing.T) {
	const host = "api.example"
	for why, pair := range map[string][2][]Entry{
		"a gap between ports":            rulePair(rule(host+" port 1-5,7-9"), rule(host+" port 1-9")),
		"require where it is no default": rulePair(rule(host+" port 443,8443", tls(TLSRequire)), rule(host+" port 443,8443")),
		"auto where it is no default":    rulePair(rule(host+" port 80-443", tls(TLSAuto)), rule(host+" port 80-443")),
		"a path two segments down":       rulePair(rule(host, paths("/p/*", "/p/a/b")), rule(host, paths("/p/*"))),
		"every path":                     rulePair(rule(host, paths("/**")), rule(host)),
		"a private range inside all":     rulePair(rule(host, addresses("0.0.0.0/0", "10.0.0.0/8")), rule(host, addresses("0.0.0.0/0"))),
		"halves that open more":          rulePair(rule(host, addresses("10.0.0.0/8", "11.0.0.0/8")), rule(host, addresses("10.0.0.0/7"))),
		"an address of the host":         rulePair(rule(host, addresses("8.8.8.0/24", "8.8.8.8/32")), rule(host, addresses("8.8.8.0/24"))),
		"two addresses of the host":      rulePair(rule(host, addresses("8.8.8.8/32", "8.8.8.9/32")), rule(host, addresses("8.8.8.8/31"))),
		"a NAT64 prefix":                 rulePair(rule(host, addresses("2001:4860::/32", "2001:4860:1::a00:0/104")), rule(host, addresses("2001:4860::/32"))),
		"the same rule with an end":      rulePair(rule(host, expires(now())), rule(host, expires(now().Add(1)))),
		"proofs of an entry":             {{entryOf(checkout, func(e *Entry) { e.Accept = defaultProofs })}, {entryOf(checkout)}},
		"the mode of an entry":           {{entryOf(checkout, enforce)}, {entryOf(checkout)}},
		"force of everyone":              {{entryOf("everyone of td", force)}, {entryOf("everyone of td", enforce)}},
	} {
		a, b := must(Compile(Spec{Entries: pair[0]})), must(Compile(Spec{Entries: pair[1]}))
		if a.Version() == b.Version() {
			t.Errorf("%s does not change the version", why)
		}
	}
}

// rulePair returns two policies with one allow rule of the same name each.
func rulePair(a, b Rule) [2][]Entry {
	a.Name, b.Name = "r", "r"
	return [2][]Entry{{entryOf(checkout, allow(a))}, {entryOf(checkout, allow(b))}}
}
