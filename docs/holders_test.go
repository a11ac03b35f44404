package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// byIdentity returns the types that keep state by an identity alone, and why they may.
// All other state is kept by an allowlist.Holder, so that a caller who forges an address
// cannot use up what belongs to the identity by a stronger proof.
func byIdentity() map[string]string {
	return map[string]string{
		"proxy/limit.accounts":    "there are two of them: for identities that are mapped from an address, and for all others",
		"proxy/resolve.boundPart": "there are two of them: for identities that are mapped from an address, and for all others",
		"proxy/listen.AddressMap": "it maps addresses to identities",
		"proxy/live.losses":       "it counts which identities lose something, whatever their proof is",
	}
}

// TestStateIsKeptByHolders checks the key of every map, and every type argument, in the
// code of the product.
func TestStateIsKeptByHolders(t *testing.T) {
	found := map[string]bool{}
	for _, root := range []string{"allowlist", "proxy", "cmd"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			files, err := sources(name)
			if err != nil {
				return err
			}
			pkg := strings.TrimPrefix(filepath.ToSlash(name), "../")
			for _, in := range keptByIdentity(files) {
				found[pkg+"."+in] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if byIdentity()[name] == "" {
			t.Errorf("%s keeps state by an identity: keep it by an allowlist.Holder, or add it to byIdentity with the reason", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byIdentity())) {
		if !found[name] {
			t.Errorf("%s keeps no state by an identity: the list is out of date", name)
		}
	}
}

// sources parses the files of a directory, except tests.
func sources(dir string) ([]*ast.File, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// keptByIdentity returns the names of a package's types and variables that keep something
// by an identity, or by a struct that has an identity and no field for its proof.
func keptByIdentity(files []*ast.File) []string {
	identities := map[string]bool{"spiffeid.ID": true}
	for _, file := range files {
		for _, decl := range file.Decls {
			for _, spec := range specs(decl) {
				if typ, ok := spec.(*ast.TypeSpec); ok && hasIdentityAlone(typ.Type) {
					identities[typ.Name.Name] = true
				}
			}
		}
	}
	var in []string
	for _, file := range files {
		for _, decl := range file.Decls {
			for _, spec := range specs(decl) {
				typ, ok := spec.(*ast.TypeSpec)
				if ok && keysBy(typ.Type, identities) {
					in = append(in, typ.Name.Name)
				}
				if value, ok := spec.(*ast.ValueSpec); ok && keysBy(value, identities) {
					in = append(in, value.Names[0].Name)
				}
			}
		}
	}
	return in
}

func specs(decl ast.Decl) []ast.Spec {
	if general, ok := decl.(*ast.GenDecl); ok {
		return general.Specs
	}
	return nil
}

// hasIdentityAlone reports whether a type is a struct with an identity, and without a
// holder, a source or a proof.
func hasIdentityAlone(expr ast.Expr) bool {
	typ, ok := expr.(*ast.StructType)
	if !ok {
		return false
	}
	identity, shown := false, false
	for _, field := range typ.Fields.List {
		text := typeText(field.Type)
		identity = identity || text == "spiffeid.ID"
		shown = shown || slices.Contains([]string{"allowlist.Holder", "Holder", "allowlist.Proof", "Source", "proof"}, text)
		for _, name := range field.Names {
			identity = identity || strings.EqualFold(name.Name, "identity")
		}
	}
	return identity && !shown
}

// keysBy reports whether a declaration has a map whose key is one of the types, or a
// generic type with one of them as an argument.
func keysBy(node ast.Node, types map[string]bool) (found bool) {
	ast.Inspect(node, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.MapType:
			found = found || types[typeText(n.Key)]
		case *ast.IndexExpr:
			found = found || types[typeText(n.Index)]
		case *ast.IndexListExpr:
			found = found || slices.ContainsFunc(n.Indices, func(arg ast.Expr) bool { return types[typeText(arg)] })
		}
		return true
	})
	return found
}

func typeText(expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		if pkg, ok := e.X.(*ast.Ident); ok {
			return pkg.Name + "." + e.Sel.Name
		}
	}
	return ""
}

// TestStateByIdentityIsFound checks a package with declarations that keep state by
// identity.
func TestStateByIdentityIsFound(t *testing.T) {
	const text = `package p
type plain struct { by map[spiffeid.ID]int }
type generic struct { lru[spiffeid.ID, int] }
type key struct { identity string; dest int }
type keyed struct { open map[key]int }
type pair struct { of family[who] }
type who struct { id spiffeid.ID }
type right struct { by map[allowlist.Holder]int }
type shown struct { id spiffeid.ID; source allowlist.Proof }
type fine struct { by map[shown]int }
var state map[spiffeid.ID]bool
`
	file, err := parser.ParseFile(token.NewFileSet(), "p.go", text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	got, want := keptByIdentity([]*ast.File{file}), []string{"plain", "generic", "keyed", "pair", "state"}
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}
