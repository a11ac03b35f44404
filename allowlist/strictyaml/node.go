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
	empty   kind = iota // nothing stands there
	refused             // reported when the file was parsed
	scalar
	list
	mapping
)

// document is what all nodes of one file share.
type document struct {
	file string
	errs *Errors
}

// Node is a value in a file: a scalar, a list, or keys with values. Its readers
// add an error and return false if it is not what they read. A node is not
// safe for concurrent use.
type Node struct {
	doc      *document
	name     string // its key, or that of the list it stands in; "" for the root
	text     string
	children []Node

	line, column       int32
	keyLine, keyColumn int32

	kind  kind
	plain bool // a scalar without quotes
	item  bool // stands in a list
	read  bool // a reader was called
}

// CollectIn makes the readers add their errors to errs from now on: for a tree
// that was walked without any and is walked again.
func (n *Node) CollectIn(errs *Errors) { n.doc.errs = errs }

// Name returns the key of a value, and of an item the key of its list.
func (n *Node) Name() string { return n.name }

// Pos returns the place of the value; where nothing stands, that of its key.
func (n *Node) Pos() Pos {
	if n.kind == empty {
		return n.KeyPos()
	}
	return Pos{n.doc.file, int(n.line), int(n.column)}
}

// KeyPos returns the place of the key, and of an item that of the item.
func (n *Node) KeyPos() Pos { return Pos{n.doc.file, int(n.keyLine), int(n.keyColumn)} }

// IsEmpty reports whether nothing stands there: a key without a value, a file
// without a document.
func (n *Node) IsEmpty() bool { return n.kind == empty }

// IsScalar reports whether the value is neither a list nor keys with values.
func (n *Node) IsScalar() bool { return n.kind == scalar }

// IsList reports whether n is a list.
func (n *Node) IsList() bool { return n.kind == list }

// IsMapping reports whether it is keys with values.
func (n *Node) IsMapping() bool { return n.kind == mapping }

// Errorf adds an error at the value; the message begins with the key.
func (n *Node) Errorf(format string, args ...any) {
	n.doc.errs.Add(n.Pos(), "%s%s", n.label(), fmt.Sprintf(format, args...))
}

// KeyErrorf adds an error at the key; the message begins with the key.
func (n *Node) KeyErrorf(format string, args ...any) {
	n.doc.errs.Add(n.KeyPos(), "%s%s", n.label(), fmt.Sprintf(format, args...))
}

// label begins a message.
func (n *Node) label() string {
	switch {
	case n.name == "":
		return ""
	case n.item:
		return "item of " + shorten(n.name) + ": "
	}
	return shorten(n.name) + ": "
}

// Fields returns the keys and their values in the order of the file. The
// caller handles each key that it knows and calls [Node.Unknown] for any other.
// No key at all is an error.
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

// Items returns the items of a list, which may be written empty: [].
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

// OneOrMore returns the items of a list that must have one, or the value itself
// if it is a scalar.
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

// Unknown adds the error that nobody knows this key.
func (n *Node) Unknown(known ...string) {
	n.Skip()
	n.doc.errs.Add(n.KeyPos(), "unknown key %s: %s", quote(n.name), Candidates(n.name, known))
}

// Skip marks a value as read, for a key whose value does not matter.
func (n *Node) Skip() {
	n.read, n.children = true, nil
}

// ReportUnread adds an error for each value that no reader was called for: a
// net under the caller, because nothing may load and do nothing. Call it on
// the root after a walk without errors.
func (n *Node) ReportUnread() {
	if !n.read && n.kind != refused {
		n.KeyErrorf("nothing reads this value: remove it")
		return
	}
	for i := range n.children {
		n.children[i].ReportUnread()
	}
}

// is marks the value as read and reports whether it is of a kind; else it adds
// an error.
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

// Candidates says which words a misspelt one could have been, for the end of a
// message: "did you mean …?" and all of them, if they are not too many.
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

// distance counts the bytes to insert, remove or replace (Levenshtein).
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

// quote returns text of a file as a message may show it.
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
