package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// fault is a change at one place of one file, and the tests that must fail with it.
type fault struct {
	name     string
	file     string // path from the root of the module
	old, new string // old is in the file exactly once
	pkg      string
	tests    string // a pattern for go test -run, or the name of a fuzz target
}

// fuzz reports whether a fuzz target must find the fault.
func (f fault) fuzz() bool { return strings.HasPrefix(f.tests, "Fuzz") }

// tree is a copy of the module.
type tree struct{ dir string }

// copyTree copies the files of the module that git does not ignore.
func copyTree(ctx context.Context) (tree, error) {
	root, err := output(ctx, "", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return tree{}, err
	}
	root = strings.TrimSpace(root)
	files, err := output(ctx, root, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return tree{}, err
	}
	dir, err := os.MkdirTemp("", "exeat-mutants-")
	if err != nil {
		return tree{}, err
	}
	t := tree{dir}
	for name := range strings.SplitSeq(strings.TrimSuffix(files, "\x00"), "\x00") {
		if err := copyFile(filepath.Join(root, name), t.path(name)); err != nil {
			t.remove()
			return tree{}, err
		}
	}
	return t, nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil // deleted, but still in git's index
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o600)
}

func (t tree) path(name string) string { return filepath.Join(t.dir, name) }

func (t tree) remove() { _ = os.RemoveAll(t.dir) }

// healthy runs all tests without a fault. They must pass, because a test that always
// fails would seem to find every fault.
func (t tree) healthy(ctx context.Context, faults []fault) error {
	done := map[string]bool{}
	for _, f := range faults {
		if done[f.pkg+f.tests] {
			continue
		}
		done[f.pkg+f.tests] = true
		if text, err := output(ctx, t.dir, "go", "test", "-trimpath", "-vet=off", "-count=1", "-run", f.tests, f.pkg); err != nil {
			return fmt.Errorf("without a fault: %w\n%s", err, text)
		}
	}
	return nil
}

// try plants a fault, runs its tests and removes the fault. It returns the name of the
// test that found it, or "" if none did.
func (t tree) try(ctx context.Context, f fault) (by string, err error) {
	was, err := os.ReadFile(t.path(f.file))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(was), f.old); n != 1 {
		return "", fmt.Errorf("%s has %d places like %q, want one: the fault no longer applies", f.file, n, f.old)
	}
	faulty := strings.Replace(string(was), f.old, f.new, 1)
	if err := os.WriteFile(t.path(f.file), []byte(faulty), 0o600); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.WriteFile(t.path(f.file), was, 0o600)) }()
	if f.fuzz() {
		return t.fuzz(ctx, f)
	}
	return t.test(ctx, f)
}

// test returns the name of the first test that fails.
func (t tree) test(ctx context.Context, f fault) (by string, err error) {
	text, err := output(ctx, t.dir, "go", "test", "-trimpath", "-vet=off", "-count=1", "-failfast", "-timeout", "90s", "-run", f.tests, f.pkg)
	return finder(text, err)
}

// fuzzTime is how long a target may take to find its fault. The time to build its package
// for fuzzing does not count.
const fuzzTime = "60s"

func (t tree) fuzz(ctx context.Context, f fault) (by string, err error) {
	text, err := output(ctx, t.dir, "go", "test", "-trimpath", "-vet=off", "-count=1", "-run", f.tests, f.pkg)
	if by, err := finder(text, err); by != "" || err != nil {
		return strings.TrimSpace(by + " (a seed)"), err
	}
	// The target begins with the seeds alone, without inputs that were found on this
	// machine before, and does not minimize an input.
	found := t.path(filepath.Join(f.pkg, "testdata", "found"))
	text, err = output(ctx, t.dir, "go", "test", "-trimpath", "-vet=off", "-run", "^$", "-fuzz", "^"+f.tests+"$", "-fuzztime", fuzzTime,
		"-fuzzminimizetime", "0", f.pkg, "-args", "-test.fuzzcachedir", found)
	_ = os.RemoveAll(found)
	// An input that was found must not be a seed for the next fault.
	_ = os.RemoveAll(t.path(filepath.Join(f.pkg, "testdata", "fuzz")))
	return finder(text, err)
}

// finder returns the name of the test that failed, or an error if the build failed.
func finder(text string, err error) (by string, _ error) {
	if err == nil {
		return "", nil
	}
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return "", err
	}
	if strings.Contains(text, "[build failed]") || strings.Contains(text, "[setup failed]") {
		return "", fmt.Errorf("it does not compile:\n%s", text)
	}
	failed := regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`).FindAllStringSubmatch(text, -1)
	if failed == nil {
		if strings.Contains(text, "panic: ") {
			return "a panic or a time-out", nil
		}
		return "", fmt.Errorf("it fails in no test:\n%s", text)
	}
	return strings.TrimPrefix(failed[len(failed)-1][1], "TestPromises/class/"), nil
}

// output runs a command in a directory, and returns what it printed.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}
