package hostile

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Path of the document with the table, and the lines around the table.
const (
	document   = "../../docs/security.md"
	tableBegin = "<!-- generated: promises -->\n"
	tableEnd   = "<!-- end -->\n"
)

// TestGeneratedPromises compares the table in the document with the rows. `make generate`
// writes the table.
func TestGeneratedPromises(t *testing.T) {
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), tableBegin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no lines that mark the table", document)
	}
	want := before + tableBegin + promises() + tableEnd + after
	if *update {
		writeFile(t, document, want)
		return
	}
	if string(data) != want {
		t.Errorf("%s differs from the rows: run make generate", document)
	}
}

// promises returns a table for each class, in Markdown.
func promises() string {
	var b strings.Builder
	for _, c := range classes(nil) {
		fmt.Fprintf(&b, "\n### %s. %s\n\n| Row | What comes | What happens | HTTP/1 | HTTP/2 |\n|---|---|---|---|---|\n", c.letter, c.title)
		for _, r := range c.rows {
			fmt.Fprintf(&b, "| %s | %s | %s | %d | %s |\n", r.id, cell(r.comes), cell(r.happens), r.count(h1), r.overH2())
		}
	}
	return b.String() + "\n"
}

// cell escapes a text for a cell of a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
