package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// eachFile parses the Go files of the product, except tests, and calls visit with each of
// them and its path below the root of the repository, with slashes. mode says which part
// of a file is parsed.
func eachFile(t *testing.T, mode parser.Mode, visit func(name string, file *ast.File)) {
	t.Helper()
	for _, root := range []string{"allowlist", "identity", "proxy", "cmd"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(name string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, mode)
			if err == nil {
				visit(strings.TrimPrefix(filepath.ToSlash(name), "../"), file)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
