package identity

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TestNamedPipeDoesNotBlockAReload checks that a reload returns if a file was replaced
// by a named pipe to which nobody writes.
func TestNamedPipeDoesNotBlockAReload(t *testing.T) {
	for _, name := range []string{"svid.pem", "svid_key.pem", "bundle.pem"} {
		t.Run(name, func(t *testing.T) {
			l := newOwnIdentity(t)
			path := filepath.Join(l.dir, name)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				_, err := l.files.Reload()
				done <- err
			}()
			select {
			case err := <-done:
				checkMessage(t, err, l.dir, []string{"file DIR/" + name + " is not a regular file"})
			case <-time.After(10 * time.Second):
				t.Error("the reload waits for somebody who writes into a named pipe")
				if pipe, err := os.OpenFile(path, os.O_RDWR, 0); err == nil { // lets it go
					_ = pipe.Close()
				}
			}
		})
	}
}

// TestFingerprintOfALargeFileTakesBoundedMemory checks that the fingerprint of the files
// takes little memory if one of them has 256 MiB. That file takes no room on the disk.
func TestFingerprintOfALargeFileTakesBoundedMemory(t *testing.T) {
	const most = 32 << 20 // bytes, for a file of 4 MiB and buffers that grow to it
	l := newOwnIdentity(t)
	good := l.files.Fingerprint()
	if again := l.files.Fingerprint(); again != good {
		t.Errorf("two looks at the same files differ: %q and %q", good, again)
	}
	if err := os.Truncate(filepath.Join(l.dir, "bundle.pem"), 256<<20); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if got := l.files.Fingerprint(); got == good {
		t.Error("a bundle of 256 MiB looks as the one before")
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > most {
		t.Errorf("the look took %d MiB", took>>20)
	}
}
