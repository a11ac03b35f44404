package process

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/e2e/missing"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// openPolicy loads a policy for the first time, as a start does.
func openPolicy(ctx context.Context, t *testing.T, path string) (*policyFiles, error) {
	t.Helper()
	f, err := openPolicyFiles(ctx, []string{path}, watch.DefaultPoll, spiffeid.TrustDomain{}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return f, nil
}

// TestStartWhileThePolicyIsWritten checks that the process does not start with half a
// policy if a writer is at work at the start. The half is valid by itself.
func TestStartWhileThePolicyIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := write(t, "policy.yaml", goodPolicy)
		whole := goodPolicy + "    deny:\n      - host: api.example\n"
		time.AfterFunc(20*time.Millisecond, func() {
			if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
				t.Error(err)
			}
		})
		f, err := openPolicy(t.Context(), t, path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := policyfile.Load(policyfile.Options{}, path)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Loaded().Policy.Version(); got != want.Version() {
			t.Errorf("started with version %s, want that of the whole, %s", got, want.Version())
		}
	})
}

// TestStartWhileAWriterIsSlow checks the start while a writer keeps a half written
// policy open for longer than the time between two readings.
func TestStartWhileAWriterIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := write(t, "policy.yaml", "")
		writer, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if watch.Writing([]string{path}, isPolicyFile) == "" {
			missing.Skip(t, "this file system has no leases (fcntl F_SETLEASE), which tell who writes")
		}
		put := func(text string) {
			if _, err := writer.WriteString(text); err != nil {
				t.Error(err)
			}
		}
		put(goodPolicy)
		time.AfterFunc(time.Second, func() {
			put("    deny:\n      - host: api.example\n")
			if err := writer.Close(); err != nil {
				t.Error(err)
			}
		})
		begin := time.Now()
		f, err := openPolicy(t.Context(), t, path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := policyfile.Load(policyfile.Options{}, path)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Loaded().Policy.Version(); got != want.Version() || time.Since(begin) < time.Second {
			t.Errorf("started after %s with version %s, want that of the whole, %s", time.Since(begin), got, want.Version())
		}
	})
}

// TestStartDoesNotWaitForeverForAWriter checks that the process starts although a writer
// never closes the file.
func TestStartDoesNotWaitForeverForAWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := write(t, "policy.yaml", goodPolicy)
		writer, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer writer.Close()
		begin := time.Now()
		if _, err := openPolicy(t.Context(), t, path); err != nil {
			t.Fatal(err)
		}
		if took, most := time.Since(begin), watch.MaxWriting+time.Second; took > most {
			t.Errorf("started after %s, want at most %s", took, most)
		}
	})
}

// TestFirstLoadOfAPolicy checks the first load of a policy at the start, and its errors.
func TestFirstLoadOfAPolicy(t *testing.T) {
	stopped, stop := context.WithCancel(t.Context())
	stop()
	empty := t.TempDir()
	for _, row := range []struct {
		name   string
		ctx    context.Context
		path   string
		want   error
		loaded bool
	}{
		{"with a policy", t.Context(), write(t, "policy.yaml", goodPolicy), nil, true},
		{"with an empty directory", t.Context(), empty, nil, false},
		{"with a file that does not exist", t.Context(), filepath.Join(empty, "policy.yaml"), os.ErrNotExist, false},
		{"with a context that is done", stopped, write(t, "policy.yaml", goodPolicy), context.Canceled, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			f, err := openPolicy(row.ctx, t, row.path)
			if !errors.Is(err, row.want) {
				t.Fatalf("error %v, want %v", err, row.want)
			}
			if row.want != nil {
				return
			}
			if first := f.Loaded(); (first.Policy != nil) != row.loaded || (first.Quarantine != nil) != row.loaded || first.SameRules {
				t.Errorf("loaded %+v", first)
			}
		})
	}
}

// TestStartWithABrokenQuarantineAlone checks that the start fails with a broken
// quarantine list and no policy, as it does with a broken policy.
func TestStartWithABrokenQuarantineAlone(t *testing.T) {
	dir := filepath.Dir(write(t, "quarantine.yaml", "version: 1\nallow: []\n"))
	if _, err := openPolicy(t.Context(), t, dir); err == nil {
		t.Error("a gateway starts with a quarantine that it cannot read")
	}
}

// loads holds what a source has reported.
type loads struct {
	last live.Change
	err  error
	n    int
}

func (l *loads) loaded(_ context.Context, c live.Change, err error) {
	l.last, l.err, l.n = c, err, l.n+1
}

// TestReadingsOfPolicyFiles checks what each reading reports: each part that is new, and
// nothing if another reading must confirm it.
func TestReadingsOfPolicyFiles(t *testing.T) {
	dir := t.TempDir()
	f, err := openPolicy(t.Context(), t, dir)
	if err != nil {
		t.Fatal(err)
	}
	var told loads
	f.loaded = told.loaded
	policy, quarantine := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "quarantine.yaml")
	const cut = "version: 1\nquarantine: [{id: spiffe://td.example/w}]\n"
	for _, step := range []struct {
		name     string
		change   func()
		complete bool
		done     bool

		policy, other, quarantine, failed bool // a policy was read, and its rules differ; a quarantine list was read; there was an error
	}{
		{name: "the empty directory, read again", done: true},
		{name: "a broken quarantine comes with the first policy", change: func() {
			put(t, policy, goodPolicy)
			put(t, quarantine, "version: 1\nquarantine: [{id: spiffe://td.example/w, until: 2027-01-01}]\n")
		}, complete: true, done: true, policy: true, other: true, failed: true},
		{name: "the same files", complete: true, done: true},
		{name: "the quarantine is mended", change: func() { put(t, quarantine, "version: 1\nquarantine: []\n") }, complete: true, done: true, policy: true, quarantine: true},
		{name: "half of another policy", change: func() { put(t, policy, goodPolicy+"      - host: two.example\n") }},
		{name: "all of another policy", change: func() { put(t, policy, goodPolicy+"      - host: two.example\n      - host: three.example\n") }},
		{name: "all of another policy, read again", done: true, policy: true, other: true},
		{name: "a quarantine", change: func() { put(t, quarantine, cut) }, complete: true, done: true, policy: true, quarantine: true},
		{name: "a broken policy", change: func() { put(t, policy, "version: 1\nidentites: []\n") }, complete: true, done: true, failed: true},
		{name: "a quarantine beside a broken policy", change: func() { put(t, quarantine, "version: 1\nquarantine: []\n") }, complete: true, done: true, quarantine: true, failed: true},
		{name: "the first policy again", change: func() { put(t, policy, goodPolicy) }, complete: true, done: true, policy: true, other: true},
		{name: "no quarantine list any more", change: func() {
			put(t, quarantine, cut)
			f.reload(t.Context(), true)
			if err := os.Remove(quarantine); err != nil {
				t.Fatal(err)
			}
		}, complete: true, done: true, policy: true, quarantine: true},
	} {
		if step.change != nil {
			step.change()
		}
		before := told.n
		if got := f.reload(t.Context(), step.complete); got != step.done || (told.n == before) == step.done {
			t.Errorf("%s: done %v, told %d times; want %v", step.name, got, told.n-before, step.done)
		}
		if !step.done {
			continue
		}
		c := told.last
		if (c.Policy != nil) != step.policy || c.SameRules == step.other || (c.Quarantine != nil) != step.quarantine || (told.err != nil) != step.failed {
			t.Errorf("%s: told %+v, %v", step.name, c, told.err)
		}
	}
}

// TestPolicyFilesAreFollowed checks that a file which is renamed into place is reported,
// and that an explicit request is answered even if nothing has changed.
func TestPolicyFilesAreFollowed(t *testing.T) {
	path := write(t, "policy.yaml", goodPolicy)
	f, err := openPolicyFiles(t.Context(), []string{path}, -1, spiffeid.TrustDomain{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.watching.open(); err != nil {
		t.Fatal(err)
	}
	changes, again := make(chan live.Change, 100), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() {
		f.Follow(ctx, again, func(_ context.Context, c live.Change, err error) {
			if err != nil {
				t.Error(err)
			}
			changes <- c
		})
	})
	t.Cleanup(func() {
		stop()
		following.Wait()
	})
	next := func(what string) live.Change {
		t.Helper()
		select {
		case c := <-changes:
			return c
		case <-time.After(patience):
			t.Fatalf("%s: nobody is told", what)
			return live.Change{}
		}
	}
	if c := next("when it is followed"); c.Policy != nil {
		t.Errorf("told of %+v, though nothing has changed", c)
	}
	again <- struct{}{}
	if c := next("when it is asked for"); c.Policy != nil {
		t.Errorf("told of %+v, though nothing has changed", c)
	}
	replace(t, path, goodPolicy+"      - host: two.example\n")
	for {
		if c := next("of another policy"); c.Policy != nil {
			if c.SameRules || c.Policy.Version() == f.Loaded().Policy.Version() {
				t.Errorf("told of %+v", c)
			}
			return
		}
	}
}

// TestAQuarantineIsThereBeforeThePolicy checks that a quarantine list which is there
// before the first policy is kept for it.
func TestAQuarantineIsThereBeforeThePolicy(t *testing.T) {
	const one, none = "version: 1\nquarantine: [{id: spiffe://td.example/ns/ci/sa/builder}]\n", "version: 1\nquarantine: []\n"
	for _, row := range []struct {
		name, first string
		before      func(t *testing.T, quarantine string, hangup chan<- os.Signal)
		want        int // number of identities in quarantine
	}{
		{"the list stays", one, func(*testing.T, string, chan<- os.Signal) {}, 1},
		{"an empty list stays", none, func(*testing.T, string, chan<- os.Signal) {}, 0},
		{"the list changes before the policy comes", none, func(t *testing.T, path string, _ chan<- os.Signal) {
			t.Helper()
			replace(t, path, one)
		}, 1},
		{"the list is removed before the policy comes", one, func(t *testing.T, path string, _ chan<- os.Signal) {
			t.Helper()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"the list is read again", one, func(_ *testing.T, _ string, hangup chan<- os.Signal) { hangup <- syscall.SIGHUP }, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := write(t, "quarantine.yaml", row.first)
			dir := filepath.Dir(path)
			p, err := Open(t.Context(), configured(t, dir), options())
			if err != nil {
				t.Fatal(err)
			}
			hangup := make(chan os.Signal, 1)
			serve(t, p, hangup)
			row.before(t, path, hangup)
			if s := p.gateway.State(); s != nil {
				t.Fatalf("in force without a policy: %+v", s)
			}
			replace(t, filepath.Join(dir, "policy.yaml"), goodPolicy)
			eventually(t, "the policy is in force with its quarantine", func() bool {
				s := p.gateway.State()
				return s != nil && len(s.Policy.Quarantined()) == row.want
			})
		})
	}
}
