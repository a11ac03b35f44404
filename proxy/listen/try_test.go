package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTry checks that Try returns one line that says why a listener cannot be opened
// and what to do, and that it leaves nothing behind.
func TestTry(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = datagrams.Close() }()
	long := filepath.Join(dir, strings.Repeat("s", MaxPath))
	for _, row := range []struct {
		name, address string
		both          bool
		says          string // "" if the listener can be opened
	}{
		{"a free port", "127.0.0.1:0", false, ""},
		{"a port that is taken", taken.Addr().String(), false, "is taken by another process"},
		{"a port that is taken for datagrams", datagrams.LocalAddr().String(), true, "is taken by another process"},
		{"a socket", "unix:" + filepath.Join(dir, "s"), false, ""},
		{"a socket without its directory", "unix:" + filepath.Join(dir, "none", "s"), false, "the directory " + filepath.Join(dir, "none") + " of the socket"},
		{"a socket below a file", "unix:" + filepath.Join(file, "s"), false, "is no directory"},
		{"a socket where a file is", "unix:" + file, false, "exists and is no socket"},
		{"a long path", "unix:" + long, false, "and that of a unix socket at most 107"},
	} {
		try := Try
		if row.both {
			try = TryWithUDP
		}
		err := try(t.Context(), row.address)
		if (err != nil) != (row.says != "") || err != nil && (!strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want %q", row.name, err, row.says)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "s")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
