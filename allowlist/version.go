package allowlist

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// versionDigits is the length of a version: the first hex digits of a SHA-256.
const versionDigits = 12

// canonicalVersion returns the version of a policy whose Spec has none. It is a hash over
// the canonical form: everything that changes a decision or its record, in a fixed order.
// So it does not depend on the names of files, on the distribution of entries over files
// or on the places of rules. The quarantine is not part of it; see quarantineVersion.
func (p *Policy) canonicalVersion() string {
	f := newCanonicalForm("exeat policy 1")
	var entries []*entry
	for _, x := range []*index[string, entry]{&p.exact, &p.one, &p.many, &p.everyone} {
		entries = slices.AppendSeq(entries, x.values)
	}
	slices.SortFunc(entries, func(a, b *entry) int { return a.pattern.compare(b.pattern) })
	f.number(len(entries))
	for _, e := range entries {
		f.entry(e)
	}
	return f.version()
}

// quarantineVersion returns the version of the quarantine lines of a policy and of the
// list beside it: a hash over their patterns and reasons, which does not depend on the
// list that a line is in. It is "" if there are no lines.
func quarantineVersion(inline, list *QuarantineList) string {
	all := effective(inline, list)
	if len(all) == 0 {
		return ""
	}
	slices.SortFunc(all, func(a, b *Quarantined) int { return a.Pattern.compare(b.Pattern) })
	f := newCanonicalForm("exeat quarantine 1")
	f.number(len(all))
	for _, q := range all {
		f.pattern(q.Pattern)
		f.text(q.Reason)
	}
	return f.version()
}

// effective returns the lines without those that change neither who is in quarantine nor
// the reason that a record gives: a line inside another one with the same reason, and a
// line of the list inside a line of the policy, which is found first.
func effective(inline, list *QuarantineList) []*Quarantined {
	var lines []Quarantined
	for q := range inline.lines {
		lines = append(lines, *q)
	}
	for q := range list.lines {
		if inline.around(q.Pattern.kind, q.Pattern.prefix, q.Pattern.depth) == nil {
			lines = append(lines, *q) // behind a line of the policy with the same pattern
		}
	}
	both := NewQuarantineList(lines)
	var all []*Quarantined
	for q := range both.lines {
		outer := both.around(q.Pattern.kind, q.Pattern.prefix, q.Pattern.depth)
		if outer == nil || outer.Reason != q.Reason {
			all = append(all, q)
		}
	}
	return all
}

// compare orders patterns by prefix and kind.
func (p IdentityPattern) compare(q IdentityPattern) int {
	return cmp.Or(strings.Compare(p.prefix, q.prefix), cmp.Compare(p.kind, q.kind))
}

// canonicalForm hashes the canonical form of a policy while it is written. A text is
// preceded by its length and a list by the number of its items, so that different
// policies have different forms.
type canonicalForm struct {
	hash hash.Hash
	buf  []byte // bytes that have been written and not hashed yet
}

func newCanonicalForm(of string) *canonicalForm {
	f := &canonicalForm{hash: sha256.New()}
	f.text(of)
	return f
}

func (f *canonicalForm) version() string {
	f.hash.Write(f.buf)
	return hex.EncodeToString(f.hash.Sum(nil))[:versionDigits]
}

func (f *canonicalForm) number(n int) { f.buf = binary.AppendVarint(f.buf, int64(n)) }

func (f *canonicalForm) text(s string) {
	f.number(len(s))
	f.buf = append(f.buf, s...)
}

func (f *canonicalForm) flag(set bool) {
	if set {
		f.number(1)
		return
	}
	f.number(0)
}

// time writes an instant without its time zone.
func (f *canonicalForm) time(t time.Time) {
	f.flag(!t.IsZero())
	if !t.IsZero() {
		f.number(int(t.Unix()))
		f.number(t.Nanosecond())
	}
}

func (f *canonicalForm) pattern(p IdentityPattern) {
	f.number(int(p.kind))
	f.text(p.prefix)
}

func (f *canonicalForm) prefix(p netip.Prefix) { f.text(prefixText(p)) }

func (f *canonicalForm) limits(l Limits) {
	f.number(l.Tunnels)
	f.number(l.ConnectsPerSecond)
	f.number(l.DNSPerSecond)
	f.number(int(l.UploadPerHour))
}

// entry writes the settings of an entry, and its rules sorted by host pattern or cidr.
// The order of rules matters only among those with the same pattern or cidr.
func (f *canonicalForm) entry(e *entry) {
	f.pattern(e.pattern)
	f.text(e.owner)
	f.number(int(e.accept))
	f.number(int(e.mode))
	f.flag(e.force)
	f.flag(e.unlisted)
	f.flag(e.observePrivate)
	f.time(e.observeUntil)
	f.limits(e.limits)
	f.limits(e.shared)
	for _, x := range []*index[string, hostRules]{&e.exact, &e.one, &e.many} {
		f.hosts(x.sorted(strings.Compare))
	}
	if e.addrs == nil {
		f.hosts(nil)
		return
	}
	f.hosts(e.addrs.cidrs.sorted(netip.Prefix.Compare))
}

func (f *canonicalForm) hosts(all []*hostRules) {
	f.number(len(all))
	for _, h := range all {
		f.rules(h.allow.rules)
		if h.deny == nil {
			f.rules(nil)
			continue
		}
		f.rules(h.deny.rules)
	}
}

// rules writes the rules of one host pattern or cidr in one list, in file order. It
// leaves out a rule that does the same as one before it, because only the first is ever
// recorded.
func (f *canonicalForm) rules(all []*CompiledRule) {
	seen := make(map[string]bool)
	for _, r := range all {
		start := len(f.buf)
		f.flag(true)
		f.rule(r)
		does := string(f.buf[start:])
		if seen[does] {
			f.buf = f.buf[:start]
			continue
		}
		seen[does] = true
		f.text(r.name)
		f.text(r.Ticket)
		if len(f.buf) >= 32<<10 {
			f.hash.Write(f.buf)
			f.buf = f.buf[:0]
		}
	}
	f.flag(false)
}

// rule writes what a rule does. The lists in the rule are in canonical form already.
func (f *canonicalForm) rule(r *CompiledRule) {
	f.number(int(r.Host.kind))
	f.text(r.Host.name)
	f.prefix(r.CIDR)
	f.number(len(r.Ports))
	for _, p := range r.Ports {
		f.number(int(p.First))
		f.number(int(p.Last))
	}
	f.time(r.Expires)
	f.flag(r.Addresses != nil) // an empty list admits no address
	f.number(len(r.Addresses))
	for _, a := range r.Addresses {
		f.prefix(a)
	}
	f.number(int(r.tlsBesideDefault()))
	f.number(int(r.ECH))
	f.number(len(r.Methods))
	for _, m := range r.Methods {
		f.text(m)
	}
	f.number(len(r.Paths))
	for _, p := range r.Paths {
		f.text(p.String())
	}
	f.flag(r.Upgrade)
	f.flag(r.NoTunnel)
	f.number(len(r.Types))
	for _, t := range r.Types {
		f.number(int(t))
	}
}
