package policyfile

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// entry is what all files together say of one pattern.
type entry struct {
	allowlist.Entry
	set   map[string]strictyaml.Pos // by key: what may be set once
	names map[string]strictyaml.Pos // of rules
	in    *document                 // the last file that spoke of it
	at    strictyaml.Pos            // and where
	bare  []strictyaml.Pos          // each allow whose file says nothing of the mode
}

// part is what one file says of one pattern.
type part struct {
	in          *document
	at          strictyaml.Pos
	settings    []setting
	names       map[string]strictyaml.Pos
	allow, deny []allowlist.Rule
	allowAt     strictyaml.Pos // of the key allow; zero if it is not there
	saysMode    bool           // the file sets a mode, or inherits it
	inherits    bool           // it says mode: inherit
}

// setting is a key that may be set once per pattern.
type setting struct {
	key   string
	at    strictyaml.Pos
	apply func(*allowlist.Entry)
}

func (p *part) once(key string, v *strictyaml.Node, apply func(*allowlist.Entry)) {
	p.settings = append(p.settings, setting{key, v.KeyPos(), apply})
}

// entryReader reads what one file says of one pattern.
type entryReader struct {
	loader      *loader
	part        *part
	id, domains *strictyaml.Node // nil: not there
	modes       modeKeys
}

// list returns a reader of one of the entry's lists.
func (r *entryReader) list(kind listKind) *ruleList {
	if r.part.names == nil {
		r.part.names = make(map[string]strictyaml.Pos)
	}
	return newRuleList(r.loader, r.part.in, kind, r.part.names)
}

// identityTable are the keys of an item of identities.
func identityTable() []key[entryReader] {
	return append([]key[entryReader]{
		{"id", func(r *entryReader, v *strictyaml.Node) { r.id = v }},
	}, entryTable()...)
}

// everyoneTable are the keys of everyone.
func everyoneTable() []key[entryReader] {
	return append([]key[entryReader]{
		{"trust_domains", func(r *entryReader, v *strictyaml.Node) { r.domains = v }},
		{"unlisted", func(r *entryReader, v *strictyaml.Node) {
			unlisted, _ := v.Bool()
			r.part.once("unlisted", v, func(e *allowlist.Entry) { e.Unlisted = unlisted })
		}},
	}, entryTable()...)
}

// entryTable are the keys that every entry may have.
func entryTable() []key[entryReader] {
	return []key[entryReader]{
		{"owner", func(r *entryReader, v *strictyaml.Node) {
			owner := readNote(v)
			r.part.once("owner", v, func(e *allowlist.Entry) { e.Owner = owner })
		}},
		{"accept", func(r *entryReader, v *strictyaml.Node) {
			sources := readSources(v)
			r.part.once("accept", v, func(e *allowlist.Entry) { e.Accept = sources })
		}},
		{"mode", func(r *entryReader, v *strictyaml.Node) { r.modes.mode = v }},
		{"observe_until", func(r *entryReader, v *strictyaml.Node) { r.modes.until = v }},
		{"observe_private", func(r *entryReader, v *strictyaml.Node) { r.modes.private = v }},
		{"force", func(r *entryReader, v *strictyaml.Node) { r.modes.force = v }},
		{"allow", func(r *entryReader, v *strictyaml.Node) {
			r.part.allowAt = v.KeyPos()
			r.part.allow = r.list(allowList).readAll(v)
		}},
		{"deny", func(r *entryReader, v *strictyaml.Node) { r.part.deny = r.list(denyList).readAll(v) }},
		{"limits", func(r *entryReader, v *strictyaml.Node) {
			readLimits(r.part, v, func(e *allowlist.Entry) *allowlist.Limits { return &e.Limits })
		}},
		{"shared_limits", func(r *entryReader, v *strictyaml.Node) {
			readLimits(r.part, v, func(e *allowlist.Entry) *allowlist.Limits { return &e.SharedLimits })
		}},
	}
}

func (l *loader) readEntries(d *document) {
	if d.everyone != nil {
		l.readEveryone(d)
	}
	if d.identities == nil {
		return
	}
	for item := range d.identities.Items() {
		l.readIdentity(d, item)
	}
}

func (l *loader) readIdentity(d *document, item *strictyaml.Node) {
	p := &part{in: d, at: item.Pos()}
	r := entryReader{loader: l, part: p}
	said := takeKeys(&r, item, l.identityTable)
	r.modes.read(p)
	id := r.id
	if id == nil {
		if said {
			item.Errorf("id is missing: write the SPIFFE ID that the entry is for")
		}
		return
	}
	pattern, ok := identityPattern(id)
	if !ok || !d.inScope(pattern, id) {
		return
	}
	if e := l.entries[pattern]; e != nil && e.in == d {
		id.Errorf("%s has an entry in this file already, at %s: write one", pattern, e.at)
		return
	}
	l.entry(pattern).add(p, &l.errs)
}

func (l *loader) readEveryone(d *document) {
	if !d.scope.IsZero() {
		d.everyone.KeyErrorf("a file with a scope (%s) speaks of the identities inside it: move everyone to another file", d.scopeAt)
	}
	p := &part{in: d, at: d.everyone.KeyPos()}
	r := entryReader{loader: l, part: p}
	if !takeKeys(&r, d.everyone, everyoneTable()) {
		return // an error already
	}
	r.modes.read(p)
	all := readUnique(r.domains, readTrustDomain)
	switch {
	case r.domains != nil:
	case l.opts.TrustDomain.IsZero():
		d.everyone.KeyErrorf("trust_domains is missing: name those whose identities it is for; the default is the gateway's own, which --trust-domain names to exeat policy")
	default:
		all = []spiffeid.TrustDomain{l.opts.TrustDomain}
	}
	if more := len(all) - 1; more > 0 && !l.grow(more*(len(p.allow)+len(p.deny)), p.at) {
		return
	}
	for _, td := range all {
		l.entry(allowlist.EveryonePattern(td)).add(p, &l.errs)
	}
}

func readSources(v *strictyaml.Node) allowlist.Sources {
	var all []allowlist.Source
	for item := range v.OneOrMore() {
		text, ok := item.Text()
		if !ok {
			continue
		}
		source, ok := allowlist.ParseSource(text)
		switch {
		case !ok:
			item.Errorf("unknown way to prove an identity %q: %s", text, strictyaml.Candidates(text, sourceWords()))
		case slices.Contains(all, source):
			item.Errorf("%s stands in the list already: remove one", source)
		default:
			all = append(all, source)
		}
	}
	return allowlist.SourcesOf(all...)
}

func sourceWords() []string {
	var words []string
	for s := allowlist.SourceX509SVID; s <= allowlist.SourceMap; s++ {
		words = append(words, s.String())
	}
	return words
}

// limitsReader reads the limits of an entry, which are set one by one.
type limitsReader struct {
	part *part
	key  string // limits or shared_limits
	of   func(*allowlist.Entry) *allowlist.Limits
}

// limitTable are the keys of limits and shared_limits.
func limitTable() []key[limitsReader] {
	const most = 1_000_000_000
	number := func(field func(*allowlist.Limits) *int) func(*limitsReader, *strictyaml.Node) {
		return func(r *limitsReader, v *strictyaml.Node) {
			n, _ := v.Int(1, most)
			r.once(v, func(l *allowlist.Limits) { *field(l) = n })
		}
	}
	return []key[limitsReader]{
		{"tunnels", number(func(l *allowlist.Limits) *int { return &l.Tunnels })},
		{"connects_per_second", number(func(l *allowlist.Limits) *int { return &l.ConnectsPerSecond })},
		{"dns_per_second", number(func(l *allowlist.Limits) *int { return &l.DNSPerSecond })},
		{"upload_per_hour", func(r *limitsReader, v *strictyaml.Node) {
			n, _ := v.Bytes()
			r.once(v, func(l *allowlist.Limits) { l.UploadPerHour = n })
		}},
	}
}

func (r *limitsReader) once(v *strictyaml.Node, set func(*allowlist.Limits)) {
	of := r.of
	r.part.once(r.key+"."+v.Name(), v, func(e *allowlist.Entry) { set(of(e)) })
}

func readLimits(p *part, v *strictyaml.Node, of func(*allowlist.Entry) *allowlist.Limits) {
	takeKeys(&limitsReader{p, v.Name(), of}, v, limitTable())
}

// entry returns the entry of a pattern, a new one if no file has spoken of it.
func (l *loader) entry(pattern allowlist.IdentityPattern) *entry {
	e := l.entries[pattern]
	if e == nil {
		e = &entry{Entry: allowlist.Entry{Pattern: pattern}}
		l.entries[pattern] = e
		l.order = append(l.order, e)
	}
	return e
}

// add adds what one file says to what earlier files said.
func (e *entry) add(p *part, errs *strictyaml.Errors) {
	e.in, e.at = p.in, p.at
	for _, s := range p.settings {
		if first, ok := e.set[s.key]; ok {
			errs.Add(s.at, "%s: it is set for %s at %s: set it once", s.key, e.Pattern, first)
			continue
		}
		if e.set == nil {
			e.set = make(map[string]strictyaml.Pos)
		}
		e.set[s.key] = s.at
		s.apply(&e.Entry)
	}
	for name, at := range p.names {
		if first, ok := e.names[name]; ok {
			errs.Add(at, "name: a rule of %s is named %q at %s: rename one", e.Pattern, name, first)
			continue
		}
		if e.names == nil {
			e.names = make(map[string]strictyaml.Pos)
		}
		e.names[name] = at
	}
	e.Allow = append(e.Allow, p.allow...)
	e.Deny = append(e.Deny, p.deny...)
	e.InheritMode = e.InheritMode || p.inherits
	if p.allowAt == (strictyaml.Pos{}) {
		return
	}
	if e.Allow == nil {
		e.Allow = []allowlist.Rule{} // an empty list is one, too
	}
	if !p.saysMode {
		e.bare = append(e.bare, p.allowAt)
	}
}

// compareLimits refuses, when every file has been read, a limit of each identity
// that is larger than what all identities of the pattern share: it would never be
// reached.
func (e *entry) compareLimits(errs *strictyaml.Errors) {
	for _, limit := range []struct {
		key         string
		each, total int64
	}{
		{"tunnels", int64(e.Limits.Tunnels), int64(e.SharedLimits.Tunnels)},
		{"connects_per_second", int64(e.Limits.ConnectsPerSecond), int64(e.SharedLimits.ConnectsPerSecond)},
		{"dns_per_second", int64(e.Limits.DNSPerSecond), int64(e.SharedLimits.DNSPerSecond)},
		{"upload_per_hour", e.Limits.UploadPerHour, e.SharedLimits.UploadPerHour},
	} {
		if limit.total > 0 && limit.each > limit.total {
			errs.Add(e.set["limits."+limit.key], "%s: %d of each identity is never reached, since all of them share %d (%s): lower it, or remove the key",
				limit.key, limit.each, limit.total, e.set["shared_limits."+limit.key])
		}
	}
}

// settleMode looks, when every file has been read, at the lists of the pattern
// that say nothing of a mode. They enforce, so they neither stand beside a mode
// that observes nor let one through that less specific entries set.
func (e *entry) settleMode(errs *strictyaml.Errors) {
	if len(e.bare) > 0 {
		e.InheritMode = false
	}
	if e.Mode != allowlist.ModeObserve {
		return
	}
	for _, at := range e.bare {
		errs.Add(at, "allow: %s is observed, at %s, and the file of this list says no mode: write mode: inherit in its entry if the list is to be observed, too", e.Pattern, e.set["mode"])
	}
}

// modeKeys are the keys that only together say how an entry is enforced, so
// one file sets them all.
type modeKeys struct{ mode, until, private, force *strictyaml.Node }

func (m *modeKeys) read(p *part) {
	var mode allowlist.Mode
	var until time.Time
	var private bool
	if m.mode != nil {
		p.saysMode = true
		switch word, _ := m.mode.Word("enforce", "observe", "inherit"); word {
		case "inherit":
			p.inherits = true
		case "enforce":
			mode = allowlist.ModeEnforce
		case "observe":
			mode = allowlist.ModeObserve
		}
	}
	if m.until != nil {
		until, _ = m.until.Until()
	}
	if m.private != nil {
		private, _ = m.private.Bool()
	}
	if m.force != nil {
		p.saysMode = true
		m.force.Word("enforce")
	}
	if !m.consistent(mode, p.inherits) || p.inherits {
		return
	}
	force := m.force != nil
	if force {
		mode = allowlist.ModeEnforce
	}
	for _, v := range []*strictyaml.Node{m.mode, m.force} {
		if v != nil {
			p.once("mode", v, func(e *allowlist.Entry) {
				e.Mode, e.ObserveUntil, e.ObservePrivate, e.Force = mode, until, private, force
			})
			return
		}
	}
}

// consistent checks the keys against each other.
func (m *modeKeys) consistent(mode allowlist.Mode, inherits bool) bool {
	ok := true
	if m.mode != nil && mode == allowlist.ModeUnset && !inherits {
		return false // reported
	}
	if inherits && m.force != nil {
		m.force.KeyErrorf("enforce contradicts mode: inherit: remove one")
		ok = false
	}
	if mode == allowlist.ModeObserve {
		if m.until == nil {
			m.mode.KeyErrorf("observe has no end: write observe_until: with the last day, such as 2027-03-01")
			ok = false
		}
		if m.force != nil {
			m.force.KeyErrorf("enforce contradicts mode: observe: remove one")
			ok = false
		}
		return ok
	}
	for _, v := range []*strictyaml.Node{m.until, m.private} {
		if v != nil {
			v.KeyErrorf("only with mode: observe, in the same entry of the same file")
			ok = false
		}
	}
	return ok
}
