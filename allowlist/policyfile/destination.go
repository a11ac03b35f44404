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

// readDestinations reads the destinations of a file.
func (w *walker) readDestinations(d *document) {
	if d.destinations == nil {
		return
	}
	for name, v := range d.destinations.Fields() {
		if problem := badName(name); problem != "" {
			v.KeyErrorf("the name of a destination %s", problem)
		}
		if first, ok := w.destinations[name]; ok {
			v.KeyErrorf("a destination of this name stands at %s: rename one, names are global", first.at)
			v.Skip()
			continue
		}
		set := &destination{at: v.KeyPos()}
		w.destinations[name] = set // also if it has errors, so that its uses have none
		list := newRuleList(w, d, destinationList, make(map[string]strictyaml.Pos))
		for item := range v.OneOrMore() {
			if r, ok := list.read(item); ok {
				list.addName(r.Name, r.nameAt)
				set.rules = append(set.rules, r)
			}
		}
	}
}

// expand appends the rules of the destination that r uses.
func (list *ruleList) expand(rules []allowlist.Rule, r rule) []allowlist.Rule {
	w := list.walker
	set := w.destinations[r.use]
	if set == nil {
		w.errs.Add(r.useAt, "use: no destination is named %q: %s", r.use, w.candidates(r.use))
		return rules
	}
	if !w.countRules(len(set.rules), r.at) {
		return rules
	}
	list.addName(r.Name, r.nameAt)
	for _, member := range set.rules {
		if list.kind == denyList && member.allowOnly != nil {
			w.errs.Add(r.useAt, "use: destination %s has %s (%s), which a deny rule does not take: write the hosts out", r.use, member.allowOnly.Name(), member.allowOnly.KeyPos())
			break
		}
		if why := neverOpens(member.CIDR, w.classifier); why != "" && list.kind == allowList {
			w.errs.Add(r.useAt, "use: in destination %s (%s), %s", r.use, member.at, why)
			break
		}
		expanded := member.Rule
		expanded.UseAt = list.in.place(r.at)
		if r.Name != "" {
			expanded.Name = r.Name
		} else {
			list.addName(member.Name, r.useAt)
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

// candidates returns the end of a message about an unknown destination, with the names
// that are similar.
func (w *walker) candidates(name string) string {
	const enough = 100 // number of errors after which a search for each would take too long
	if len(w.errs) > enough {
		return "write one that stands under destinations"
	}
	if len(w.destinations) == 0 {
		return "the policy has no destinations: write host: or cidr:, or name a set under destinations"
	}
	return strictyaml.Candidates(name, slices.Sorted(maps.Keys(w.destinations)))
}
