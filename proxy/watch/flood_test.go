package watch

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// flood calls something in a loop until the test ends or stop is called.
func flood(t *testing.T, something func(i int) error) (stop func()) {
	t.Helper()
	done, ended, begun := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if err := something(i); err != nil {
				t.Error(err)
				return
			}
			if i == 100 {
				close(begun)
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(done)
		<-ended
	})
	t.Cleanup(stop)
	<-begun
	return stop
}

// TestChangesBesideABusyFile checks that changes are found, and renames at once, while
// another file of the watched directory is written without a pause.
func TestChangesBesideABusyFile(t *testing.T) {
	root := t.TempDir()
	path := root + "/policy.yaml"
	old(t, path, "one")
	r := follow(t, path, isYAML, root)
	log, err := os.Create(root + "/records.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	stop := flood(t, func(i int) error {
		if i%10 == 0 {
			return os.WriteFile(root+"/busy.log", nil, 0o600)
		}
		_, err := fmt.Fprintln(log, i)
		return err
	})
	put(t, root+"/.tmp", "two")
	rename(t, root+"/.tmp", path)
	if l := r.believes(t, "two"); !l.complete {
		t.Error("a rename was not believed at once")
	}
	put(t, path, "three")
	r.believes(t, "three")
	stop()
	r.quietly(t)
}

// TestChangesOfABusyFile checks that a new content of a file is found while the file's
// permissions and another file are changed without a pause.
func TestChangesOfABusyFile(t *testing.T) {
	root := t.TempDir()
	path := root + "/policy.yaml"
	old(t, path, "one")
	r := follow(t, path, isYAML, root)
	put(t, root+"/b.yaml", "")
	flood(t, func(i int) error {
		if i%2 == 0 {
			return os.Chmod(path, 0o600)
		}
		return os.Truncate(root+"/b.yaml", int64(i)%64)
	})
	put(t, path, "two")
	r.believes(t, "two")
}

// TestManyRenames checks that a file which is replaced without a pause is read at most
// once in each quiet time, and that the last content is believed in the end.
func TestManyRenames(t *testing.T) {
	root := t.TempDir()
	path := root + "/policy.yaml"
	old(t, path, "one")
	r := follow(t, path, isYAML, root)
	last := ""
	stop := flood(t, func(i int) error {
		last = fmt.Sprint("text ", i)
		if err := os.WriteFile(root+"/.tmp", []byte(last), 0o600); err != nil {
			return err
		}
		return os.Rename(root+"/.tmp", path)
	})
	var before time.Time // end of the previous reading
	for n := 0; n < 3; { // the file is read while the flood goes on
		l := r.next(t)
		if after := time.Since(before); after < quiet {
			t.Errorf("read again after %s", after)
		}
		if l.believed {
			n++
		}
		before = time.Now()
		close(l.goOn)
	}
	stop()
	r.Trigger() // the last content may have been read already
	for l := r.pass(t); l.text != last || !l.done; l = r.pass(t) {
	}
	r.quietly(t)
}

// TestLostEvents checks that a change is found if its event was lost because the
// kernel's queue of events was full.
func TestLostEvents(t *testing.T) {
	root := t.TempDir()
	path := root + "/policy.yaml"
	old(t, path, "one")
	r := follow(t, path, isYAML, root)
	r.Trigger()
	l := r.next(t)
	put(t, root+"/x", "")
	put(t, root+"/y", "")
	for range 12_000 { // two events each; fs.inotify.max_queued_events is 16,384 by default
		for _, name := range []string{"/x", "/y"} {
			if err := os.Chmod(root+name, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(t, root+"/.tmp", "two")
	rename(t, root+"/.tmp", path)
	close(l.goOn)
	r.believes(t, "two")
	select {
	case err := <-r.failures:
		if !errors.Is(err, fsnotify.ErrEventOverflow) {
			t.Errorf("told of %v", err)
		}
	default:
		missing.Skip(t, "no overflow: this system keeps more events than the test makes (fs.inotify.max_queued_events)")
	}
}
