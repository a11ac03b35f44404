// Package watch tells when files may have changed, however they are replaced:
// by a rename, by the symlink swap of a ConfigMap, in place, or together with
// any directory above them.
//
// It watches directories, never files: each one in which a name stands that
// leads to a file, all the way from the root and through every symbolic link.
// It treats every event as "maybe", and says only when to read again: whoever
// reads compares what it read with what it had. A poll is the floor under file
// systems that send no events.
//
// It calls for no reading while it can tell that somebody has a file open for
// writing, for half a minute at most. It cannot tell that of files of another
// user, nor of a writer that closes the file and goes on later: replace files by
// a rename.
package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// The defaults of a zero Config.
const (
	DefaultQuiet = 50 * time.Millisecond
	DefaultPoll  = 15 * time.Second
)

// MaxWriting is how long a writer is waited for, with the default quiet time.
const MaxWriting = mostWriting * DefaultQuiet

// The patience of a watcher, in quiet times.
const (
	mostEvents  = 20  // how long a reading waits for events that do not cease
	tellWriter  = 20  // how long a writer keeps a file open before somebody is told
	mostWriting = 600 // and how long it is waited for
)

// Config says what to watch.
type Config struct {
	// Paths are files and directories; they need not exist yet.
	Paths []string
	// Inside says by its name which entry of a directory among Paths is read;
	// nil means each but those that begin with a dot. Other entries may change
	// as often as they like.
	Inside func(name string) bool
	// quiet is how long nothing must happen before a file that is written in
	// place is read; zero means DefaultQuiet.
	quiet time.Duration
	// Poll is the time between readings without any event; zero means
	// DefaultPoll, negative none.
	Poll time.Duration
	// Changed is called when the files should be read, for the first time when
	// Run begins, never concurrently with itself. settled says that what is
	// there was put there whole, by a rename: it holds at once. If it is not
	// settled, a writer may be under way: the reader must not believe a reading
	// that the next one does not repeat. Changed returns false to be called
	// again after another quiet while, and not sooner. Required.
	Changed func(ctx context.Context, settled bool) (done bool)
	// Failed is told once what cannot be watched, or not be read because
	// somebody keeps it open for writing; nil is nobody.
	Failed func(ctx context.Context, err error)
}

// Writing returns a file among paths, or in a directory among them whose name
// inside takes, that somebody has open for writing, as far as that can be told;
// "" is none. It is for whoever reads before Run does.
func Writing(paths []string, inside func(name string) bool) string {
	for _, path := range paths {
		files := []string{path}
		entries, _ := os.ReadDir(path) // a file has none
		for _, entry := range entries {
			if inside(entry.Name()) {
				files = append(files, filepath.Join(path, entry.Name()))
			}
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && openForWriting(file) {
				return file
			}
		}
	}
	return ""
}

// Watcher watches. Make one with New; Run serves it.
type Watcher struct {
	cfg     Config
	trigger chan struct{}
	tree    *tree

	// What follows belongs to Run.
	timer   *time.Timer
	armed   bool            // the timer runs: there will be a reading
	pending bool            // something is written in place, or a reading waits to be repeated
	since   time.Time       // when the timer was armed
	read    time.Time       // when the last reading ended
	renamed map[string]bool // what was put into place whole since then
	writing time.Time       // since when a writer is in the way; zero: none is
	told    bool            // Failed was told of that writer
}

// New makes a watcher. Run begins with a reading, so that no change before it is
// missed.
func New(cfg Config) (*Watcher, error) {
	if cfg.Changed == nil {
		return nil, errors.New("watch: Changed is required")
	}
	if cfg.Inside == nil {
		cfg.Inside = func(name string) bool { return !strings.HasPrefix(name, ".") }
	}
	if cfg.quiet <= 0 {
		cfg.quiet = DefaultQuiet
	}
	if cfg.Poll == 0 {
		cfg.Poll = DefaultPoll
	}
	if cfg.Failed == nil {
		cfg.Failed = func(context.Context, error) {}
	}
	paths := make([]string, len(cfg.Paths))
	for i, path := range cfg.Paths {
		var err error
		if paths[i], err = filepath.Abs(path); err != nil {
			return nil, fmt.Errorf("watching %s: %w", path, err)
		}
	}
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching files: %w", err)
	}
	return &Watcher{
		cfg: cfg, trigger: make(chan struct{}, 1), renamed: map[string]bool{},
		tree: &tree{fs: fs, paths: paths, inside: cfg.Inside},
	}, nil
}

// Trigger asks for a reading now, as SIGHUP does. It never blocks.
func (w *Watcher) Trigger() {
	select {
	case w.trigger <- struct{}{}:
	default:
	}
}

// Close stops watching. It is for a watcher that is not run; after Run nothing
// happens.
func (w *Watcher) Close() error { return w.tree.fs.Close() }

// Run calls Changed until ctx is done, then stops watching and returns. It is
// called once.
func (w *Watcher) Run(ctx context.Context) {
	defer func() { _ = w.Close() }()
	w.timer = time.NewTimer(time.Hour)
	defer w.timer.Stop()
	var poll <-chan time.Time
	if w.cfg.Poll > 0 {
		ticker := time.NewTicker(w.cfg.Poll)
		defer ticker.Stop()
		poll = ticker.C
	}
	w.look(ctx, false)
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.timer.C:
			w.look(ctx, !w.pending && len(w.renamed) > 0)
		case <-w.trigger:
			w.ask(ctx)
		case <-poll:
			w.ask(ctx)
		case event := <-w.tree.fs.Events:
			w.notice(ctx, event)
		case err := <-w.tree.fs.Errors: // events were lost
			w.cfg.Failed(ctx, fmt.Errorf("watching files: %w", err))
			w.wait()
		}
	}
}

// ask reads now, unless a reading is due anyway: one that comes too soon after
// the last would repeat the prefix of a file and be believed.
func (w *Watcher) ask(ctx context.Context) {
	if !w.armed {
		w.look(ctx, false)
	}
}

// notice takes an event.
func (w *Watcher) notice(ctx context.Context, event fsnotify.Event) {
	name := filepath.Clean(event.Name)
	switch {
	case !w.tree.concerns(name):
	case whole(event):
		w.renamed[name] = true
		switch {
		case w.pending: // beside this one something is written in place
			w.wait()
		case time.Since(w.read) < w.cfg.quiet: // the first one at once, of a flood one a while
			w.arm(w.cfg.quiet - time.Since(w.read))
		default:
			w.look(ctx, true)
		}
	case event.Has(fsnotify.Create), event.Has(fsnotify.Write):
		w.wait()
	default: // gone, or other permissions: nothing new to read yet
		w.arm(w.cfg.quiet)
	}
}

// whole reports whether an event is the second half of a rename from one
// watched directory into one: what is there now was written before, under
// another name. fsnotify shows that other name only in the text of the event,
// where quotes inside of names are escaped. Without it the file counts as
// written in place, which is slower and never wrong.
func whole(event fsnotify.Event) bool {
	return event.Has(fsnotify.Create) && strings.Contains(event.String(), `" ← "`)
}

// arm makes sure that there will be a reading, at the latest in d.
func (w *Watcher) arm(d time.Duration) {
	if !w.armed {
		w.armed, w.since = true, time.Now()
		w.timer.Reset(d)
	}
}

// wait puts the reading off until nothing has happened for a quiet while. If
// things never cease to happen it is done all the same: it will not be
// believed unless another one repeats it.
func (w *Watcher) wait() {
	w.pending = true
	w.arm(w.cfg.quiet)
	left := time.Until(w.since.Add(mostEvents * w.cfg.quiet))
	w.timer.Reset(min(w.cfg.quiet, max(left, 0)))
}

// look has the files read, unless somebody is writing one of them.
func (w *Watcher) look(ctx context.Context, settled bool) {
	w.armed = false
	w.timer.Stop()
	for _, err := range w.tree.walk() {
		w.cfg.Failed(ctx, err)
	}
	if w.writerIn(ctx) {
		w.pending = true
		w.arm(w.cfg.quiet) // that a file is closed is no event
		return
	}
	// A rename vouches for what came with it. Another file that is this young
	// may be half written, and its events still on their way.
	settled = settled && w.writing.IsZero() && !w.tree.young(w.cfg.quiet, w.renamed)
	clear(w.renamed)
	w.pending = !w.cfg.Changed(ctx, settled)
	w.read = time.Now()
	if w.pending {
		w.arm(w.cfg.quiet)
	}
}

// writerIn reports whether somebody is writing a file, and has not been for too
// long.
func (w *Watcher) writerIn(ctx context.Context) bool {
	path := w.tree.written()
	if path == "" {
		w.writing, w.told = time.Time{}, false
		return false
	}
	if w.writing.IsZero() {
		w.writing = time.Now()
	}
	wrote := time.Since(w.writing)
	if !w.told && wrote > tellWriter*w.cfg.quiet {
		w.told = true
		w.cfg.Failed(ctx, fmt.Errorf("%s is open for writing: nothing is read until its writer closes it, or for %s", path, mostWriting*w.cfg.quiet))
	}
	return wrote < mostWriting*w.cfg.quiet
}
