package watch

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	quiet    = 10 * time.Millisecond
	patience = 30 * time.Second // bounds every wait
)

// reader reads a file when the watcher calls Changed. Like the reader of a policy it
// believes a content that is complete, or that it has read twice in a row.
type reader struct {
	*Watcher
	path     string
	seen     string // content at the last reading
	held     string // content that was believed last
	looks    chan look
	failures chan error
}

// look is one call of Changed. Its field done is the result of the call.
type look struct {
	complete bool
	text     string
	believed bool // the text is believed, and differs from the one that was believed before
	done     bool
	goOn     chan struct{} // the call returns when this is closed
}

// follow watches paths until the test ends, and reads path. When it returns, the first
// content of path is believed.
func follow(t *testing.T, path string, inside func(string) bool, paths ...string) *reader {
	t.Helper()
	r := &reader{path: path, looks: make(chan look), failures: make(chan error, 64)}
	var err error
	r.Watcher, err = New(Config{
		Paths: paths, Inside: inside, quiet: quiet, Poll: -1, Changed: r.changed,
		Failed: func(ctx context.Context, err error) {
			select {
			case r.failures <- err:
			case <-ctx.Done():
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	for !r.pass(t).done {
	}
	return r
}

func (r *reader) changed(ctx context.Context, complete bool) bool {
	data, err := os.ReadFile(r.path)
	text := string(data)
	if err != nil {
		text = "error"
	}
	done := complete || text == r.seen || text == r.held
	l := look{complete: complete, text: text, believed: done && text != r.held, done: done, goOn: make(chan struct{})}
	r.seen = text
	if done {
		r.held = text
	}
	select {
	case r.looks <- l:
		select {
		case <-l.goOn:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	return done
}

// next waits for the next look. The look continues when goOn is closed.
func (r *reader) next(t *testing.T) look {
	t.Helper()
	select {
	case l := <-r.looks:
		return l
	case <-time.After(patience):
		t.Fatal("nothing is read")
		return look{}
	}
}

// pass waits for the next look and lets it continue.
func (r *reader) pass(t *testing.T) look {
	t.Helper()
	l := r.next(t)
	close(l.goOn)
	return l
}

// believes waits until a new content is believed, and checks that it is text.
func (r *reader) believes(t *testing.T, text string) look {
	t.Helper()
	for {
		if l := r.pass(t); l.believed {
			if l.text != text {
				t.Fatalf("believed %q, want %q", l.text, text)
			}
			return l
		}
	}
}

// quietly checks that no other content is believed before the watcher comes to rest.
func (r *reader) quietly(t *testing.T) {
	t.Helper()
	r.Trigger()
	for {
		l := r.pass(t)
		if l.believed {
			t.Fatalf("believed once more: %q", l.text)
		}
		if l.done {
			return
		}
	}
}

func isYAML(name string) bool { return strings.HasSuffix(name, ".yaml") }

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// old makes a file whose modification time is an hour ago, so that the watcher does not
// expect a writer to continue.
func old(t *testing.T, path, text string) {
	t.Helper()
	put(t, path, text)
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, hour, hour); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// disk is a directory whose files the rows of a table change. The paths of its methods
// are relative to it.
type disk struct {
	t    *testing.T
	root string
}

func (d disk) at(path string) string { return filepath.Join(d.root, path) }

func (d disk) put(path, text string) { d.t.Helper(); put(d.t, d.at(path), text) }

func (d disk) old(path, text string) { d.t.Helper(); old(d.t, d.at(path), text) }

func (d disk) rename(from, to string) { d.t.Helper(); rename(d.t, d.at(from), d.at(to)) }

func (d disk) remove(path string) { d.t.Helper(); remove(d.t, d.at(path)) }

// link makes a symbolic link. The target may be relative to the link.
func (d disk) link(target, path string) {
	d.t.Helper()
	if err := os.Symlink(target, d.at(path)); err != nil {
		d.t.Fatal(err)
	}
}

func (d disk) hardLink(from, path string) {
	d.t.Helper()
	if err := os.Link(d.at(from), d.at(path)); err != nil {
		d.t.Fatal(err)
	}
}
