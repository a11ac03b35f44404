package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// MaxBytes is the largest size of a file.
const MaxBytes = 64 << 20

const maxDepth = 64

// aliasRefused is the message for an alias. Somebody may have forgotten the quotes of
// "*.x".
const aliasRefused = "YAML aliases are refused: write the value out; a pattern that begins with * needs quotes"

// limits bounds the tree that the library builds.
type limits struct{}

// CheckDepth returns an error if the tree has too many levels. The library calls it for
// each level.
func (limits) CheckDepth(depth int, _ *yaml.DepthContext) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d levels: write fewer", maxDepth)
	}
	return nil
}

// CheckAlias returns nil, because every alias is refused later.
func (limits) CheckAlias(_, _ int) error { return nil }

// source is the file being parsed.
type source struct {
	file  string
	data  []byte
	lines int // the number of lines
	errs  *Errors
}

// Parse parses one document. file is the name of the file for errors. errs collects the
// errors, now and while the tree is walked. Parse returns nil and adds one error if the
// text is not YAML. If the file has no document it returns a node for which
// [Node.IsEmpty] is true. A construct that is refused is reported and left out of the
// tree.
func Parse(file string, data []byte, errs *Errors) *Node {
	src := &source{file: file, data: data, lines: bytes.Count(data, []byte("\n")) + 1, errs: errs}
	if len(data) > MaxBytes {
		errs.Add(Pos{file, 1, 1}, "the file has %d bytes: split it, %d are the limit", len(data), MaxBytes)
		return nil
	}
	if !src.checkText() {
		return nil
	}
	doc, err := src.load()
	if err != nil {
		src.addSyntax(err)
		return nil
	}
	c := converter{source: src}
	root := &Node{doc: &document{file: file, errs: errs}, line: 1, column: 1, keyLine: 1, keyColumn: 1}
	if doc != nil {
		c.fill(root, doc.Content[0])
	}
	return root
}

// load returns the document node, or nil if there is none.
func (s *source) load() (*yaml.Node, error) {
	loader, err := yaml.NewLoader(bytes.NewReader(s.data),
		yaml.WithStreamNodes(true), // they carry the directives
		yaml.WithPlugin(limits{}))
	if err != nil {
		return nil, err
	}
	var doc *yaml.Node
	for {
		node := new(yaml.Node)
		switch err := loader.Load(node); {
		case errors.Is(err, io.EOF):
			return doc, nil
		case err != nil:
			return nil, err
		case node.Kind == yaml.StreamNode:
			if node.Stream.Version != nil || len(node.Stream.TagDirectives) > 0 {
				s.errs.Add(s.pos(node), "a YAML directive: remove the line that begins with %%")
			}
		case doc != nil:
			s.errs.Add(s.pos(node), "a second YAML document: write one document per file")
			return doc, nil
		case len(node.Content) == 1:
			doc = node
		}
	}
}

// pos returns the place of a node.
func (s *source) pos(n *yaml.Node) Pos {
	return s.clamp(n.Line, n.Column)
}

// clamp returns a place that the library names, and the end of the file if there is no
// such line: for what is at the end of a file without a final newline, the library names
// a line that does not exist.
func (s *source) clamp(line, column int) Pos {
	if line >= 1 && line <= s.lines && column >= 1 {
		return Pos{s.file, line, column}
	}
	return s.posOf(len(s.data))
}

// posOf returns the place of the byte at an offset.
func (s *source) posOf(offset int) Pos {
	before := s.data[:min(offset, len(s.data))]
	line := bytes.Count(before, []byte("\n")) + 1
	start := bytes.LastIndexByte(before, '\n') + 1
	return Pos{s.file, line, utf8.RuneCount(before[start:]) + 1}
}

// addSyntax adds an error of the library.
func (s *source) addSyntax(err error) {
	var syntax *yaml.LoadError
	if !errors.As(err, &syntax) {
		s.errs.Add(Pos{s.file, 1, 1}, "not valid YAML: %v", err)
		return
	}
	at := s.clamp(syntax.Mark.Line, syntax.Mark.Column)
	switch {
	case strings.HasPrefix(syntax.Message, "unknown anchor"):
		s.errs.Add(at, aliasRefused)
		return
	case s.isTab(at):
		s.errs.Add(at, "a tab: indent with spaces")
		return
	}
	msg := syntax.Message
	if syntax.ContextMsg != "" {
		msg = syntax.ContextMsg + ": " + msg
	}
	s.errs.Add(at, "not valid YAML: %s%s", msg, syntaxRemedy(syntax.Message))
}

// syntaxRemedy returns the end of a message that says how to correct an error of the
// library, or "" if it knows no correction for the error.
func syntaxRemedy(message string) string {
	for _, r := range []struct{ part, remedy string }{
		{"mapping values are not allowed", `: put text with ": " in it between quotes, and let the keys of one mapping begin at the same column`},
		{"did not find expected ',' or", ": close what { or [ opened, with commas between"},
		{"did not find expected '-' indicator", ": let the items of one list begin at the same column, and what belongs to an item stand right of its -"},
		{"did not find expected key", ": let the keys of one mapping begin at the same column"},
		{"could not find expected ':'", ": write key: value, with a space behind the colon"},
		{"found unexpected end of stream", ": close the quote"},
		{"cannot start any token", ": put text that begins with such a character between quotes"},
		{"did not find expected node content", ": remove the comma or bracket too many, or put the text between quotes"},
	} {
		if strings.Contains(message, r.part) {
			return r.remedy
		}
	}
	return ""
}

// isTab reports whether the character at a place is a tab.
func (s *source) isTab(at Pos) bool {
	for line := range bytes.Lines(s.data) {
		if at.Line--; at.Line == 0 {
			text := []rune(string(line))
			return at.Column <= len(text) && text[at.Column-1] == '\t'
		}
	}
	return false
}

// checkText reports whether the file has no character that makes people, who review the
// file, see something other than the parser. It adds an error if there is one.
func (s *source) checkText() bool {
	for i := 0; i < len(s.data); {
		if c := s.data[i]; c >= ' ' && c < 0x7f || c == '\n' || c == '\t' {
			i++
			continue
		}
		r, size := utf8.DecodeRune(s.data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			s.errs.Add(s.posOf(i), "byte 0x%02x is not UTF-8: save the file as UTF-8", s.data[i])
			return false
		case r == '\r' && (i+1 == len(s.data) || s.data[i+1] != '\n'):
			s.errs.Add(s.posOf(i), "a carriage return without a newline: end lines with a newline")
			return false
		case r != '\r' && (unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control)):
			s.errs.Add(s.posOf(i), "character %U, which hides or moves text: remove it", r)
			return false
		}
		i += size
	}
	return true
}
