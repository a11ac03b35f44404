package policyfile

import (
	"maps"
	"slices"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// destination is a named set of rules that entries use.
type destination struct {
	at    strictyaml.Pos
	rules []rule
}

// readDestinations reads the sets of a file.
func (l *loader) readDestinations(d *document) {
	if d.destinations == nil {
		return
	}
	for name, v := range d.destinations.Fields() {
		if problem := badName(name); problem != "" {
			v.KeyErrorf("the name of a destination %s", problem)
		}
		if first, ok := l.destinations[name]; ok {
			v.KeyErrorf("a destination of this name stands at %s: rename one, names are global", first.at)
			v.Skip()
			continue
		}
		set := &destination{at: v.KeyPos()}
		l.destinations[name] = set // before it is known to be good: one error is enough
		list := newRuleList(l, d, destinationList, make(map[string]strictyaml.Pos))
		for item := range v.OneOrMore() {
			if r, ok := list.read(item); ok {
				list.takeName(r.Name, r.nameAt)
				set.rules = append(set.rules, r)
			}
		}
	}
}

// expand appends the rules of the destination that r uses.
func (list *ruleList) expand(rules []allowlist.Rule, r rule) []allowlist.Rule {
	l := list.loader
	set := l.destinations[r.use]
	if set == nil {
		l.errs.Add(r.useAt, "use: no destination is named %q: %s", r.use, l.candidates(r.use))
		return rules
	}
	if !l.grow(len(set.rules), r.at) {
		return rules
	}
	list.takeName(r.Name, r.nameAt)
	for _, of := range set.rules {
		if list.kind == denyList && of.only != nil {
			l.errs.Add(r.useAt, "use: destination %s has %s (%s), which a deny rule does not take: write the hosts out", r.use, of.only.Name(), of.only.KeyPos())
			break
		}
		if why := neverOpens(of.CIDR, l.classifier); why != "" && list.kind == allowList {
			l.errs.Add(r.useAt, "use: in destination %s (%s), %s", r.use, of.at, why)
			break
		}
		expanded := of.Rule
		expanded.UseAt = list.in.place(r.at)
		if r.Name != "" {
			expanded.Name = r.Name
		} else {
			list.takeName(of.Name, r.useAt)
		}
		if r.Ticket != "" {
			expanded.Ticket = r.Ticket
		}
		if expanded.Expires.IsZero() || !r.Expires.IsZero() && r.Expires.Before(expanded.Expires) {
			expanded.Expires = r.Expires
		}
		rules = append(rules, expanded)
	}
	return rules
}

// candidates names the destinations that were perhaps meant.
func (l *loader) candidates(name string) string {
	const enough = 100 // errors; to look for each of very many would take long
	if len(l.errs) > enough {
		return "write one that stands under destinations"
	}
	return strictyaml.Candidates(name, slices.Sorted(maps.Keys(l.destinations)))
}
