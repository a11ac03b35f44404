package strictyaml

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// parse returns the node of value in a file.
func parse(t *testing.T, value string, errs *Errors) *Node {
	t.Helper()
	root := Parse("f", []byte("v: "+value+"\n"), errs)
	if root == nil {
		t.Fatal(errs.Err())
	}
	for _, v := range root.Fields() {
		return v
	}
	t.Fatal(errs.Err())
	return nil
}

// reads returns the result of a reader for a value as text: the value that it returned,
// or the error.
func reads(t *testing.T, value string, read func(*Node) (any, bool)) string {
	t.Helper()
	var errs Errors
	got, ok := read(parse(t, value, &errs))
	switch err := errs.Err(); {
	case ok != (err == nil):
		t.Errorf("%s: ok is %v and the error %v", value, ok, err)
	case !ok:
		if !reflect.ValueOf(got).IsZero() {
			t.Errorf("%s: the reader returned %v and an error", value, got)
		}
		return err.Error()
	}
	return fmt.Sprint(got)
}

// TestReaders checks what each reader returns for values of every kind.
func TestReaders(t *testing.T) {
	type row struct{ value, want string }
	check := func(name string, read func(*Node) (any, bool), rows ...row) {
		t.Run(name, func(t *testing.T) {
			for _, row := range rows {
				if got := reads(t, row.value, read); got != row.want {
					t.Errorf("%s reads as\n%s\nwant\n%s", row.value, got, row.want)
				}
			}
		})
	}
	check("Text", func(n *Node) (any, bool) { return n.Text() },
		row{"word", "word"}, row{"'two words'", "two words"}, row{"yes", "yes"}, row{"1.50", "1.50"}, row{"0x1F", "0x1F"},
		row{"2027-01-31", "2027-01-31"}, row{`"null"`, "null"}, row{"'~'", "~"}, row{"true", "true"}, row{"é", "é"}, row{"a # b", "a"},
		row{"", "f:1:1: v: has no value: write one, or remove the key"},
		row{"null", `f:1:4: v: null is no value in YAML: write one, or "null" in quotes if that is the text`},
		row{"~", `f:1:4: v: ~ is no value in YAML: write one, or "~" in quotes if that is the text`},
		row{"''", "f:1:4: v: the text is empty: write some, or remove the key"},
		row{`"a\nb"`, "f:1:4: v: has the character U+000A, which does not print: write one line of visible text"},
		row{`"a\u200bb"`, "f:1:4: v: has the character U+200B, which does not print: write one line of visible text"},
		row{"[a]", "f:1:4: v: want one value, not a list"},
		row{"{a: b}", "f:1:4: v: want one value, not keys with values"},
	)
	check("Bool", func(n *Node) (any, bool) { return n.Bool() },
		row{"true", "true"}, row{"false", "false"},
		row{"yes", `f:1:4: v: want true or false, not "yes"`}, row{"True", `f:1:4: v: want true or false, not "True"`},
		row{"1", `f:1:4: v: want true or false, not "1"`},
		row{`"true"`, `f:1:4: v: want true or false without quotes, not the text "true"`},
	)
	check("Int from -5 to 500", func(n *Node) (any, bool) { return n.Int(-5, 500) },
		row{"0", "0"}, row{"500", "500"}, row{"-5", "-5"},
		row{"501", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "501"`},
		row{"010", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "010"`},
		row{"0o10", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "0o10"`},
		row{"0x1b", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "0x1b"`},
		row{"1_0", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "1_0"`},
		row{"+1", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "+1"`},
		row{"-0", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "-0"`},
		row{"1.0", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "1.0"`},
		row{"1e2", `f:1:4: v: want a number from -5 to 500 in plain decimal digits, not "1e2"`},
		row{"'1'", `f:1:4: v: want a number without quotes, not the text "1"`},
	)
	check("Duration", func(n *Node) (any, bool) { return n.Duration() },
		row{"10s", "10s"}, row{"1h30m", "1h30m0s"}, row{"'0s'", "0s"},
		row{"10", `f:1:4: v: want a duration with its unit, such as 500ms, 10s, 5m or 12h, not "10"`},
		row{"-10s", `f:1:4: v: want a duration with its unit, such as 500ms, 10s, 5m or 12h, not "-10s"`},
		row{"1 day", `f:1:4: v: want a duration with its unit, such as 500ms, 10s, 5m or 12h, not "1 day"`},
	)
	check("Until", func(n *Node) (any, bool) { return n.Until() },
		row{"2027-01-31", "2027-02-01 00:00:00 +0000 UTC"}, row{"2028-02-28", "2028-02-29 00:00:00 +0000 UTC"}, row{"2027-12-31", "2028-01-01 00:00:00 +0000 UTC"},
		row{"2027-01-31T18:00:00Z", "2027-01-31 18:00:00 +0000 UTC"}, row{"'2027-01-31T18:00:00+02:00'", "2027-01-31 16:00:00 +0000 UTC"},
		row{"2027-02-29", `f:1:4: v: want a date such as 2027-01-31 (until its end, UTC) or a time such as 2027-01-31T18:00:00Z, not "2027-02-29"`},
		row{"2027-1-31", `f:1:4: v: want a date such as 2027-01-31 (until its end, UTC) or a time such as 2027-01-31T18:00:00Z, not "2027-1-31"`},
		row{"2027-01-31T18:00:00", `f:1:4: v: want a date such as 2027-01-31 (until its end, UTC) or a time such as 2027-01-31T18:00:00Z, not "2027-01-31T18:00:00"`},
	)
	check("Bytes", func(n *Node) (any, bool) { return n.Bytes() },
		row{"1B", "1"}, row{"5kB", "5000"}, row{"500MB", "500000000"}, row{"2GB", "2000000000"}, row{"3TB", "3000000000000"},
		row{"1KiB", "1024"}, row{"64MiB", "67108864"}, row{"1GiB", "1073741824"}, row{"1TiB", "1099511627776"},
		row{"8388607TiB", fmt.Sprint(int64(math.MaxInt64>>40) << 40)},
		row{"8388608TiB", `f:1:4: v: want bytes with their unit, such as 500MB or 1GiB, not "8388608TiB"`},
		row{"0B", `f:1:4: v: want bytes with their unit, such as 500MB or 1GiB, not "0B"`},
		row{"01B", `f:1:4: v: want bytes with their unit, such as 500MB or 1GiB, not "01B"`},
		row{"1024", `f:1:4: v: want bytes with their unit, such as 500MB or 1GiB, not "1024"`},
		row{"1gib", `f:1:4: v: want bytes with their unit, such as 500MB or 1GiB, not "1gib"`},
		row{"1.5GiB", `f:1:4: v: want bytes with their unit, such as 500MB or 1GiB, not "1.5GiB"`},
	)
	check("Word of on and off", func(n *Node) (any, bool) { return n.Word("on", "off") },
		row{"off", "off"}, row{"'on'", "on"}, row{"On", `f:1:4: v: want on or off, not "On"`}, row{"null", `f:1:4: v: null is no value in YAML: write one, or "null" in quotes if that is the text`},
	)
	check("Texts", func(n *Node) (any, bool) { return n.Texts() },
		row{"[a, 'b']", "[a b]"}, row{"a", "[a]"},
		row{"[]", "f:1:4: v: the list is empty: write an item, or remove the key"},
		row{"[a, null, [b]]", "f:1:8: item of v: null is no value in YAML: write one, or \"null\" in quotes if that is the text\nf:1:14: item of v: want one value, not a list"},
		row{"{a: b}", "f:1:4: v: want a list ([a, b], or lines that begin with -), not keys with values"},
	)
}

// TestParseRefuses checks the error, with its place, for everything in YAML that is
// refused.
func TestParseRefuses(t *testing.T) {
	for name, row := range map[string]struct{ text, want string }{
		"an anchor":                       {"a: &x 1", "f:1:4: YAML anchors are refused: remove &x"},
		"an anchor on a key":              {"&x a: 1", "f:1:1: YAML anchors are refused: remove &x"},
		"an alias":                        {"a: &x 1\nb: *x", "f:1:4: YAML anchors are refused: remove &x\nf:2:4: YAML aliases are refused: write the value out; a pattern that begins with * needs quotes"},
		"an alias to nothing":             {"b: *x", "f:1:4: YAML aliases are refused: write the value out; a pattern that begins with * needs quotes"},
		"an alias as a key":               {"a: &x 1\n*x : 2", "f:1:4: YAML anchors are refused: remove &x\nf:2:1: YAML aliases are refused: write the key out"},
		"an alias to its own parent":      {"a: &x [*x]", "f:1:4: YAML anchors are refused: remove &x\nf:1:8: YAML aliases are refused: write the value out; a pattern that begins with * needs quotes"},
		"a merge key":                     {"<<: {a: b}", "f:1:1: YAML merge keys are refused: write the keys out"},
		"a tag":                           {"a: !!int 1", `f:1:4: YAML tags are refused: remove "!!int"`},
		"a tag of one's own":              {"a: !x {}", `f:1:4: YAML tags are refused: remove "!x"`},
		"the tag that is none":            {"a: ! 1", `f:1:4: YAML tags are refused: remove "!"`},
		"a tag on a key":                  {"!!str a: 1", `f:1:1: YAML tags are refused: remove "!!str"`},
		"a directive":                     {"%YAML 1.1\n---\na: b", "f:1:1: a YAML directive: remove the line that begins with %"},
		"a duplicate key":                 {"a: 1\nb:\n  c: 1\n  'c': 2", `f:4:3: duplicate key "c": it is set at f:3:3; keep one`},
		"a key that is a list":            {"? [a]\n: b", "f:1:3: a key that is no text: write key: value"},
		"a key that is null":              {"~: b", "f:1:1: a key that is null or empty: write key: value"},
		"a missing key":                   {": b", "f:1:1: a key that is null or empty: write key: value"},
		"a second document":               {"a: b\n---\nc: d", "f:2:1: a second YAML document: write one document per file"},
		"a second document after an end":  {"a: b\n...\nc", "f:3:1: a second YAML document: write one document per file"},
		"a second document without words": {"a: b\n---\n", "f:2:1: a second YAML document: write one document per file"},
		"bad syntax":                      {"a: [b", "f:1:6: not valid YAML: while parsing a flow sequence: did not find expected ',' or ']': close what { or [ opened, with commas between"},
		"a pattern without its quotes":    {"b: *.x.example", "f:1:4: YAML aliases are refused: write the value out; a pattern that begins with * needs quotes"},
		"a character that begins nothing": {"a: @b", "f:1:4: not valid YAML: while scanning for the next token: found character that cannot start any token: put text that begins with such a character between quotes"},
		"text with a colon":               {"a: b: c", "f:1:5: not valid YAML: mapping values are not allowed in this context: put text with \": \" in it between quotes, and let the keys of one mapping begin at the same column"},
		"a key out of line":               {"a:\n  b: 1\n c: 2", "f:3:2: not valid YAML: while parsing a block mapping: did not find expected key: let the keys of one mapping begin at the same column"},
		"an item out of line":             {"a:\n  - b: 1\n   c: 2", "f:3:4: not valid YAML: while parsing a block collection: did not find expected '-' indicator: let the items of one list begin at the same column, and what belongs to an item stand right of its -"},
		"a key without a space":           {"a: b\nc:d\ne: f", "f:3:1: not valid YAML: while scanning a simple key: could not find expected ':': write key: value, with a space behind the colon"},
		"a quote that is not closed":      {"a: \"b", "f:1:6: not valid YAML: while scanning a quoted scalar: found unexpected end of stream: close the quote"},
		"a comma too many":                {"a: [, b]", "f:1:5: not valid YAML: while parsing a flow node: did not find expected node content: remove the comma or bracket too many, or put the text between quotes"},
		"a tab for indentation":           {"a:\n\tb: c", "f:2:1: a tab: indent with spaces"},
		"many levels":                     {strings.Repeat("[", 100), "f:1:65: not valid YAML: while increasing flow level: more than 64 levels: write fewer"},
		"Latin-1":                         {"a: \xe9", "f:1:4: byte 0xe9 is not UTF-8: save the file as UTF-8"},
		"UTF-16":                          {"\xff\xfea\x00", "f:1:1: byte 0xff is not UTF-8: save the file as UTF-8"},
		"a control character":             {"a: é\x00", "f:1:5: character U+0000, which hides or moves text: remove it"},
		"a right-to-left override":        {"# \u202e\na: b", "f:1:3: character U+202E, which hides or moves text: remove it"},
		"a line separator":                {"a: b\u2028c: d", "f:1:5: character U+2028, which hides or moves text: remove it"},
		"a lone carriage return":          {"a: b\rc: d", "f:1:5: a carriage return without a newline: end lines with a newline"},
		"more than the bound":             {strings.Repeat("#", MaxBytes+1), "f:1:1: the file has 67108865 bytes: split it, 67108864 are the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			var errs Errors
			Parse("f", []byte(row.text), &errs)
			err := errs.Err()
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(err.Error(), row.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

// TestEmptyDocuments checks that a file without a value is empty and no error.
func TestEmptyDocuments(t *testing.T) {
	for _, text := range []string{"", "\n", "# only words\n", "---\n", "\ufeff"} {
		var errs Errors
		root := Parse("f", []byte(text), &errs)
		if root == nil || !root.IsEmpty() || len(errs) > 0 {
			t.Fatalf("%q: %v, %v", text, root, errs)
		}
		for range root.Fields() {
			t.Errorf("%q has a field", text)
		}
		if got, want := errs.Error(), "f:1:1: the file is empty: write key: value"; got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// TestWalkOfADocument walks over a document, and checks the errors for unknown keys and
// for values that were not read.
func TestWalkOfADocument(t *testing.T) {
	var errs Errors
	root := Parse("dir/f.yaml", []byte("name: x\r\nwords: [a, b]\r\ncolor: red\r\nunread: {deep: 1}\r\nmore: [{left: 1}]\r\n"), &errs)
	for key, v := range root.Fields() {
		switch key {
		case "name":
			v.Text()
			v.Errorf("is taken by %d", 2)
			v.KeyErrorf("stands there")
		case "words":
			for item := range v.Items() {
				item.Text()
				item.Errorf("at %s of %s", item.Pos(), item.Name())
			}
		case "more":
			for item := range v.Items() {
				for range item.Fields() {
					continue // leaves the value unread
				}
			}
		case "unread":
		default:
			v.Unknown("name", "words", "colour", "unread")
		}
	}
	root.ReportUnread()
	want := []string{
		"dir/f.yaml:1:1: name: stands there",
		"dir/f.yaml:1:7: name: is taken by 2",
		"dir/f.yaml:2:9: item of words: at dir/f.yaml:2:9 of words",
		"dir/f.yaml:2:12: item of words: at dir/f.yaml:2:12 of words",
		`dir/f.yaml:3:1: unknown key "color": did you mean "colour"? (known: name, words, colour, unread)`,
		"dir/f.yaml:4:1: unread: nothing reads this value: remove it",
		"dir/f.yaml:5:9: left: nothing reads this value: remove it",
	}
	if diff := cmp.Diff(strings.Split(errs.Err().Error(), "\n"), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// TestSuggestionsForAnUnknownWord checks the suggestions for an unknown word.
func TestSuggestionsForAnUnknownWord(t *testing.T) {
	many := make([]string, 30)
	for i := range many {
		many[i] = fmt.Sprint("name", i)
	}
	for name, row := range map[string]struct {
		word  string
		known []string
		want  string
	}{
		"a letter off":      {"prots", []string{"host", "ports"}, `did you mean "ports"? (known: host, ports)`},
		"nothing like it":   {"colour", []string{"host", "ports"}, "known: host, ports"},
		"nothing is known":  {"x", nil, "there is none"},
		"many known words":  {"name29x", many, `did you mean "name29"? (known: ` + strings.Join(many[:20], ", ") + ", …)"},
		"a very long word":  {strings.Repeat("x", 1e6), []string{"host"}, "known: host"},
		"an empty word":     {"", []string{"id"}, "known: id"},
		"exactly that word": {"id", []string{"id"}, `did you mean "id"? (known: id)`},
	} {
		if got := Candidates(row.word, row.known); got != row.want {
			t.Errorf("%s: got %s, want %s", name, got, row.want)
		}
	}
}

// TestErrorsAreSortedByPlace checks that errors are returned in the order of their
// places.
func TestErrorsAreSortedByPlace(t *testing.T) {
	var errs Errors
	if err := errs.Err(); err != nil {
		t.Errorf("without an error Err returned %v", err)
	}
	errs.Add(Pos{"b", 1, 1}, "fourth")
	errs.Add(Pos{"a", 10, 1}, "third")
	errs.Add(Pos{"a", 2, 7}, "second")
	errs.Add(Pos{"a", 2, 5}, "first %d%%", 100)
	err := errs.Err()
	if got, want := err.Error(), "a:2:5: first 100%\na:2:7: second\na:10:1: third\nb:1:1: fourth"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	first, ok := errors.AsType[*Error](err)
	if !ok || first.Line != 2 || first.Msg != "first 100%" {
		t.Errorf("errors.As finds %v", first)
	}
	if errs[0].Msg != "fourth" {
		t.Error("Err reordered the receiver")
	}
}
