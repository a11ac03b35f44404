package file

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// records is a record file in a directory of its own.
type records struct {
	*File

	dir, path string
	failures  []error
}

// openRecords opens a record file, in a new directory unless one is given. It is closed
// when the test ends.
func openRecords(t *testing.T, dir string, rotate Rotation) *records {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	r := &records{dir: dir, path: filepath.Join(dir, "records.jsonl")}
	file, err := Open(Config{
		Path: r.path, Rotate: rotate, Failed: func(err error) { r.failures = append(r.failures, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.File = file
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// add writes a line, and fails the test after an error.
func (r *records) add(t *testing.T, line string) {
	t.Helper()
	if n, err := r.Write([]byte(line + "\n")); n != len(line)+1 || err != nil {
		t.Fatalf("writing %q: %d bytes, %v", line, n, err)
	}
}

// holds compares the content of a file.
func holds(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", filepath.Base(path), diff)
	}
}

// rotated returns the rotated files, the oldest first.
func (r *records) rotated(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(r.dir, "records-*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// rotations returns the kinds of rotation.
func rotations() map[string]Rotation {
	return map[string]Rotation{"not rotated": {}, "rotated": {Size: 1 << 20}}
}

func TestOpenRequiresItsParts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.jsonl")
	for name, cfg := range map[string]Config{
		"no path":                         {Failed: func(error) {}},
		"no function for failures":        {Path: path},
		"a directory that does not exist": {Path: filepath.Join(path, "records.jsonl"), Failed: func(error) {}},
	} {
		if f, err := Open(cfg); err == nil || f != nil {
			t.Errorf("%s: got %v, %v", name, f, err)
		}
	}
}

func TestRecordFile(t *testing.T) {
	for name, rotate := range rotations() {
		t.Run(name, func(t *testing.T) {
			t.Run("is for its owner only", func(t *testing.T) {
				r := openRecords(t, "", rotate)
				r.add(t, "one")
				info, err := os.Stat(r.path)
				if err != nil {
					t.Fatal(err)
				}
				if info.Mode().Perm() != 0o600 {
					t.Errorf("mode %v", info.Mode())
				}
			})
			t.Run("is followed after it was moved and SIGHUP", func(t *testing.T) {
				r := openRecords(t, "", rotate)
				r.add(t, "one")
				if err := os.Rename(r.path, r.path+".1"); err != nil {
					t.Fatal(err)
				}
				r.Reopen()
				r.add(t, "two")
				holds(t, r.path+".1", "one\n")
				holds(t, r.path, "two\n")
			})
			t.Run("is made again after it was removed", func(t *testing.T) {
				r := openRecords(t, "", rotate)
				r.add(t, "one")
				if err := os.Remove(r.path); err != nil {
					t.Fatal(err)
				}
				r.add(t, "two")
				holds(t, r.path, "two\n")
			})
			t.Run("fails while its directory is gone", func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "records")
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				r := openRecords(t, dir, rotate)
				r.add(t, "one")
				if err := os.RemoveAll(r.dir); err != nil {
					t.Fatal(err)
				}
				if n, err := r.Write([]byte("lost\n")); n != 0 || err == nil {
					t.Errorf("writing without a directory: %d bytes, %v", n, err)
				}
				if err := os.Mkdir(r.dir, 0o700); err != nil {
					t.Fatal(err)
				}
				r.add(t, "two")
				holds(t, r.path, "two\n")
			})
			t.Run("begins a line where another ended in the middle", func(t *testing.T) {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "records.jsonl"), []byte("one\nhalf"), 0o600); err != nil {
					t.Fatal(err)
				}
				r := openRecords(t, dir, rotate)
				r.add(t, "two")
				r.Reopen()
				r.add(t, "three")
				holds(t, r.path, "one\nhalf\ntwo\nthree\n")
			})
			t.Run("has no empty line where the writer closes its own half", func(t *testing.T) {
				r := openRecords(t, "", rotate)
				if _, err := r.Write([]byte("one\nhalf")); err != nil {
					t.Fatal(err)
				}
				r.Reopen()
				r.add(t, "\ntwo") // as audit.NewLines does
				holds(t, r.path, "one\nhalf\ntwo\n")
			})
		})
	}
}

// TestRecordFileThatIsReplaced checks that lines go to the new file when another program
// moves the file away and creates a new one, without a call to Reopen.
func TestRecordFileThatIsReplaced(t *testing.T) {
	r := openRecords(t, "", Rotation{})
	r.add(t, "one")
	if err := os.Rename(r.path, r.path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.add(t, "two")
	holds(t, r.path+".1", "one\n")
	holds(t, r.path, "two\n")
}

// TestRecordFileThatCannotBeOpenedAgain checks that the old file stays open, and that the
// failure is reported.
func TestRecordFileThatCannotBeOpenedAgain(t *testing.T) {
	r := openRecords(t, "", Rotation{})
	r.cfg.Path = r.dir // a directory, which even root cannot write to
	r.info, _ = os.Stat(r.dir)
	r.Reopen()
	r.add(t, "one")
	holds(t, r.path, "one\n")
	if len(r.failures) != 1 {
		t.Errorf("told of %v", r.failures)
	}
}

// TestManyLinesInASmallFile checks a write of more bytes than a file may have.
func TestManyLinesInASmallFile(t *testing.T) {
	r := openRecords(t, "", Rotation{Size: 1 << 20})
	line := strings.Repeat("x", 1<<16-1) + "\n"
	lines := strings.Repeat(line, 40)
	if n, err := r.Write([]byte(lines)); n != len(lines) || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(lines), err)
	}
	total := 0
	for _, path := range append(r.rotated(t), r.path) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(content) > 1<<20 || !bytes.HasSuffix(content, []byte("x\n")) {
			t.Errorf("%s has %d bytes", path, len(content))
		}
		total += bytes.Count(content, []byte(line))
	}
	if total != 40 {
		t.Errorf("%d lines are whole, want 40", total)
	}
}

// TestRotationByAge checks that the period of the rotation does not start again with every
// SIGHUP.
func TestRotationByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := openRecords(t, "", Rotation{Every: time.Hour})
		r.add(t, "one")
		time.Sleep(40 * time.Minute)
		r.Reopen()
		r.add(t, "two")
		if all := r.rotated(t); len(all) != 0 {
			t.Errorf("rotated before its time: %q", all)
		}
		time.Sleep(40 * time.Minute)
		r.Reopen()
		r.add(t, "three")
		all := r.rotated(t)
		if len(all) != 1 {
			t.Fatalf("after its time there are %q", all)
		}
		holds(t, all[0], "one\ntwo\n")
		holds(t, r.path, "three\n")
	})
}

// TestRotationByAgeAfterARestart checks a file that an earlier process has written, in
// this period or in an earlier one.
func TestRotationByAgeAfterARestart(t *testing.T) {
	const every = 365 * 24 * time.Hour // a period does not end while the test runs
	for _, row := range []struct {
		content string
		ago     time.Duration
		rotated int
	}{
		{"one\n", 2 * every, 1},
		{"one\n", 0, 0},
		{"", 2 * every, 0}, // an empty file is not rotated
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "records.jsonl")
		if err := os.WriteFile(path, []byte(row.content), 0o600); err != nil {
			t.Fatal(err)
		}
		// A minute is added so that a file of now is never from the period before.
		written := time.Now().Add(time.Minute - row.ago)
		if err := os.Chtimes(path, written, written); err != nil {
			t.Fatal(err)
		}
		r := openRecords(t, dir, Rotation{Every: every})
		r.add(t, "two")
		if all := r.rotated(t); len(all) != row.rotated {
			t.Errorf("%q, written %v ago: rotated to %q", row.content, row.ago, all)
		}
	}
}

// TestOldFilesBeyondKeepAreRemoved checks that as many rotated files are kept as the
// configuration says.
func TestOldFilesBeyondKeepAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := openRecords(t, "", Rotation{Every: time.Hour, Keep: 2})
		for range 6 {
			r.add(t, "line")
			time.Sleep(time.Hour)
		}
		synctest.Wait() // for the goroutine that removes files
		if all := r.rotated(t); len(all) != 2 {
			t.Errorf("%d are kept, want 2", len(all))
		}
	})
}
