package docs

import (
	"go/ast"
	"go/parser"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// declared holds the names that the code declares: functions, types, values, and fields
// and methods behind the name of their type.
type declared struct {
	byFile map[string]map[string]bool // by the path of the file below the root
	all    map[string]bool            // of all files; also each name behind that of its package
}

// TestDesignNamesTheCode checks that the functions, types and fields exist that
// docs/design.md names, and that those behind a link to a file are declared there.
func TestDesignNamesTheCode(t *testing.T) {
	code := declarations(t)
	text, err := os.ReadFile("design.md")
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for line := range strings.Lines(string(text)) {
		for _, m := range regexp.MustCompile("\\]\\(\\.\\./([a-z0-9_/]+\\.go)\\)((?:,? `[^`]+`)*)").FindAllStringSubmatch(line, -1) {
			links++
			for _, name := range codeWords(m[2]) {
				if !code.byFile[m[1]][name] {
					t.Errorf("docs/design.md names %s in %s, which does not declare it", name, m[1])
				}
			}
		}
		for _, word := range codeWords(line) {
			if isCodeName(word) && !code.all[word] {
				t.Errorf("docs/design.md names %s, which no file declares", word)
			}
		}
	}
	if links < 60 {
		t.Errorf("found only %d links to files", links)
	}
}

// codeWords returns the words of a text between grave accents.
func codeWords(text string) []string {
	var words []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
		words = append(words, m[1])
	}
	return words
}

// isCodeName reports whether a word is a name in the code: two names with a dot between
// them that are not the name of a file or a key, or one name with a capital letter.
func isCodeName(word string) bool {
	if !regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*(\.[A-Za-z][A-Za-z0-9]*)?$`).MatchString(word) || strings.HasPrefix(word, "Test") {
		return false
	}
	return strings.ToLower(word) != word && !slices.Contains([]string{".go", ".md"}, path.Ext(word))
}

func TestCodeNames(t *testing.T) {
	for word, want := range map[string]bool{
		"inForce.first": true, "Policy.Decide": true, "live.State": true, "endTimeout": true, "Until": true,
		"firstbytes.go": false, "policy.max_revoke": false, "Max-Forwards: 0": false, "busy": false, "TestImports": false,
	} {
		if got := isCodeName(word); got != want {
			t.Errorf("isCodeName(%s) is %v", word, got)
		}
	}
}

// declarations parses the product.
func declarations(t *testing.T) declared {
	t.Helper()
	code := declared{byFile: map[string]map[string]bool{}, all: map[string]bool{}}
	eachFile(t, parser.SkipObjectResolution, func(name string, file *ast.File) {
		names := map[string]bool{}
		for _, decl := range file.Decls {
			for _, declares := range namesIn(decl) {
				names[declares], code.all[declares], code.all[file.Name.Name+"."+declares] = true, true, true
			}
		}
		code.byFile[name] = names
	})
	return code
}

// namesIn returns the names that a declaration declares.
func namesIn(decl ast.Decl) []string {
	if f, ok := decl.(*ast.FuncDecl); ok {
		if f.Recv == nil {
			return []string{f.Name.Name}
		}
		return []string{receiver(f.Recv.List[0].Type) + "." + f.Name.Name}
	}
	var names []string
	for _, spec := range specs(decl) {
		switch s := spec.(type) {
		case *ast.ValueSpec:
			for _, name := range s.Names {
				names = append(names, name.Name)
			}
		case *ast.TypeSpec:
			names = append(names, s.Name.Name)
			for _, member := range membersOf(s.Type) {
				names = append(names, s.Name.Name+"."+member)
			}
		}
	}
	return names
}

// membersOf returns the names of the fields of a struct, or of the methods of an
// interface.
func membersOf(expr ast.Expr) []string {
	var list *ast.FieldList
	switch typ := expr.(type) {
	case *ast.StructType:
		list = typ.Fields
	case *ast.InterfaceType:
		list = typ.Methods
	default:
		return nil
	}
	var names []string
	for _, field := range list.List {
		for _, name := range field.Names {
			names = append(names, name.Name)
		}
	}
	return names
}
