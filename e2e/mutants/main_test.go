package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// TestFaultsApply checks that the text that every fault replaces is in its file once. It
// shows within moments which faults no longer apply.
func TestFaultsApply(t *testing.T) {
	all := append(mutants(), planted()...)
	if n := len(mutants()); n < 20 {
		t.Errorf("%d mutants, want 20 or more", n)
	}
	names := map[string]bool{}
	for _, f := range all {
		data, err := os.ReadFile(filepath.Join(root, f.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(data), f.old); n != 1 {
			t.Errorf("%s: %s has %d places like %q", f.name, f.file, n, f.old)
		}
		if f.old == f.new || names[f.name+f.file] {
			t.Errorf("%s: changes nothing, or is there twice", f.name)
		}
		names[f.name+f.file] = true
	}
}

// TestEveryFuzzTargetHasAFault compares the faults with the fuzz targets of the module.
func TestEveryFuzzTargetHasAFault(t *testing.T) {
	has := map[string]bool{}
	for _, f := range planted() {
		has[f.pkg+" "+f.tests] = true
	}
	target := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	found := 0
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range target.FindAllStringSubmatch(string(data), -1) {
			pkg := "./" + filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), root+"/"))
			if found++; !has[pkg+" "+m[1]] {
				t.Errorf("nothing is planted for %s %s", pkg, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found != len(has) {
		t.Errorf("%d fuzz targets, faults for %d", found, len(has))
	}
}

// TestFinderNamesTheTestThatFailed checks what the output of go test says about a planted
// fault.
func TestFinderNamesTheTestThatFailed(t *testing.T) {
	exit := exitError(t)
	for _, row := range []struct {
		name, text string
		err        error
		by         string
		broken     bool
	}{
		{"nobody", "ok\n", nil, "", false},
		{"a case of a row", "--- FAIL: TestPromises (1s)\n    --- FAIL: TestPromises/class/D/D3_x (0s)\nFAIL\n", exit, "D/D3_x", false},
		{"a test", "--- FAIL: TestOther (1s)\nFAIL\n", exit, "TestOther", false},
		{"a panic", "panic: oh\n", exit, "a panic or a time-out", false},
		{"no test: it does not compile", "FAIL\tpkg [build failed]\n", exit, "", true},
		{"no test: something else", "cannot find the module\n", exit, "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			by, err := finder(row.text, row.err)
			if by != row.by || (err != nil) != row.broken {
				t.Errorf("got %q, %v", by, err)
			}
		})
	}
}

// exitError returns the error of a command with the exit code 1.
func exitError(t *testing.T) error {
	t.Helper()
	_, err := output(t.Context(), "", "sh", "-c", "exit 1")
	if err == nil {
		t.Fatal("sh ends with 0")
	}
	return err
}
