package strictyaml

import (
	"strings"
	"testing"
)

// FuzzParse: parsing and walking never panic; every error has a place inside
// the file; without an error every scalar was read exactly once.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "a: b", "a: [1, {b: c}]\nd:\n  - e\n  -\n", "a: &x 1\nb: *x\n<<: {}\n? [x]\n: !t y", "a: |\n  x\n  y\n", "---\n---\n", "%YAML 1.2\n---\nx",
		"a: [", "{a: b, a: c}", "? a", "- a\n-", "a: 'b\n\n  c'\n", "é: [ü: x, {]", "\ufeffa: b", "a:\r\n- b\r\n", "a: \"\\x00\"", "[[[[{a: [b]}]]]]", "a: b\n...\n# c\n", "~: ~",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var errs Errors
		root := Parse("f", data, &errs)
		if root == nil && len(errs) == 0 {
			t.Fatal("no tree and no error")
		}
		if root != nil && len(errs) == 0 {
			w := walker{}
			w.walk(root)
			if scalars := count(root); w.scalars+w.empty != scalars {
				t.Errorf("walked %d scalars and %d empty values of %d", w.scalars, w.empty, scalars)
			}
			before := len(errs)
			root.ReportUnread()
			if len(errs) != before {
				t.Errorf("after a whole walk: %v", errs[before:])
			}
		}
		rows := strings.Split(string(data), "\n")
		for _, e := range errs {
			if e.File != "f" || e.Line < 1 || e.Line > len(rows) || e.Column < 1 || e.Column > len([]rune(rows[e.Line-1]))+1 {
				t.Errorf("there is no such place: %v", e)
			}
			if strings.Contains(e.Msg, "\n") {
				t.Errorf("the message is not one line: %q", e.Msg)
			}
		}
	})
}

type walker struct{ scalars, empty int }

func (w *walker) walk(n *Node) {
	switch n.kind {
	case mapping:
		for _, v := range n.Fields() {
			w.walk(v)
		}
	case list:
		for item := range n.Items() {
			w.walk(item)
		}
	case scalar:
		n.Text()
		w.scalars++
	case empty, refused:
		n.Text()
		w.empty++
	}
}

// count counts what walk must reach, without the readers.
func count(n *Node) int {
	if n.kind != mapping && n.kind != list {
		return 1
	}
	sum := 0
	for i := range n.children {
		sum += count(&n.children[i])
	}
	return sum
}
