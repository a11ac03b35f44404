package docs

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Bounds of the product's code, because larger types and programs are hard to explain.
const (
	maxMethods   = 15   // most methods of a type
	maxMainLines = 1600 // package main must have fewer lines
)

// large returns the types that may have more methods, and why.
func large() map[string]string {
	return map[string]string{
		"allowlist.Policy":          "every question that a policy answers is a method of it",
		"allowlist/strictyaml.Node": "it has a method for each kind of value that a file may hold",
		"proxy/h2/h2test.Peer":      "what a test can send and wait for is a method of it",
		"proxy/h2.Stream":           "net.Conn and tunnel.Stream alone have fifteen",
		"proxy/tunnel.Tunnel":       "both directions, the timer and Close share one state, which is small since there are many tunnels",
	}
}

// TestTypesAreSmall counts the methods of every type of the product.
func TestTypesAreSmall(t *testing.T) {
	counts := map[string]int{}
	eachFile(t, parser.SkipObjectResolution, func(name string, file *ast.File) {
		countMethods(counts, path.Dir(name), file)
	})
	if len(counts) < 100 {
		t.Errorf("found only %d types with methods", len(counts))
	}
	for _, complaint := range tooLarge(counts, large()) {
		t.Error(complaint)
	}
}

// countMethods adds the methods in a file to counts, by package and type.
func countMethods(counts map[string]int, pkg string, file *ast.File) {
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv != nil {
			counts[pkg+"."+receiver(f.Recv.List[0].Type)]++
		}
	}
}

// receiver returns the name of a receiver's type, which may be a pointer and may have
// type parameters.
func receiver(expr ast.Expr) string {
	for {
		switch e := expr.(type) {
		case *ast.ParenExpr:
			expr = e.X
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.Name
		default:
			return fmt.Sprintf("%T", e)
		}
	}
}

// tooLarge describes the types that have too many methods, and the exceptions that are
// not needed.
func tooLarge(counts map[string]int, exceptions map[string]string) []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[name]; n > maxMethods && exceptions[name] == "" {
			all = append(all, fmt.Sprintf("%s has %d methods, more than %d: give state that belongs together a type of its own", name, n, maxMethods))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(exceptions)) {
		if n := counts[name]; n <= maxMethods {
			all = append(all, fmt.Sprintf("%s has %d methods and needs no exception: the list is out of date", name, n))
		}
	}
	return all
}

// TestLargeTypesAreFound checks a file with types that are too large.
func TestLargeTypesAreFound(t *testing.T) {
	var text strings.Builder
	text.WriteString("package p\n")
	for recv, n := range map[string]int{
		"small": maxMethods, "*large": maxMethods + 1, "*generic[K]": maxMethods + 1, "twice[K, V]": maxMethods + 1, "*known": maxMethods + 1,
	} {
		for i := range n {
			fmt.Fprintf(&text, "func (r %s) m%d() {}\n", recv, i)
		}
	}
	text.WriteString("func free() {}\nfunc (small *large) one() {}\n")
	file, err := parser.ParseFile(token.NewFileSet(), "p.go", text.String(), parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	countMethods(counts, "a/p", file)
	var named []string
	for _, complaint := range tooLarge(counts, map[string]string{"a/p.known": "for a test", "a/p.small": "for a test", "a/p.gone": "for a test"}) {
		name, _, _ := strings.Cut(complaint, ",")
		name, _, _ = strings.Cut(name, " and needs")
		named = append(named, name)
	}
	want := []string{
		"a/p.generic has 16 methods", "a/p.large has 17 methods", "a/p.twice has 16 methods",
		"a/p.gone has 0 methods", "a/p.small has 15 methods",
	}
	if !slices.Equal(named, want) {
		t.Errorf("got %q, want %q", named, want)
	}
}

// TestMainIsSmall counts the lines of package main without its tests.
func TestMainIsSmall(t *testing.T) {
	files, err := filepath.Glob("../cmd/exeat/*.go")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines += bytes.Count(data, []byte("\n"))
	}
	if lines == 0 || lines >= maxMainLines {
		t.Errorf("package main has %d lines, want 1 to %d: move code that needs no flags to another package", lines, maxMainLines-1)
	}
}
