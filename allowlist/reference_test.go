package allowlist

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// This file is a reference implementation: it searches all rules and compares patterns as
// text. The property tests compare Decide with it.

func hostMatches(pattern, name string) bool {
	if x, ok := strings.CutPrefix(pattern, "**."); ok {
		return strings.HasSuffix(name, "."+x)
	}
	if x, ok := strings.CutPrefix(pattern, "*."); ok {
		label, rest, _ := strings.Cut(name, ".")
		return label != "" && rest == x
	}
	return pattern == name
}

func idMatches(pattern, id string) bool {
	if td, ok := strings.CutPrefix(pattern, "everyone of "); ok {
		return strings.HasPrefix(id, td+"/")
	}
	if x, ok := strings.CutSuffix(pattern, "/**"); ok {
		return strings.HasPrefix(id, x+"/")
	}
	if x, ok := strings.CutSuffix(pattern, "/*"); ok {
		rest, below := strings.CutPrefix(id, x+"/")
		return below && !strings.Contains(rest, "/")
	}
	return pattern == id
}

// idRank returns the rank of an identity pattern: exact patterns are first, then those
// with the longer literal prefix, /* before /**, and everyone is last.
func idRank(pattern string) [3]int {
	switch {
	case strings.HasPrefix(pattern, "everyone"):
		return [3]int{2, 0, 0}
	case strings.HasSuffix(pattern, "/**"):
		return [3]int{1, -len(strings.TrimSuffix(pattern, "/**")), 1}
	case strings.HasSuffix(pattern, "/*"):
		return [3]int{1, -len(strings.TrimSuffix(pattern, "/*")), 0}
	}
	return [3]int{}
}

// hostRank returns the rank of a rule among those that match the same host.
func hostRank(r *Rule) [2]int {
	switch h := r.Host.String(); {
	case r.CIDR.IsValid():
		return [2]int{0, -r.CIDR.Bits()}
	case strings.HasPrefix(h, "**."):
		return [2]int{2, -len(h)}
	case strings.HasPrefix(h, "*."):
		return [2]int{1, 0}
	}
	return [2]int{}
}

type candidate struct {
	rule  *Rule
	entry int // index of the entry, the most specific first
}

// naive decides a request and returns the words of answer, with the name of the rule if
// the request is allowed.
func naive(spec *Spec, req Request) string {
	if req.Upgrade == MayUpgrade {
		req.Upgrade = MustUpgrade
		if answer := naive(spec, req); strings.HasPrefix(answer, "allow") {
			return answer
		}
		req.Upgrade = NoUpgrade
	}
	switch {
	case req.Dest.Host.IsZero():
		return "malformed-target"
	case req.Dest.Port == 0:
		return "malformed-port"
	case req.ID.IsZero():
		return "identity-missing"
	case req.ID.Path() == "":
		return "identity-invalid"
	}
	entries, refused := naiveEntries(spec, req.ID, req.Proof)
	if refused != "" {
		return refused
	}
	return naiveRules(entries, req)
}

// naiveEntries returns the entries of an identity, the most specific first, or the reason
// for which every request of it is refused.
func naiveEntries(spec *Spec, id spiffeid.ID, source Proof) (entries []*Entry, refused string) {
	for _, q := range spec.Quarantine {
		if idMatches(q.Pattern.String(), id.String()) {
			return nil, "quarantined"
		}
	}
	known := false
	for i := range spec.Entries {
		if e := &spec.Entries[i]; idMatches(e.Pattern.String(), id.String()) {
			entries = append(entries, e)
			known = known || e.Unlisted || !strings.HasPrefix(e.Pattern.String(), "everyone")
		}
	}
	slices.SortFunc(entries, func(a, b *Entry) int {
		x, y := idRank(a.Pattern.String()), idRank(b.Pattern.String())
		return slices.Compare(x[:], y[:])
	})
	if !known {
		return nil, "identity-unknown"
	}
	if !naiveAccepts(entries, source) {
		return nil, "identity-source-not-accepted"
	}
	return entries, ""
}

func naiveAccepts(entries []*Entry, s Proof) bool {
	for _, e := range entries {
		if e.Accept != 0 {
			return e.Accept.has(s)
		}
	}
	return s == ProofX509SVID || s == ProofListener
}

func naiveRules(entries []*Entry, req Request) string {
	var all []candidate
	for i, e := range entries {
		for j := range e.Deny {
			if r := &e.Deny[j]; naiveCovers(r, req.Dest) && (len(r.Ports) == 0 || naivePort(r, req.Dest.Port)) {
				return "denied-by-rule"
			}
		}
		for j := range e.Allow {
			if r := &e.Allow[j]; !r.NoTunnel && naiveMatches(r, req.Dest.Host) {
				all = append(all, candidate{r, i})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		x, y := hostRank(a.rule), hostRank(b.rule)
		if c := slices.Compare(x[:], y[:]); c != 0 {
			return c
		}
		return a.entry - b.entry
	})
	misses := []string{"not-on-allowlist", "port-not-allowed", "rule-expired", "upgrade-not-allowed", "method-not-allowed", "path-not-allowed", "malformed-target"}
	if req.Dest.Host.IsAddr() {
		misses[0] = "ip-not-on-allowlist"
	}
	nearest := 0
	for _, c := range all {
		miss := naiveMiss(c.rule, req)
		if miss < 0 {
			if addr := req.Dest.Host.Addr(); addr.IsValid() && !naiveOpens(c.rule.CIDR, addr) {
				return "resolved-address-denied"
			}
			if req.Method != "" && req.Dest.Port == 443 { // none of the rules here sets tls
				return "not-tls"
			}
			return "allow by " + c.rule.Name
		}
		nearest = max(nearest, miss)
	}
	if !naiveObserves(entries, req) || nearest == 6 {
		return misses[nearest]
	}
	if addr := req.Dest.Host.Addr(); addr.IsValid() && naiveClass(addr) != Public {
		return misses[nearest] // none of the policies here sets observe_private
	}
	if req.Method != "" && req.Dest.Port == 443 {
		return "not-tls"
	}
	return "observe " + misses[nearest]
}

func naiveObserves(entries []*Entry, req Request) bool {
	for _, e := range entries {
		if e.Force {
			return false
		}
	}
	for _, e := range entries {
		switch {
		case e.Mode != ModeUnset:
			return e.Mode == ModeObserve && req.Time.Before(e.ObserveUntil)
		case len(e.Allow) > 0 && !e.InheritMode: // none of the lists here is empty
			return false
		}
	}
	return false
}

func naiveMatches(r *Rule, h Host) bool {
	if h.IsAddr() {
		return r.CIDR.IsValid() && r.CIDR.Contains(h.Addr())
	}
	return !r.CIDR.IsValid() && hostMatches(r.Host.String(), h.String())
}

// naiveCovers reports whether a deny rule matches a destination or the IPv4 address that
// it embeds.
func naiveCovers(r *Rule, d Destination) bool {
	if inner, ok := naiveInner(d.Host.Addr()); ok && naiveMatches(r, HostOf(inner)) {
		return true
	}
	return naiveMatches(r, d.Host)
}

func naiveInner(addr netip.Addr) (netip.Addr, bool) {
	if !netip.MustParsePrefix("64:ff9b::/96").Contains(addr) {
		return netip.Addr{}, false
	}
	b := addr.As16()
	return netip.AddrFrom4([4]byte(b[12:])), true
}

func naivePort(r *Rule, port uint16) bool {
	if len(r.Ports) == 0 {
		return port == 443
	}
	return slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.First <= port && port <= p.Last })
}

func naiveMiss(r *Rule, req Request) int {
	restricted := len(r.Methods) > 0 || len(r.Paths) > 0
	switch {
	case !naivePort(r, req.Dest.Port):
		return 1
	case !r.Expires.IsZero() && !req.Time.Before(r.Expires):
		return 2
	case req.Upgrade != NoUpgrade && !r.Upgrade:
		return 3
	case restricted && req.Method == "",
		len(r.Methods) > 0 && !slices.Contains(r.Methods, req.Method):
		return 4
	case len(r.Paths) == 0:
		return -1
	case strings.Contains(req.Path, ".."): // the only malformed paths of the generator
		return 6
	case !slices.ContainsFunc(r.Paths, func(p PathPattern) bool { return naivePath(p.String(), req.Path) }):
		return 5
	}
	return -1
}

func naivePath(pattern, path string) bool {
	if dir, ok := strings.CutSuffix(pattern, "**"); ok {
		return strings.HasPrefix(path, dir)
	}
	return pattern == path
}

func naiveClass(addr netip.Addr) Class {
	if inner, ok := naiveInner(addr); ok {
		return tableClass(inner)
	}
	return tableClass(addr)
}

// naiveOpens reports whether a range opens an address of a special class: the range must
// lie wholly inside the class, and local classes are opened only by single addresses.
func naiveOpens(cidr netip.Prefix, addr netip.Addr) bool {
	class := naiveClass(addr)
	switch {
	case class == Public || cidr.IsSingleIP():
		return true
	case class.singleOnly():
		return false
	}
	if inner, ok := naiveInner(addr); ok {
		if cidr.Bits() < 96 {
			return false
		}
		addr, cidr = inner, netip.PrefixFrom(inner, cidr.Bits()-96)
	}
	widest := netip.Prefix{}
	for _, r := range classRanges() {
		if p := netip.MustParsePrefix(r.prefix); p.Contains(addr) && (!widest.IsValid() || p.Bits() > widest.Bits()) {
			widest = p
		}
	}
	return cidr.Bits() >= widest.Bits()
}
