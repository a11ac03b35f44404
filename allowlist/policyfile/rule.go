package policyfile

import (
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// listKind says in which kind of list a rule is.
type listKind uint8

const (
	allowList listKind = iota
	denyList
	destinationList
)

// ruleKeys holds the values of the keys of one rule. They are nil if missing.
type ruleKeys struct {
	name, ticket, host, cidr, use, ports, expires,
	addresses, tls, ech, methods, paths, upgrade, tunnel, dns *strictyaml.Node
}

// ruleTable returns the keys of a rule.
func ruleTable() []key[ruleKeys] {
	return []key[ruleKeys]{
		{"name", func(k *ruleKeys, v *strictyaml.Node) { k.name = v }},
		{"host", func(k *ruleKeys, v *strictyaml.Node) { k.host = v }},
		{"cidr", func(k *ruleKeys, v *strictyaml.Node) { k.cidr = v }},
		{"use", func(k *ruleKeys, v *strictyaml.Node) { k.use = v }},
		{"ports", func(k *ruleKeys, v *strictyaml.Node) { k.ports = v }},
		{"expires", func(k *ruleKeys, v *strictyaml.Node) { k.expires = v }},
		{"ticket", func(k *ruleKeys, v *strictyaml.Node) { k.ticket = v }},
		{"addresses", func(k *ruleKeys, v *strictyaml.Node) { k.addresses = v }},
		{"tls", func(k *ruleKeys, v *strictyaml.Node) { k.tls = v }},
		{"ech", func(k *ruleKeys, v *strictyaml.Node) { k.ech = v }},
		{"methods", func(k *ruleKeys, v *strictyaml.Node) { k.methods = v }},
		{"paths", func(k *ruleKeys, v *strictyaml.Node) { k.paths = v }},
		{"upgrade", func(k *ruleKeys, v *strictyaml.Node) { k.upgrade = v }},
		{"tunnel", func(k *ruleKeys, v *strictyaml.Node) { k.tunnel = v }},
		{"dns", func(k *ruleKeys, v *strictyaml.Node) { k.dns = v }},
	}
}

// rule is an item of a list of rules: a rule, or a use of a destination.
type rule struct {
	allowlist.Rule
	at        strictyaml.Pos   // place of the rule
	nameAt    strictyaml.Pos   // place of the value of name
	use       string           // name of the destination; "" if the item is not a use
	useAt     strictyaml.Pos   // place of the value of use
	allowOnly *strictyaml.Node // value of a key that no deny rule may have; nil if none
}

// ruleList reads one list of rules.
type ruleList struct {
	walker *walker
	in     *document
	kind   listKind
	names  map[string]strictyaml.Pos // places of the names of rules; shared by the lists of a part
	first  map[string]strictyaml.Pos // places of the rules so far, by their canonical text
}

func newRuleList(w *walker, in *document, kind listKind, names map[string]strictyaml.Pos) *ruleList {
	return &ruleList{walker: w, in: in, kind: kind, names: names, first: make(map[string]strictyaml.Pos)}
}

// readAll reads a list of an entry and expands each use.
func (list *ruleList) readAll(v *strictyaml.Node) []allowlist.Rule {
	var rules []allowlist.Rule
	for item := range v.Items() {
		r, ok := list.read(item)
		if !ok {
			continue
		}
		if r.use != "" {
			rules = list.expand(rules, r)
			continue
		}
		if !list.walker.countRules(1, r.at) {
			break
		}
		list.addName(r.Name, r.nameAt)
		rules = append(rules, r.Rule)
	}
	return rules
}

// read reads one rule. It returns false if the rule has no valid target, or if the list
// has the same rule already, under whatever name.
func (list *ruleList) read(item *strictyaml.Node) (rule, bool) {
	r, ok := list.parse(item)
	if !ok {
		return r, false
	}
	key := canonical(r)
	if at, ok := list.first[key]; ok {
		list.walker.errs.Add(r.at, "the list has the same rule at %s: remove one", at)
		return r, false
	}
	list.first[key] = r.at
	return r, true
}

// addName adds the name of a rule, or an error if another rule has the name already.
func (list *ruleList) addName(name string, at strictyaml.Pos) {
	if name == "" {
		return
	}
	if first, ok := list.names[name]; ok {
		list.walker.errs.Add(at, "name: another rule beside it is named %q, at %s: rename one", name, first)
		return
	}
	list.names[name] = at
}

// canonical returns a text that is equal for rules that do the same.
func canonical(r rule) string {
	b := append(make([]byte, 0, 64), r.use...)
	add := func(key, value string) {
		b = append(b, '\n') // no value contains a newline
		b = append(b, key...)
		b = append(b, value...)
	}
	add("host ", r.Host.String())
	if r.CIDR.IsValid() {
		add("cidr ", r.CIDR.String())
	}
	for _, ports := range r.Ports {
		add("port ", ports.String())
	}
	for _, prefix := range r.Addresses {
		add("address ", prefix.String())
	}
	for _, method := range r.Methods {
		add("method ", method)
	}
	for _, path := range r.Paths {
		add("path ", path.String())
	}
	for _, dnsType := range r.Types {
		add("dns ", dnsType.String())
	}
	if !r.Expires.IsZero() {
		add("until ", r.Expires.Format(time.RFC3339Nano))
	}
	b = append(b, '\n', byte('0'+r.TLS), byte('0'+r.ECH), flag(r.Upgrade), flag(r.NoTunnel))
	return string(b)
}

func flag(set bool) byte {
	if set {
		return '1'
	}
	return '0'
}

// parse reads one rule. It returns false if the rule has no valid target.
func (list *ruleList) parse(item *strictyaml.Node) (rule, bool) {
	kind, classes := list.kind, list.walker.classifier
	var k ruleKeys
	readKeys(&k, item, list.walker.ruleTable)
	r := rule{at: item.Pos(), allowOnly: k.allowOnly()}
	if !k.checkTarget(item, kind) {
		return r, false
	}
	k.read(&r, classes)
	if r.CIDR.IsValid() && kind == allowList {
		reportClosed(k.cidr, r.CIDR, classes)
	}
	if kind == denyList {
		k.checkDeny()
	} else {
		k.checkUseless(&r)
	}
	r.At = list.in.place(r.at)
	ok := r.use != "" || !r.Host.IsZero() || r.CIDR.IsValid()
	return r, ok
}

// restrictions returns the values of the keys that only an allow rule may have.
func (k *ruleKeys) restrictions() [9]*strictyaml.Node {
	return [...]*strictyaml.Node{k.expires, k.addresses, k.tls, k.ech, k.methods, k.paths, k.upgrade, k.tunnel, k.dns}
}

// allowOnly returns the value of the first key that only an allow rule may have, or nil.
func (k *ruleKeys) allowOnly() *strictyaml.Node {
	for _, v := range k.restrictions() {
		if v != nil {
			return v
		}
	}
	return nil
}

// checkTarget reports whether the rule has exactly one of host, cidr and use, and adds an
// error if not. It also adds an error for each key that a use may not have.
func (k *ruleKeys) checkTarget(item *strictyaml.Node, kind listKind) bool {
	var targets []*strictyaml.Node
	for _, v := range []*strictyaml.Node{k.host, k.cidr, k.use} {
		if v != nil {
			targets = append(targets, v)
		}
	}
	switch {
	case len(targets) > 1:
		targets[1].KeyErrorf("the rule has a %s already: write two rules", targets[0].Name())
		return false
	case len(targets) == 0:
		if *k != (ruleKeys{}) {
			item.Errorf("the rule names no destination: write one of host, cidr or use")
		}
		return false
	case k.use == nil:
		return true
	case kind == destinationList:
		k.use.KeyErrorf("destinations do not nest: write the hosts out")
		return false
	}
	for _, v := range append([]*strictyaml.Node{k.ports}, k.restrictionsButExpires()...) {
		if v != nil {
			v.KeyErrorf("a use takes only name, ticket and expires, for each destination keeps its own %s", v.Name())
			v.Skip()
		}
	}
	return true
}

func (k *ruleKeys) restrictionsButExpires() []*strictyaml.Node {
	all := k.restrictions()
	return all[1:]
}

func (k *ruleKeys) checkDeny() {
	for _, v := range k.restrictions() {
		switch {
		case v == nil || k.use != nil && v != k.expires: // checkTarget has added the error for a use
		case v == k.expires:
			v.KeyErrorf("a deny rule does not expire, for a date must not widen a policy: remove it")
		default:
			v.KeyErrorf("a deny rule takes only host, cidr or use, ports, name and ticket: remove it")
		}
	}
}

// checkUseless adds an error for each key that could never have an effect.
func (k *ruleKeys) checkUseless(r *rule) {
	if k.addresses != nil && k.cidr != nil {
		k.addresses.KeyErrorf("only with host, for what a name may resolve into: remove it")
	}
	if k.dns != nil && k.cidr != nil {
		k.dns.KeyErrorf("only with host, for the types that a name is resolved for: remove it")
	}
	if !r.NoTunnel {
		k.checkTunnel(r)
		return
	}
	if k.cidr != nil {
		k.tunnel.KeyErrorf("false makes a name that is resolved and not connected to, and a cidr has no name: remove it")
	}
	for _, v := range []*strictyaml.Node{k.ports, k.tls, k.ech, k.methods, k.paths, k.upgrade} {
		if v != nil {
			v.KeyErrorf("the rule has tunnel: false, so nothing connects: remove one")
		}
	}
}

// checkTunnel adds an error for each key about the first bytes of a tunnel that has no
// effect, or with which the rule would admit nothing.
func (k *ruleKeys) checkTunnel(r *rule) {
	plain := k.methods
	if plain == nil {
		plain = k.paths
	}
	switch {
	case k.ech != nil && r.TLS == allowlist.TLSOff:
		k.ech.KeyErrorf("the rule has tls: off, so nobody looks for it: remove one")
	case k.ech != nil && plain != nil && !r.Upgrade:
		k.ech.KeyErrorf("the rule has %s, so it admits plain requests only: remove one", plain.Name())
	}
	if plain != nil && r.TLS == allowlist.TLSRequire {
		k.tls.KeyErrorf("the rule has %s, so it admits plain requests only, which require refuses: remove one", plain.Name())
	}
}

// read sets the fields of a rule from the values of its keys.
func (k *ruleKeys) read(r *rule, classes *allowlist.Classifier) {
	if k.name != nil {
		r.Name, r.nameAt = readName(k.name), k.name.Pos()
	}
	if k.ticket != nil {
		r.Ticket = readNote(k.ticket)
	}
	if k.expires != nil {
		r.Expires, _ = k.expires.Until()
	}
	if k.use != nil {
		r.use, _ = k.use.Text()
		r.useAt = k.use.Pos()
		return
	}
	if k.host != nil {
		r.Host = readHost(k.host)
	} else {
		r.CIDR, _ = readPrefix(k.cidr)
	}
	r.Ports = readUnique(k.ports, readPorts)
	r.Addresses = readUnique(k.addresses, func(v *strictyaml.Node) (netip.Prefix, bool) {
		prefix, ok := readPrefix(v)
		if ok {
			reportClosed(v, prefix, classes)
		}
		return prefix, ok
	})
	r.Methods = readUnique(k.methods, readMethod)
	r.Paths = readUnique(k.paths, readPath)
	r.Types = readUnique(k.dns, readType)
	r.TLS, r.ECH = k.readTLS()
	if k.upgrade != nil {
		r.Upgrade, _ = k.upgrade.Bool()
	}
	if k.tunnel != nil {
		tunnel, ok := k.tunnel.Bool()
		r.NoTunnel = ok && !tunnel
	}
}

func (k *ruleKeys) readTLS() (tls allowlist.TLSMode, ech allowlist.ECHMode) {
	if k.tls != nil {
		switch word, _ := k.tls.Word("require", "auto", "off"); word {
		case "require":
			tls = allowlist.TLSRequire
		case "auto":
			tls = allowlist.TLSAuto
		case "off":
			tls = allowlist.TLSOff
		}
	}
	if k.ech != nil {
		if word, _ := k.ech.Word("record", "refuse"); word == "refuse" {
			ech = allowlist.ECHRefuse
		}
	}
	return tls, ech
}

// readUnique reads a list of different values, or one value. It returns nil if v is nil,
// and adds an error if the list has a value twice.
func readUnique[T comparable](v *strictyaml.Node, read func(*strictyaml.Node) (T, bool)) []T {
	if v == nil {
		return nil
	}
	var all []T
	seen := make(map[T]bool)
	for item := range v.OneOrMore() {
		value, ok := read(item)
		if !ok {
			continue
		}
		if seen[value] {
			item.Errorf("%v stands in the list already: remove one", value)
			continue
		}
		seen[value] = true
		all = append(all, value)
	}
	return all
}
