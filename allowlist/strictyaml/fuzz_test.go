package strictyaml

import (
	"strings"
	"testing"
)

// FuzzParse checks that Parse and a walk never panic, that the place of every error is
// inside the file, and that a walk of a tree without errors reads every value once.
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
				t.Errorf("walked %d scalars and %d empty values, of %d together", w.scalars, w.empty, scalars)
			}
			before := len(errs)
			root.ReportUnread()
			if len(errs) != before {
				t.Errorf("values are unread after a complete walk: %v", errs[before:])
			}
		}
		rows := strings.Split(string(data), "\n")
		for _, e := range errs {
			if e.File != "f" || e.Line < 1 || e.Line > len(rows) || e.Column < 1 || e.Column > len([]rune(rows[e.Line-1]))+1 {
				t.Errorf("the place of an error is outside the file: %v", e)
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

// count returns the number of scalars and empty values in a tree. It calls no readers.
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
