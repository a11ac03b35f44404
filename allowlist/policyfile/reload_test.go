package policyfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

const (
	workload   = "spiffe://td.example/w"
	onePolicy  = "version: 1\nidentities:\n  - id: spiffe://td.example/w\n    allow:\n      - host: one.example\n"
	twoPolicy  = "version: 1\nidentities:\n  - id: spiffe://td.example/x\n    allow:\n      - host: two.example\n"
	cutOff     = "version: 1\nquarantine:\n  - id: spiffe://td.example/w\n"
	brokenYAML = "version: 1\nidentities: {}\n"
)

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func allows(p *allowlist.Policy, id, dest string) bool {
	d, err := allowlist.ParseDestination(dest)
	if err != nil {
		panic(err)
	}
	return p.Decide(allowlist.Request{
		ID: spiffeid.RequireFromString(id), Proof: allowlist.ProofX509SVID, Dest: d, Time: time.Now(),
	}).Allowed()
}

// TestLoaderConfirmsWhatIsCompleteOrRepeated checks that a reading is confirmed at once
// if the files are complete, and otherwise when a second reading repeats it.
func TestLoaderConfirmsWhatIsCompleteOrRepeated(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", onePolicy)
	l := NewLoader(Options{}, dir)
	first, err := l.Load(true)
	if err != nil || !first.Confirmed || !first.Changed || !allows(first.Policy, workload, "one.example:443") {
		t.Fatalf("first load: %+v, %v", first, err)
	}
	if again, err := l.Load(true); err != nil || again.Changed || again.Policy != nil {
		t.Errorf("the same files again: %+v, %v", again, err)
	}
	put(t, dir, "a.yaml", strings.ReplaceAll(onePolicy, "one.", "three."))
	if got, err := l.Load(false); err != nil || got.Confirmed || got.Policy != nil {
		t.Errorf("the first reading of files that may be incomplete was confirmed: %+v, %v", got, err)
	}
	if got, err := l.Load(false); err != nil || !got.Confirmed || !allows(got.Policy, workload, "three.example:443") {
		t.Errorf("the repeated reading was not confirmed: %+v, %v", got, err)
	}
}

// TestLoaderReportsWhatIsWrongOnce checks that an error of the files is returned once,
// until the files change again.
func TestLoaderReportsWhatIsWrongOnce(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", onePolicy)
	l := NewLoader(Options{}, filepath.Join(dir, "a.yaml"))
	if _, err := l.Load(true); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"broken": brokenYAML, "empty": ""} {
		put(t, dir, "a.yaml", text)
		got, err := l.Load(true)
		if err == nil || !got.Changed || got.Policy != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if got, err := l.Load(true); err != nil || got.Changed {
			t.Errorf("%s again: %+v, %v", name, got, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Load(true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("deleted: %v", err)
	}
	if _, err := l.Load(true); err != nil {
		t.Errorf("deleted, again: %v", err)
	}
	put(t, dir, "a.yaml", onePolicy)
	if got, err := l.Load(true); err != nil || got.Policy == nil {
		t.Errorf("back again: %+v, %v", got, err)
	}
}

// TestLoaderLoadsTheQuarantineByItself checks that the quarantine list is loaded
// although another file has an error, and the other way round.
func TestLoaderLoadsTheQuarantineByItself(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", onePolicy)
	l := NewLoader(Options{}, dir)
	good, err := l.Load(true)
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "a.yaml", brokenYAML)
	put(t, dir, "quarantine.yaml", cutOff)
	got, err := l.Load(true)
	if err == nil || got.Policy != nil || got.Quarantine == nil {
		t.Fatalf("got %+v, %v", got, err)
	}
	if allows(good.Policy.WithQuarantine(got.Quarantine), workload, "one.example:443") {
		t.Error("the quarantine does not hold over the last good policy")
	}
	put(t, dir, "a.yaml", onePolicy)
	put(t, dir, "quarantine.yaml", "version: 1\nallow: []\n")
	got, err = l.Load(true)
	if err == nil || got.Policy == nil || got.Quarantine != nil {
		t.Errorf("a broken quarantine.yaml: %+v, %v", got, err)
	}
}

// TestUnchangedFilesAreNotParsedAgain checks that the kept tree of a file that has not
// changed stays the same.
func TestUnchangedFilesAreNotParsedAgain(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", onePolicy)
	put(t, dir, "b.yaml", twoPolicy)
	l := NewLoader(Options{}, dir)
	if _, err := l.Load(true); err != nil {
		t.Fatal(err)
	}
	a, b := l.parsed[filepath.Join(dir, "a.yaml")].root, l.parsed[filepath.Join(dir, "b.yaml")].root
	put(t, dir, "b.yaml", strings.ReplaceAll(twoPolicy, "two.", "four."))
	got, err := l.Load(true)
	if err != nil {
		t.Fatal(err)
	}
	if l.parsed[filepath.Join(dir, "a.yaml")].root != a || l.parsed[filepath.Join(dir, "b.yaml")].root == b {
		t.Error("want the tree of a.yaml kept and that of b.yaml new")
	}
	if !allows(got.Policy, workload, "one.example:443") || !allows(got.Policy, "spiffe://td.example/x", "four.example:443") {
		t.Error("the policy is not that of both files")
	}
	// A change of the other file now causes an error at a place in the kept tree.
	put(t, dir, "b.yaml", strings.ReplaceAll(twoPolicy, "    allow:", "    owner: x\n    allow:")+
		"  - id: spiffe://td.example/w\n    owner: x\n    allow: [{host: five.example}]\n")
	if _, err := l.Load(true); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Load(true); err != nil || len(l.parsed) != 1 {
		t.Errorf("after b.yaml is gone %d trees are kept, %v", len(l.parsed), err)
	}
}

// TestLoaderComparesWholeDigests checks that readings are compared by more than the
// version. Two policies with the same version, 12 digits, can be made in seconds, and the
// second must not be taken for the first.
func TestLoaderComparesWholeDigests(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", onePolicy)
	l := NewLoader(Options{}, dir)
	if _, err := l.Load(true); err != nil {
		t.Fatal(err)
	}
	if len(l.accepted) != 64 || len(l.policy) != 64 || len(l.quarantine) != 64 {
		t.Errorf("readings are compared by %d, %d and %d hex digits, want 64", len(l.accepted), len(l.policy), len(l.quarantine))
	}
}

// TestQuarantineLoadsBesideAnUnreadableFile checks that quarantine.yaml is loaded
// whatever is wrong with another file, also if that file cannot be read.
func TestQuarantineLoadsBesideAnUnreadableFile(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(dir string) error
	}{
		{"a name that would not be read", func(dir string) error { return os.WriteFile(filepath.Join(dir, "b.yml"), nil, 0o600) }},
		{"a link that leads nowhere", func(dir string) error { return os.Symlink("none", filepath.Join(dir, "b.yaml")) }},
		{"a link to itself", func(dir string) error { return os.Symlink("b.yaml", filepath.Join(dir, "b.yaml")) }},
		{"a directory", func(dir string) error { return os.Mkdir(filepath.Join(dir, "b.yaml"), 0o700) }},
		{"a file that is too large", func(dir string) error {
			path := filepath.Join(dir, "b.yaml")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(path, strictyaml.MaxBytes+1)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, "a.yaml", onePolicy)
			l := NewLoader(Options{}, dir)
			good, err := l.Load(true)
			if err != nil {
				t.Fatal(err)
			}
			if err := row.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if got, err := l.Load(true); err == nil || got.Policy != nil || got.Quarantine != nil {
				t.Errorf("without a quarantine: %+v, %v", got, err)
			}
			put(t, dir, "quarantine.yaml", cutOff)
			got, err := l.Load(true)
			if err == nil || got.Policy != nil || !got.QuarantineChanged {
				t.Fatalf("with a quarantine: %+v, %v", got, err)
			}
			if allows(good.Policy.WithQuarantine(got.Quarantine), workload, "one.example:443") {
				t.Error("the quarantine does not hold over the last good policy")
			}
			if err := os.Remove(filepath.Join(dir, "quarantine.yaml")); err != nil {
				t.Fatal(err)
			}
			if got, err := l.Load(true); err == nil || got.Quarantine != nil {
				t.Errorf("a quarantine ended by a reading that failed: %+v, %v", got, err)
			}
		})
	}
}

// TestABrokenQuarantineAloneIsNoEmptyDirectory checks that a directory with only a
// broken quarantine.yaml does not count as empty. A gateway may start with an empty
// directory, but not with a quarantine list that it cannot read.
func TestABrokenQuarantineAloneIsNoEmptyDirectory(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "quarantine.yaml", "version: 1\nallow: []\n")
	got, err := NewLoader(Options{}, dir).Load(true)
	if err == nil || errors.Is(err, ErrEmpty) || got.Policy != nil || got.Quarantine != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}
