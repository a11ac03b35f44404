package strictyaml

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

type kind uint8

const (
	empty   kind = iota // there is no value
	refused             // the value was reported when the file was parsed
	scalar
	list
	mapping
)

// document is shared by all nodes of one file.
type document struct {
	file string
	errs *Errors
}

// Node is a value in a file: a scalar, a list, or keys with values. Its readers add an
// error and return false if the value is not of the type that they read. A node is not
// safe for concurrent use.
type Node struct {
	doc      *document
	name     string // the key of the value, or of the list that it is an item of; "" for the root
	text     string // the text of a scalar
	children []Node // the items of a list, or the values of a mapping

	line, column       int32 // place of the value
	keyLine, keyColumn int32 // place of the key; of the value if it is an item

	kind  kind
	plain bool // the value is a scalar without quotes
	item  bool // the value is an item of a list
	read  bool // a reader was called
}

// CollectIn makes the readers of the whole file add their errors to errs from now on. It
// serves to walk a tree another time that was walked without errors.
func (n *Node) CollectIn(errs *Errors) { n.doc.errs = errs }

// Name returns the key of the value, and for an item the key of its list.
func (n *Node) Name() string { return n.name }

// Pos returns the place of the value, or of its key if there is no value.
func (n *Node) Pos() Pos {
	if n.kind == empty {
		return n.KeyPos()
	}
	return Pos{n.doc.file, int(n.line), int(n.column)}
}

// KeyPos returns the place of the key, and for an item the place of the item.
func (n *Node) KeyPos() Pos { return Pos{n.doc.file, int(n.keyLine), int(n.keyColumn)} }

// IsEmpty reports whether there is no value: n is a key without a value or a file without
// a document.
func (n *Node) IsEmpty() bool { return n.kind == empty }

// IsScalar reports whether n is a scalar.
func (n *Node) IsScalar() bool { return n.kind == scalar }

// IsList reports whether n is a list.
func (n *Node) IsList() bool { return n.kind == list }

// IsMapping reports whether n is keys with values.
func (n *Node) IsMapping() bool { return n.kind == mapping }

// Errorf adds an error at the value; the message begins with the key.
func (n *Node) Errorf(format string, args ...any) {
	n.doc.errs.Add(n.Pos(), "%s%s", n.label(), fmt.Sprintf(format, args...))
}

// KeyErrorf adds an error at the key; the message begins with the key.
func (n *Node) KeyErrorf(format string, args ...any) {
	n.doc.errs.Add(n.KeyPos(), "%s%s", n.label(), fmt.Sprintf(format, args...))
}

// label returns the beginning of a message, which names the key.
func (n *Node) label() string {
	switch {
	case n.name == "":
		return ""
	case n.item:
		return "item of " + shorten(n.name) + ": "
	}
	return shorten(n.name) + ": "
}

// Fields returns the keys and their values in the order of the file. The caller handles
// each key that it knows and calls [Node.Unknown] for any other key. It is an error if
// there is no key.
func (n *Node) Fields() iter.Seq2[string, *Node] {
	return func(yield func(string, *Node) bool) {
		if !n.is(mapping) {
			return
		}
		for i := range n.children {
			if !yield(n.children[i].name, &n.children[i]) {
				return
			}
		}
	}
}

// Has reports whether the node is a mapping with the key name.
func (n *Node) Has(name string) bool {
	return n.kind == mapping && slices.ContainsFunc(n.children, func(c Node) bool { return c.name == name })
}

// Items returns the items of a list. The list may be empty ([]).
func (n *Node) Items() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		if !n.is(list) {
			return
		}
		for i := range n.children {
			if !yield(&n.children[i]) {
				return
			}
		}
	}
}

// OneOrMore returns the items of a list, which must have at least one, or the value
// itself if it is a scalar.
func (n *Node) OneOrMore() iter.Seq[*Node] {
	if n.kind == scalar {
		return func(yield func(*Node) bool) { yield(n) }
	}
	if n.kind == list && len(n.children) == 0 {
		n.Skip()
		n.Errorf("the list is empty: write an item, or remove the key")
		return func(func(*Node) bool) {}
	}
	return n.Items()
}

// Unknown adds the error that the key is unknown; known are the keys that could be meant.
func (n *Node) Unknown(known ...string) {
	n.Skip()
	n.doc.errs.Add(n.KeyPos(), "unknown key %s: %s", quote(n.name), Candidates(n.name, known))
}

// Skip marks a value as read, for a key whose value does not matter.
func (n *Node) Skip() {
	n.read, n.children = true, nil
}

// ReportUnread adds an error for each value for which no reader was called. It guards
// against faults of the caller, because no value may be accepted and have no effect. Call
// it on the root after a walk without errors.
func (n *Node) ReportUnread() {
	if !n.read && n.kind != refused {
		n.KeyErrorf("nothing reads this value: remove it")
		return
	}
	for i := range n.children {
		n.children[i].ReportUnread()
	}
}

// is marks the value as read and reports whether it is of the wanted kind. If it is not,
// is adds an error.
func (n *Node) is(want kind) bool {
	n.read = true
	if n.kind == want && (want != mapping || len(n.children) > 0) {
		return true
	}
	found := n.kind
	n.Skip()
	switch {
	case found == refused:
	case found == empty && n.name == "":
		n.Errorf("the file is empty: write key: value")
	case found == empty:
		n.Errorf("has no value: write one, or remove the key")
	case found == mapping && want == mapping:
		n.Errorf("has no keys: write key: value, or remove it")
	default:
		n.Errorf("want %s, not %s", want.wanted(), n.found(found))
	}
	return false
}

func (k kind) wanted() string {
	switch k {
	case list:
		return "a list ([a, b], or lines that begin with -)"
	case mapping:
		return "keys with values (key: value)"
	case scalar:
		return "one value"
	case empty, refused:
	}
	return "nothing"
}

func (n *Node) found(k kind) string {
	switch k {
	case list:
		return "a list"
	case mapping:
		return "keys with values"
	case scalar:
		return quote(n.text)
	case empty, refused:
	}
	return "nothing"
}

// Candidates returns the end of a message about an unknown word: "did you mean …?" if one
// of the known words is similar, and up to 20 known words.
func Candidates(word string, known []string) string {
	if len(known) == 0 {
		return "there is none"
	}
	const most = 20
	all := strings.Join(known[:min(most, len(known))], ", ")
	if len(known) > most {
		all += ", …"
	}
	nearest := slices.MinFunc(known, func(a, b string) int { return distance(word, a) - distance(word, b) })
	if distance(word, nearest) <= (len(nearest)+2)/3 {
		return fmt.Sprintf("did you mean %q? (known: %s)", nearest, all)
	}
	return "known: " + all
}

// distance returns the number of bytes to insert, remove or replace to turn a into b
// (Levenshtein), or 64 if one of them is longer than that.
func distance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// quote returns text of a file, shortened and in quotes, for a message.
func quote(s string) string { return fmt.Sprintf("%q", shorten(s)) }

func shorten(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	cut := most
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
