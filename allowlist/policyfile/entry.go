package policyfile

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// entry is the entry of one pattern, put together from all files.
type entry struct {
	allowlist.Entry
	set   map[string]strictyaml.Pos // places of the settings that are set, by key
	names map[string]strictyaml.Pos // places of the names of rules
	in    *document                 // the last file with a part of the entry
	at    strictyaml.Pos            // the place of this part
	bare  []strictyaml.Pos          // places of the allow lists whose file sets no mode
}

// part is the part of an entry that is in one file.
type part struct {
	in          *document
	at          strictyaml.Pos
	settings    []setting
	names       map[string]strictyaml.Pos // places of the names of rules
	allow, deny []allowlist.Rule
	allowAt     strictyaml.Pos // place of the key allow; zero if it is missing
	hasMode     bool           // the file has mode or force
	inherits    bool           // the file has mode: inherit
}

// setting is the value of a key that may be set once per pattern.
type setting struct {
	key   string
	at    strictyaml.Pos
	apply func(*allowlist.Entry)
}

// once adds a setting.
func (p *part) once(key string, v *strictyaml.Node, apply func(*allowlist.Entry)) {
	p.settings = append(p.settings, setting{key, v.KeyPos(), apply})
}

// entryReader reads a part.
type entryReader struct {
	walker      *walker
	part        *part
	id, domains *strictyaml.Node // nil if missing
	modes       modeKeys
}

// list returns a reader for one of the entry's lists of rules.
func (r *entryReader) list(kind listKind) *ruleList {
	if r.part.names == nil {
		r.part.names = make(map[string]strictyaml.Pos)
	}
	return newRuleList(r.walker, r.part.in, kind, r.part.names)
}

// identityTable returns the keys of an item of identities.
func identityTable() []key[entryReader] {
	return append([]key[entryReader]{
		{"id", func(r *entryReader, v *strictyaml.Node) { r.id = v }},
	}, entryTable()...)
}

// everyoneTable returns the keys of everyone.
func everyoneTable() []key[entryReader] {
	return append([]key[entryReader]{
		{"trust_domains", func(r *entryReader, v *strictyaml.Node) { r.domains = v }},
		{"unlisted", func(r *entryReader, v *strictyaml.Node) {
			unlisted, _ := v.Bool()
			r.part.once("unlisted", v, func(e *allowlist.Entry) { e.Unlisted = unlisted })
		}},
	}, entryTable()...)
}

// entryTable returns the keys that every entry may have.
func entryTable() []key[entryReader] {
	return []key[entryReader]{
		{"owner", func(r *entryReader, v *strictyaml.Node) {
			owner := readNote(v)
			r.part.once("owner", v, func(e *allowlist.Entry) { e.Owner = owner })
		}},
		{"accept", func(r *entryReader, v *strictyaml.Node) {
			proofs := readProofs(v)
			r.part.once("accept", v, func(e *allowlist.Entry) { e.Accept = proofs })
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

func (w *walker) readEntries(d *document) {
	if d.everyone != nil {
		w.readEveryone(d)
	}
	if d.identities == nil {
		return
	}
	for item := range d.identities.Items() {
		w.readIdentity(d, item)
	}
}

func (w *walker) readIdentity(d *document, item *strictyaml.Node) {
	p := &part{in: d, at: item.Pos()}
	r := entryReader{walker: w, part: p}
	hasKeys := readKeys(&r, item, w.identityTable)
	r.modes.read(p)
	id := r.id
	if id == nil {
		if hasKeys {
			item.Errorf("id is missing: write the SPIFFE ID that the entry is for")
		}
		return
	}
	pattern, ok := identityPattern(id)
	if !ok || !d.inScope(pattern, id) {
		return
	}
	if e := w.entries[pattern]; e != nil && e.in == d {
		id.Errorf("%s has an entry in this file already, at %s: write one", pattern, e.at)
		return
	}
	w.entry(pattern).add(p, &w.errs)
}

func (w *walker) readEveryone(d *document) {
	if !d.scope.IsZero() {
		d.everyone.KeyErrorf("a file with a scope (%s) speaks of the identities inside it: move everyone to another file", d.scopeAt)
	}
	p := &part{in: d, at: d.everyone.KeyPos()}
	r := entryReader{walker: w, part: p}
	if !readKeys(&r, d.everyone, everyoneTable()) {
		return // an error has been added already
	}
	r.modes.read(p)
	all := readUnique(r.domains, readTrustDomain)
	switch {
	case r.domains != nil:
	case w.opts.TrustDomain.IsZero():
		d.everyone.KeyErrorf("trust_domains is missing: name those whose identities it is for; the default is the gateway's own, which --trust-domain names to exeat policy")
	default:
		all = []spiffeid.TrustDomain{w.opts.TrustDomain}
	}
	if more := len(all) - 1; more > 0 && !w.countRules(more*(len(p.allow)+len(p.deny)), p.at) {
		return
	}
	for _, td := range all {
		w.entry(allowlist.EveryonePattern(td)).add(p, &w.errs)
	}
}

func readProofs(v *strictyaml.Node) allowlist.Proofs {
	var all []allowlist.Proof
	for item := range v.OneOrMore() {
		text, ok := item.Text()
		if !ok {
			continue
		}
		proof, ok := allowlist.ParseProof(text)
		switch {
		case !ok:
			item.Errorf("unknown way to prove an identity %q: %s", text, strictyaml.Candidates(text, proofWords()))
		case slices.Contains(all, proof):
			item.Errorf("%s stands in the list already: remove one", proof)
		default:
			all = append(all, proof)
		}
	}
	return allowlist.ProofsOf(all...)
}

func proofWords() []string {
	var words []string
	for p := allowlist.ProofX509SVID; p <= allowlist.ProofSourceMap; p++ {
		words = append(words, p.String())
	}
	return words
}

// limitsReader reads limits or shared_limits. Each limit in them is a setting of its own.
type limitsReader struct {
	part   *part
	key    string // limits or shared_limits
	limits func(*allowlist.Entry) *allowlist.Limits
}

// limitTable returns the keys of limits and shared_limits.
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
	limits := r.limits
	r.part.once(r.key+"."+v.Name(), v, func(e *allowlist.Entry) { set(limits(e)) })
}

func readLimits(p *part, v *strictyaml.Node, limits func(*allowlist.Entry) *allowlist.Limits) {
	readKeys(&limitsReader{p, v.Name(), limits}, v, limitTable())
}

// entry returns the entry of a pattern, and makes it if no file before had a part of it.
func (w *walker) entry(pattern allowlist.IdentityPattern) *entry {
	e := w.entries[pattern]
	if e == nil {
		e = &entry{Entry: allowlist.Entry{Pattern: pattern}}
		w.entries[pattern] = e
		w.order = append(w.order, e)
	}
	return e
}

// add adds the part in one file to the entry.
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
		e.Allow = []allowlist.Rule{} // an empty list is a list too; see allowlist.Entry
	}
	if !p.hasMode {
		e.bare = append(e.bare, p.allowAt)
	}
}

// compareLimits adds an error, when every file has been read, for each limit of single
// identities that is larger than the limit which all identities of the pattern share,
// because it would never be reached.
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

// resolveMode decides, when every file has been read, what the allow lists in files
// without a mode mean. Such a list enforces. The entry therefore does not inherit the
// mode of less specific entries, and an error is added if another file sets mode: observe
// for it.
func (e *entry) resolveMode(errs *strictyaml.Errors) {
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

// modeKeys holds the keys that together set the mode of an entry. Only one file may have
// them.
type modeKeys struct{ mode, until, private, force *strictyaml.Node }

// read adds the mode to a part.
func (m *modeKeys) read(p *part) {
	var mode allowlist.Mode
	var until time.Time
	var private bool
	if m.mode != nil {
		p.hasMode = true
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
		p.hasMode = true
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

// consistent reports whether the keys fit together, and adds an error if they do not.
func (m *modeKeys) consistent(mode allowlist.Mode, inherits bool) bool {
	ok := true
	if m.mode != nil && mode == allowlist.ModeUnset && !inherits {
		return false // an error has been added already
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
