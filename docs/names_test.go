package docs

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNamesExist checks that the tests, the targets of make and the packages to test
// exist that the documents name.
func TestNamesExist(t *testing.T) {
	exists := testNames(t)
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllSubmatch(makefile, -1) {
		exists["make "+string(m[1])] = true
	}
	named := 0
	for _, doc := range documents(t) {
		data, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile("(?:`|\n)(Test[A-Z][A-Za-z]*|make [a-z-]+)").FindAllSubmatch(data, -1) {
			named++
			if !exists[string(name[1])] {
				t.Errorf("%s names %s, which does not exist", doc, name[1])
			}
		}
		for _, command := range regexp.MustCompile(`go test((?: \./[a-z0-9_/.]+)+)`).FindAllSubmatch(data, -1) {
			for pkg := range strings.FieldsSeq(string(command[1])) {
				named++
				if _, err := os.Stat(filepath.Join("..", strings.TrimSuffix(pkg, "..."))); err != nil {
					t.Errorf("%s names the package %s, which does not exist", doc, pkg)
				}
			}
		}
	}
	if named < 60 {
		t.Errorf("found only %d names", named)
	}
}

// testNames returns the names of all tests.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for line := range bytes.Lines(data) {
			if rest, ok := bytes.CutPrefix(line, []byte("func ")); ok && bytes.HasPrefix(rest, []byte("Test")) {
				name, _, _ := bytes.Cut(rest, []byte("("))
				names[string(name)] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestCommandsExist compares the commands and flags that the documents name with the help
// of each command.
func TestCommandsExist(t *testing.T) {
	bin := binary(t)
	help := map[string]string{}
	for _, doc := range documents(t) {
		data, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(data), "\\\n", " ")
		for _, m := range regexp.MustCompile("(?m)(?:`|^)exeat((?: [a-z]+)+)([^`\n]*)").FindAllStringSubmatch(text, -1) {
			command := m[1]
			if help[command] == "" {
				out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "exeat"), append(strings.Fields(command), "--help")...).CombinedOutput()
				if err != nil || !bytes.Contains(out, []byte("\n  exeat"+command)) {
					t.Errorf("%s names exeat%s, which does not exist: %v", doc, command, err)
					continue
				}
				help[command] = string(out)
			}
			for _, flag := range regexp.MustCompile(`(?:^| )(--[a-z-]+)`).FindAllStringSubmatch(m[2], -1) {
				if !strings.Contains(help[command], flag[1]+" ") {
					t.Errorf("%s names %s of exeat%s, which does not exist", doc, flag[1], command)
				}
			}
		}
	}
	if len(help) < 5 {
		t.Errorf("found only %d commands", len(help))
	}
}
