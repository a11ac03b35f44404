package watch

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// leases reports whether the file system of the tests has leases, which tell whether a
// file is open for writing.
func leases(t *testing.T) bool {
	t.Helper()
	path := t.TempDir() + "/file"
	put(t, path, "")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return err == nil
}

// TestOpenForWriting checks that a file counts as open for writing exactly while it is,
// and that the check does not change the result of the next one.
func TestOpenForWriting(t *testing.T) {
	needLeases(t, leases(t))
	path := t.TempDir() + "/file"
	for _, row := range []struct {
		name  string
		flags int
		want  bool
	}{
		{"for writing", os.O_WRONLY | os.O_CREATE, true},
		{"for both", os.O_RDWR, true},
		{"for reading", os.O_RDONLY, false},
	} {
		f, err := os.OpenFile(path, row.flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the check does not change the result of the next one
			if got := openForWriting(path); got != row.want {
				t.Errorf("open %s: %v", row.name, got)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if openForWriting(path) {
			t.Errorf("closed after it was open %s: still written", row.name)
		}
	}
	if openForWriting(path + ".not") {
		t.Error("a file that is not there is written")
	}
}
