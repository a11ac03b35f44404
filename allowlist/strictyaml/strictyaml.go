// Package strictyaml reads YAML that people write by hand and that decides
// something: policies and configuration.
//
// [Parse] turns one file into a tree of [Node]; the caller walks it with
// [Node.Fields], [Node.Items] and the typed readers ([Node.Text], [Node.Int],
// [Node.Until] …). Whatever is wrong goes into one [Errors] with its file, line
// and column and with what to write instead, and reading goes on, so that all
// errors of a load come together.
//
// Scalars are the text that stands in the file, typed by the reader that the
// caller chose: nothing is guessed, so 0443 is no port, yes is no boolean and
// 2027-01-31 is whatever the key says it is.
//
// The package refuses what makes a file mean something other than what it
// looks like: anchors, aliases, merge keys, tags, directives, duplicate keys,
// keys that are no text, a second document, control and bidirectional
// characters, more than [MaxBytes] bytes or 64 levels. It has no struct tags,
// no defaults and no output.
package strictyaml

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Pos is a place in a file. Line and Column begin at 1; the column counts
// characters, not bytes.
type Pos struct {
	File         string
	Line, Column int
}

// String returns file:line:column.
func (p Pos) String() string {
	return p.File + ":" + strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column)
}

// Compare orders places by file, line and column.
func (p Pos) Compare(q Pos) int {
	return cmp.Or(strings.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line), cmp.Compare(p.Column, q.Column))
}

// Error says what is wrong at one place.
type Error struct {
	Pos
	Msg string
}

// Error returns "file:line:column: msg".
func (e *Error) Error() string { return e.String() + ": " + e.Msg }

// Errors is everything that is wrong with the files of one load. The zero
// value is ready to use; it is not safe for concurrent use.
type Errors []*Error

// Add appends an error at a place.
func (e *Errors) Add(at Pos, format string, args ...any) {
	*e = append(*e, &Error{Pos: at, Msg: fmt.Sprintf(format, args...)})
}

// Err returns nil if nothing was added, else the errors sorted by place.
func (e Errors) Err() error {
	if len(e) == 0 {
		return nil
	}
	sorted := slices.Clone(e)
	slices.SortStableFunc(sorted, func(a, b *Error) int { return a.Compare(b.Pos) })
	return sorted
}

// Error returns one error per line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns each error, for errors.As.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, err := range e {
		all[i] = err
	}
	return all
}
