package allowlist

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Policy is a compiled policy. It is immutable and safe for concurrent use. A nil or zero
// Policy denies everything as policy-unavailable.
type Policy struct {
	version    string // version of the spec, or of the canonical form if the spec has none
	quarantine string // version of the quarantine, in inline and list together
	hash       hasher
	exact      index[string, entry] // entries by SPIFFE ID
	one, many  index[string, entry] // entries by the prefix before /* and /**
	everyone   index[string, entry] // entries by the ID of the trust domain
	manyDepths depths               // depths of the prefixes in many
	inline     *QuarantineList      // quarantine lines of the Spec; nil if Compile did not make the policy
	list       *QuarantineList      // the list that WithQuarantine sets
	classifier *Classifier
	limited    bool        // an entry sets limits
	shared     bool        // an entry sets shared limits
	dates      []time.Time // times at which a rule or a mode ends, sorted
}

// entry is a compiled Entry.
type entry struct {
	table
	set    bool    // false in a new entry that Compile has not filled in yet
	denies denials // kinds of its deny rules
	// parents holds the names above those that the entry allows. The value is the time
	// from which the entry allows nothing below the name any more; zero means never.
	parents index[string, time.Time]

	owner          string
	accept         Proofs
	mode           Mode
	force          bool // no more specific entry changes ModeEnforce
	unlisted       bool
	observePrivate bool
	observeUntil   time.Time

	pattern        IdentityPattern
	limits, shared Limits
}

// CompiledRule is a rule of a compiled policy. It is immutable.
type CompiledRule struct {
	Rule
	name    string
	place   string
	methods map[string]bool // the set of Methods; nil if any method is allowed
	types   typeSet         // query types that the rule allows
	ranges  prefixSet       // Addresses, or CIDR; nil if the rule has neither
}

// Name returns the name of the rule. A rule without one has 10 hex digits of a hash over
// the identity pattern and the rule, so that an edit elsewhere in the file does not
// rename it.
func (r *CompiledRule) Name() string { return r.name }

// Place returns file:line of the rule, and ", used at file:line" after it if a use adds
// the rule to the entry.
func (r *CompiledRule) Place() string { return r.place }

// Compile compiles a spec. The spec's slices must not be changed afterwards. The error
// names the entry or the rule that is wrong. Package policyfile makes only specs that
// compile.
func Compile(spec Spec) (*Policy, error) {
	p := &Policy{
		version:    spec.Version,
		hash:       newHasher(),
		inline:     NewQuarantineList(spec.Quarantine),
		list:       NewQuarantineList(nil),
		classifier: NewClassifier(Local{}),
	}
	for i := range spec.Entries {
		if err := p.add(&spec.Entries[i]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(p.dates, time.Time.Compare)
	p.dates = slices.CompactFunc(p.dates, time.Time.Equal)
	if p.version == "" {
		p.version = p.canonicalVersion()
	}
	p.quarantine = quarantineVersion(p.inline, p.list)
	return p, nil
}

// WithQuarantine returns a copy of the policy with a quarantine list beside the lines of
// its own files. It replaces the list of an earlier call; nil means no list.
func (p *Policy) WithQuarantine(list *QuarantineList) *Policy {
	if list == nil {
		list = NewQuarantineList(nil)
	}
	if p == nil {
		return nil
	}
	q := *p
	q.list = list
	q.quarantine = quarantineVersion(q.inline, q.list)
	return &q
}

// WithClassifier returns a copy of the policy with a classifier that knows the host. The
// classifier that Compile sets knows the special-purpose ranges only; nil means that one.
func (p *Policy) WithClassifier(c *Classifier) *Policy {
	if p == nil {
		return nil
	}
	if c == nil {
		c = NewClassifier(Local{})
	}
	q := *p
	q.classifier = c
	return &q
}

// NextEnd returns the first time after now at which a rule or a mode ends. What the rule
// or the mode allowed must be decided again then. ok is false if there is no such time.
func (p *Policy) NextEnd(now time.Time) (at time.Time, ok bool) {
	if p == nil {
		return time.Time{}, false
	}
	i, exact := slices.BinarySearchFunc(p.dates, now, time.Time.Compare)
	if exact {
		i++
	}
	if i == len(p.dates) {
		return time.Time{}, false
	}
	return p.dates[i], true
}

// Version returns the version of the policy without its quarantine, or "" for a nil
// policy.
func (p *Policy) Version() string {
	if p == nil {
		return ""
	}
	return p.version
}

// QuarantineVersion returns the version of the quarantine, which depends on the policy's
// own lines and on the list of WithQuarantine. It is "" if nothing is in quarantine, and
// for a nil policy.
func (p *Policy) QuarantineVersion() string {
	if p == nil {
		return ""
	}
	return p.quarantine
}

func (p *Policy) add(e *Entry) error {
	var at *index[string, entry]
	switch e.Pattern.kind {
	case patternExact:
		at = &p.exact
	case patternOne:
		at = &p.one
	case patternMany:
		at = &p.many
		p.manyDepths.set(e.Pattern.depth)
	case patternAll:
		at = &p.everyone
	case patternNone:
		return errors.New("an entry has no identity pattern")
	}
	if e.Mode == ModeObserve && e.ObserveUntil.IsZero() {
		return fmt.Errorf("%s: mode observe has no end", e.Pattern)
	}
	compiled := at.put(p.hash.text(e.Pattern.prefix), e.Pattern.prefix)
	if compiled.set {
		return fmt.Errorf("%s has two entries", e.Pattern)
	}
	mode, accept := e.decidedMode(), e.Accept
	if e.Pattern.kind == patternAll { // no entry is less specific, so a default that is written out changes nothing
		if mode == ModeEnforce {
			mode = ModeUnset
		}
		if accept == defaultProofs {
			accept = 0
		}
	}
	*compiled = entry{
		set: true, owner: e.Owner, accept: accept, mode: mode, force: e.Force, unlisted: e.Unlisted,
		observePrivate: e.ObservePrivate, observeUntil: e.ObserveUntil,
		pattern: e.Pattern, limits: e.Limits, shared: e.SharedLimits,
	}
	p.limited = p.limited || e.Limits != Limits{}
	p.shared = p.shared || e.SharedLimits != Limits{}
	p.noteEnds(e)
	return compiled.addRules(p.hash, p.classifier, e)
}

func (p *Policy) noteEnds(e *Entry) {
	if e.Mode == ModeObserve {
		p.dates = append(p.dates, e.ObserveUntil)
	}
	for i := range e.Allow {
		if at := e.Allow[i].Expires; !at.IsZero() {
			p.dates = append(p.dates, at)
		}
	}
}

func (c *entry) addRules(h hasher, classes *Classifier, e *Entry) error {
	for i := range e.Allow {
		r := compileRule(classes, e.Pattern, "allow", &e.Allow[i], PortRange{443, 443})
		if err := c.add(h, allowList, r); err != nil {
			return fmt.Errorf("%s: %w", e.Pattern, err)
		}
		c.noteParents(h, r)
	}
	for i := range e.Deny {
		r := compileRule(classes, e.Pattern, "deny", &e.Deny[i], PortRange{1, 65535})
		if err := c.add(h, denyList, r); err != nil {
			return fmt.Errorf("%s: %w", e.Pattern, err)
		}
		c.denies |= r.denial()
	}
	c.finish()
	return nil
}

// noteParents adds the names above the host pattern of an allow rule to parents; the x of
// *.x and **.x is one of them.
func (c *entry) noteParents(h hasher, r *CompiledRule) {
	if r.CIDR.IsValid() {
		return
	}
	name, found := r.Host.name, true
	if r.Host.kind == patternExact {
		_, name, found = strings.Cut(name, ".")
	}
	for ; found; _, name, found = strings.Cut(name, ".") {
		hash := h.text(name)
		until := c.parents.get(hash, name)
		switch {
		case until == nil:
			*c.parents.put(hash, name) = r.Expires
		case until.IsZero():
			return // the names above it have no end either
		case r.Expires.IsZero() || r.Expires.After(*until):
			*until = r.Expires
		}
	}
}

// QuarantineList is a compiled quarantine list. It is immutable.
type QuarantineList struct {
	exact, one, many map[string]*Quarantined
	manyDepths       depths // depths of the prefixes in many
}

// NewQuarantineList compiles a list. Of several lines with the same pattern it keeps the
// first.
func NewQuarantineList(lines []Quarantined) *QuarantineList {
	l := &QuarantineList{exact: map[string]*Quarantined{}, one: map[string]*Quarantined{}, many: map[string]*Quarantined{}}
	for _, q := range slices.Backward(lines) {
		switch q.Pattern.kind {
		case patternExact:
			l.exact[q.Pattern.prefix] = &q
		case patternOne:
			l.one[q.Pattern.prefix] = &q
		case patternMany, patternAll:
			l.many[q.Pattern.prefix] = &q
			l.manyDepths.set(q.Pattern.depth)
		case patternNone:
		}
	}
	return l
}

// Quarantined returns the identity patterns that are in quarantine, by the policy's own
// lines or by the list of WithQuarantine, sorted. It returns nil for a nil policy.
func (p *Policy) Quarantined() []string {
	if p == nil {
		return nil
	}
	var all []string
	for _, l := range []*QuarantineList{p.inline, p.list} {
		for q := range l.lines {
			all = append(all, q.Pattern.String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// find returns the line that matches id, or nil if there is none.
func (l *QuarantineList) find(id spiffeid.ID) *Quarantined {
	if len(l.exact)+len(l.one)+len(l.many) == 0 {
		return nil
	}
	s := id.String()
	if q := l.exact[s]; q != nil {
		return q
	}
	return l.around(patternExact, s, segments(id))
}

// around returns the most specific line whose pattern is another one than the given one
// and contains it, or nil. depth is the number of path segments of prefix.
func (l *QuarantineList) around(kind patternKind, prefix string, depth int) *Quarantined {
	if kind == patternOne && l.many[prefix] != nil {
		return l.many[prefix]
	}
	for direct := kind == patternExact; depth > 0; direct = false {
		depth--
		prefix = parent(prefix)
		if direct && l.one[prefix] != nil {
			return l.one[prefix]
		}
		if l.manyDepths.has(depth) && l.many[prefix] != nil {
			return l.many[prefix]
		}
	}
	return nil
}

// lines yields all lines in no particular order.
func (l *QuarantineList) lines(yield func(*Quarantined) bool) {
	for _, kind := range []map[string]*Quarantined{l.exact, l.one, l.many} {
		for _, q := range kind {
			if !yield(q) {
				return
			}
		}
	}
}
