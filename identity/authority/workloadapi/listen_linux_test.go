package workloadapi

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestSocketIsPrivateFromTheStart checks the mode of the socket before chmod, because
// nobody else may connect in between.
func TestSocketIsPrivateFromTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	config := net.ListenConfig{Control: createPrivate}
	l, err := config.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != privateSocket {
		t.Errorf("mode %o, want %o", got, privateSocket)
	}
}
