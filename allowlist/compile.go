package allowlist

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gaissmai/bart"
)

// compileRule compiles a rule of a list. Its ports, methods, paths, addresses and types
// get one form for all spellings that mean the same, so that these have the same name and
// the same version.
func compileRule(classes *Classifier, pattern IdentityPattern, list string, r *Rule, defaultPorts PortRange) *CompiledRule {
	c := &CompiledRule{Rule: *r, types: ruleTypes}
	for _, t := range c.Types {
		c.types |= only(t)
	}
	if c.CIDR.IsValid() {
		c.CIDR = canonicalPrefix(c.CIDR)
		c.ranges = new(bart.Lite)
		c.ranges.Insert(c.CIDR)
	}
	if len(c.Ports) == 0 {
		c.Ports = []PortRange{defaultPorts}
	}
	c.Ports = joinPorts(c.Ports)
	c.Methods = slices.Compact(sortedClone(c.Methods, strings.Compare))
	c.Paths = widestPaths(c.Paths)
	c.Types = slices.Compact(sortedClone(c.Types, cmp.Compare[QueryType]))
	if len(c.Methods) > 0 {
		c.methods = make(map[string]bool, len(c.Methods))
		for _, m := range c.Methods {
			c.methods[m] = true
		}
	}
	if c.Addresses != nil {
		c.Addresses = classes.joinRanges(c.Addresses)
		c.ranges = new(bart.Lite)
		for _, a := range c.Addresses {
			c.ranges.Insert(a)
		}
	}
	if c.place = c.At; c.UseAt != "" {
		c.place += ", used at " + c.UseAt
	}
	c.name = c.Rule.Name
	if c.name == "" {
		sum := sha256.Sum256([]byte(pattern.String() + "\x00" + list + "\x00" + c.canonical()))
		c.name = hex.EncodeToString(sum[:5])
	}
	return c
}

// sortedClone returns a list in order. It does not change the list itself, which belongs
// to the spec.
func sortedClone[T any](list []T, compare func(a, b T) int) []T {
	if len(list) < 2 {
		return list
	}
	return slices.SortedFunc(slices.Values(list), compare)
}

// joinPorts returns the ranges in order, with those that overlap or adjoin joined.
func joinPorts(ports []PortRange) []PortRange {
	if len(ports) < 2 {
		return ports
	}
	var joined []PortRange
	for _, p := range sortedClone(ports, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) }) {
		if n := len(joined); n > 0 && int(p.First) <= int(joined[n-1].Last)+1 {
			joined[n-1].Last = max(joined[n-1].Last, p.Last)
			continue
		}
		joined = append(joined, p)
	}
	return joined
}

// widestPaths returns the patterns in order, without those that another one contains.
func widestPaths(paths []PathPattern) []PathPattern {
	if len(paths) < 2 {
		return paths
	}
	sorted := slices.Compact(sortedClone(paths, func(a, b PathPattern) int { return strings.Compare(a.String(), b.String()) }))
	return slices.DeleteFunc(slices.Clone(sorted), func(p PathPattern) bool {
		return slices.ContainsFunc(sorted, func(q PathPattern) bool { return q != p && q.contains(p) })
	})
}

// canonicalPrefix unmaps an IPv4-mapped prefix and masks the host bits.
func canonicalPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// canonical returns what the rule does as text, which is the same for every spelling of
// the rule.
func (r *CompiledRule) canonical() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %v %v", r.Host, prefixText(r.CIDR), r.Ports, r.Addresses)
	fmt.Fprintf(&b, " %d %d %q %v %t %t %q", r.tlsBesideDefault(), r.ECH, r.Methods, r.Paths, r.Upgrade, r.NoTunnel, r.Types)
	if !r.Expires.IsZero() {
		b.WriteString(r.Expires.UTC().Format(time.RFC3339Nano))
	}
	return b.String()
}

// tlsBesideDefault returns the TLS mode of the rule, or TLSDefault if that is the same on
// every port of the rule. The field TLS keeps the mode that was written, because a remedy
// for another port takes it over.
func (r *CompiledRule) tlsBesideDefault() TLSMode {
	has443 := slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.has(443) })
	only443 := len(r.Ports) == 1 && r.Ports[0] == PortRange{443, 443}
	if r.TLS == TLSRequire && only443 || r.TLS == TLSAuto && !has443 {
		return TLSDefault
	}
	return r.TLS
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
