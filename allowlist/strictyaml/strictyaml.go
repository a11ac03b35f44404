// Package strictyaml reads YAML that people write by hand and on which decisions depend:
// policies and configuration.
//
// [Parse] turns one file into a tree of [Node]. The caller walks it with [Node.Fields],
// [Node.Items] and the typed readers ([Node.Text], [Node.Int], [Node.Until] …). Every
// error goes into one [Errors], with its file, line and column and with what to write
// instead. Reading continues after an error, so that all errors of a load are reported
// together.
//
// A scalar is the text in the file, and the reader that the caller calls gives it a type.
// Nothing is guessed: 0443 is not a port, yes is not a boolean, and 2027-01-31 is a date
// only if the caller reads a date.
//
// The package refuses constructs that make a file mean something other than it seems to:
// anchors, aliases, merge keys, tags, directives, duplicate keys, keys that are not text,
// a second document, control and bidirectional characters, more than [MaxBytes] bytes or
// 64 levels. It has no struct tags, no defaults and no output.
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

// Error is an error at a place.
type Error struct {
	Pos
	Msg string
}

// Error returns "file:line:column: msg".
func (e *Error) Error() string { return e.String() + ": " + e.Msg }

// Errors holds all errors in the files of one load. The zero value is ready to use. It is
// not safe for concurrent use.
type Errors []*Error

// Add appends an error at a place, with a message in the format of fmt.Sprintf.
func (e *Errors) Add(at Pos, format string, args ...any) {
	*e = append(*e, &Error{Pos: at, Msg: fmt.Sprintf(format, args...)})
}

// Err returns nil if no error was added, and otherwise the errors sorted by place.
func (e Errors) Err() error {
	if len(e) == 0 {
		return nil
	}
	sorted := slices.Clone(e)
	slices.SortStableFunc(sorted, func(a, b *Error) int { return a.Compare(b.Pos) })
	return sorted
}

// Error returns all errors, one per line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns all errors, for errors.As.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, err := range e {
		all[i] = err
	}
	return all
}
