package policyfile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// maxRules bounds the number of rules in a policy after every use is expanded, so that
// few bytes cannot become very many rules.
const maxRules = 1_000_000

// Spec checks all files and returns the Spec of the policy. The error is a
// [strictyaml.Errors] with all errors of all files, or ErrEmpty.
func (f *Files) Spec(opts Options) (allowlist.Spec, error) {
	return f.spec(newWalker(opts))
}

func (f *Files) spec(w *walker) (allowlist.Spec, error) {
	if f.Empty() {
		return allowlist.Spec{}, ErrEmpty
	}
	for _, file := range f.list {
		w.open(file)
	}
	for _, d := range w.documents { // first, because the rules of every file may use them
		w.readDestinations(d)
	}
	for _, d := range w.documents {
		w.readEntries(d)
		w.readQuarantine(d)
	}
	for _, e := range w.order {
		e.resolveMode(&w.errs)
		e.compareLimits(&w.errs)
	}
	if err := w.finish(); err != nil {
		return allowlist.Spec{}, err
	}
	spec := allowlist.Spec{Quarantine: w.quarantine}
	for _, e := range w.order {
		spec.Entries = append(spec.Entries, e.Entry)
	}
	return spec, nil
}

// Quarantine returns the quarantine list in quarantine.yaml, or nil if there is no such
// file. It reports no errors of other files.
func (f *Files) Quarantine() ([]allowlist.Quarantined, error) {
	at := slices.IndexFunc(f.list, func(file file) bool { return file.name == quarantineFile })
	if at < 0 {
		return nil, nil
	}
	w := newWalker(Options{})
	w.open(f.list[at])
	for _, d := range w.documents {
		w.readQuarantine(d)
	}
	if err := w.finish(); err != nil {
		return nil, err
	}
	return w.quarantine, nil
}

// walker walks the trees of the files of one policy and collects their content.
type walker struct {
	opts  Options
	parse func(file, *strictyaml.Errors) *strictyaml.Node
	errs  strictyaml.Errors

	// The tables of keys that are used many times, made once.
	identityTable []key[entryReader]
	ruleTable     []key[ruleKeys]

	classifier   *allowlist.Classifier // knows the classes that all hosts have, and no host
	documents    []*document
	destinations map[string]*destination
	entries      map[allowlist.IdentityPattern]*entry
	order        []*entry // the entries in the order of the files
	quarantine   []allowlist.Quarantined
	rules        int // the number of rules so far, counted by countRules
}

// document is the top level of one file.
type document struct {
	name    string // relative to the policy root
	root    *strictyaml.Node
	scope   allowlist.IdentityPattern // zero if the file has no scope
	scopeAt strictyaml.Pos

	version, destinations, everyone, identities, quarantine *strictyaml.Node // nil if missing
}

// documentTable returns the keys of a file.
func documentTable() []key[document] {
	return []key[document]{
		{"version", func(d *document, v *strictyaml.Node) { d.version = v }},
		{"destinations", func(d *document, v *strictyaml.Node) { d.destinations = v }},
		{"everyone", func(d *document, v *strictyaml.Node) { d.everyone = v }},
		{"identities", func(d *document, v *strictyaml.Node) { d.identities = v }},
		{"quarantine", func(d *document, v *strictyaml.Node) { d.quarantine = v }},
		{"scope", func(d *document, v *strictyaml.Node) {
			d.scopeAt = v.Pos()
			d.scope, _ = identityPattern(v)
		}},
	}
}

// checkVersion adds an error if the version is missing or this program cannot read it.
func (d *document) checkVersion(start strictyaml.Pos, errs *strictyaml.Errors) {
	if d.version == nil {
		errs.Add(start, "version is missing: write version: 1")
		return
	}
	if version, ok := d.version.Int(0, 1_000_000); ok && version != 1 {
		d.version.Errorf("this program reads version 1, not %d", version)
	}
}

// inScope reports whether the file may have an entry for p, and adds an error at v if
// not.
func (d *document) inScope(p allowlist.IdentityPattern, v *strictyaml.Node) bool {
	if d.scope.IsZero() || d.scope.Contains(p) {
		return true
	}
	v.Errorf("%s lies outside of this file's scope %s (%s): move it to another file", p, d.scope, d.scopeAt)
	return false
}

// place returns file:line of a place for records. It is the same on every replica.
func (d *document) place(at strictyaml.Pos) string {
	return fmt.Sprintf("%s:%d", d.name, at.Line)
}

func newWalker(opts Options) *walker {
	return &walker{
		opts:          opts,
		parse:         parse,
		identityTable: identityTable(),
		ruleTable:     ruleTable(),
		classifier:    allowlist.NewClassifier(allowlist.Local{}),
		destinations:  make(map[string]*destination),
		entries:       make(map[allowlist.IdentityPattern]*entry),
	}
}

func parse(f file, errs *strictyaml.Errors) *strictyaml.Node {
	return strictyaml.Parse(f.path, f.data, errs)
}

// finish returns the errors. If there are none, it first checks that every value was
// read.
func (w *walker) finish() error {
	if len(w.errs) == 0 {
		for _, d := range w.documents {
			d.root.ReportUnread()
		}
	}
	return w.errs.Err()
}

// open parses a file and reads its top level.
func (w *walker) open(f file) {
	start := strictyaml.Pos{File: f.path, Line: 1, Column: 1}
	if len(f.data) == 0 {
		w.errs.Add(start, "the file has 0 bytes: write at least version: 1")
		return
	}
	root := w.parse(f, &w.errs)
	switch {
	case root == nil:
		return
	case root.IsEmpty():
		w.errs.Add(start, "the file says nothing: write at least version: 1")
		return
	case root.Has("listeners") && !root.Has("identities"):
		w.errs.Add(start, "this is the configuration of a gateway: name the policy, and check the configuration with exeat serve --check")
		return
	}
	d := &document{name: f.name, root: root}
	hasKeys := false
	for name, v := range root.Fields() {
		hasKeys = true
		if f.name == quarantineFile && name != "version" && name != "quarantine" {
			v.KeyErrorf("%s holds version and quarantine only: move it to another file", quarantineFile)
			v.Skip()
			continue
		}
		readKey(d, v, documentTable())
	}
	if !hasKeys {
		return // an error has been added already
	}
	d.checkVersion(start, &w.errs)
	w.documents = append(w.documents, d)
}

// quarantineLine is an item of quarantine while it is read.
type quarantineLine struct {
	allowlist.Quarantined
	id *strictyaml.Node // the value of id; nil if missing
}

// quarantineTable returns the keys of an item of quarantine.
func quarantineTable() []key[quarantineLine] {
	return []key[quarantineLine]{
		{"id", func(c *quarantineLine, v *strictyaml.Node) {
			c.id = v
			c.Pattern, _ = identityPattern(v)
		}},
		{"reason", func(c *quarantineLine, v *strictyaml.Node) { c.Reason, _ = v.Text() }},
	}
}

func (w *walker) readQuarantine(d *document) {
	if d.quarantine == nil {
		return
	}
	first := make(map[allowlist.IdentityPattern]strictyaml.Pos)
	for item := range d.quarantine.Items() {
		c := quarantineLine{Quarantined: allowlist.Quarantined{At: d.place(item.Pos())}}
		if hasKeys := readKeys(&c, item, quarantineTable()); hasKeys && c.id == nil {
			item.Errorf("id is missing: write the SPIFFE ID to cut off")
		}
		if c.Pattern.IsZero() || !d.inScope(c.Pattern, c.id) {
			continue
		}
		if at, ok := first[c.Pattern]; ok {
			c.id.Errorf("%s is in quarantine already, at %s: remove one", c.Pattern, at)
			continue
		}
		first[c.Pattern] = c.id.Pos()
		w.quarantine = append(w.quarantine, c.Quarantined)
	}
}

// countRules adds n rules to the count and reports whether the policy still has at most
// maxRules. When it has more for the first time, countRules adds an error at a place.
func (w *walker) countRules(n int, at strictyaml.Pos) bool {
	before := w.rules
	w.rules += n
	if before <= maxRules && w.rules > maxRules {
		w.errs.Add(at, "the policy has more than %d rules from here on, counting those that use and everyone repeat", maxRules)
	}
	return w.rules <= maxRules
}

func identityPattern(v *strictyaml.Node) (allowlist.IdentityPattern, bool) {
	text, ok := v.Text()
	if !ok {
		return allowlist.IdentityPattern{}, false
	}
	if !strings.HasPrefix(text, "spiffe://") {
		v.Errorf("%q is not a SPIFFE ID: write one such as spiffe://example.org/ns/billing/sa/invoices", text)
		return allowlist.IdentityPattern{}, false
	}
	p, err := allowlist.ParseIdentityPattern(text)
	if err != nil {
		v.Errorf("%v", err)
		return allowlist.IdentityPattern{}, false
	}
	return p, true
}
