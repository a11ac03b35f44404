// Package watch reports when files may have changed, however they are replaced:
// by a rename, by the symlink swap of a ConfigMap, in place, or together with
// any directory above them.
//
// It watches directories and not files: every directory that the path of a file
// goes through, from the root and through every symbolic link. An event means only
// that something may have changed, and the reader compares what it reads with what
// it read before. A poll covers file systems that send no events.
//
// While a process has one of the files open for writing, the package delays the reading,
// for half a minute at most. It does not notice a writer of another user's files, nor one
// that closes the file and continues later. Files should
// therefore be replaced by a rename.
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

// MaxWriting is how long a watcher waits for a writer, with the default quiet time.
const MaxWriting = mostWriting * DefaultQuiet

// How long a watcher waits, as multiples of the quiet time.
const (
	mostEvents  = 20  // for events to cease, before it has the files read
	tellWriter  = 20  // for a writer to close a file, before it calls Failed
	mostWriting = 600 // for a writer to close a file, before it has the files read
)

// Config configures a Watcher.
type Config struct {
	// Paths are files and directories; they need not exist yet.
	Paths []string
	// Inside reports by the name of a directory entry whether the entry is read. Nil
	// means every entry whose name does not begin with a dot. Changes of other entries
	// cause no reading.
	Inside func(name string) bool
	// quiet is how long no event must have come before a file that is written in place is
	// read; zero means DefaultQuiet.
	quiet time.Duration
	// Poll is the time between readings without any event; zero means DefaultPoll, a
	// negative value that there is no poll.
	Poll time.Duration
	// Changed is called when the files should be read, for the first time when Run
	// begins, and never concurrently with itself. complete says that a rename put the
	// files in place, so that their content is complete. If it is false, a writer may
	// be at work, and the reader must not use a reading before the next one has
	// repeated it. If Changed returns false it is called again after the quiet time.
	// Required.
	Changed func(ctx context.Context, complete bool) (done bool)
	// Failed is called once for everything that cannot be watched, or cannot be read
	// because a process keeps it open for writing. It may be nil.
	Failed func(ctx context.Context, err error)
}

// Writing returns a file that a process has open for writing, as far as that can be
// told, or "". It looks at paths, and at those entries of directories among them whose
// name inside accepts. It is meant for a reader that reads before Run.
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

// Watcher watches files. New makes one, and Run runs it.
type Watcher struct {
	cfg     Config
	trigger chan struct{}
	tree    *tree

	// The following fields are used by Run only.
	timer    *time.Timer
	armed    bool            // the timer runs, so that there will be a reading
	pending  bool            // a file is being written in place, or a reading waits to be repeated
	armedAt  time.Time       // when the timer was armed
	lastRead time.Time       // when the last reading ended
	renamed  map[string]bool // names that were put in place by a rename since the last reading
	writing  time.Time       // when the current writer was first seen; zero if no writer is waited for
	told     bool            // Failed was called for the current writer
}

// New returns a watcher. Run begins with a reading, so that a change before it is not
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

// Close stops watching. It is for a watcher that is never run; after Run it does
// nothing.
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
	w.changed(ctx, false)
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.timer.C:
			w.changed(ctx, !w.pending && len(w.renamed) > 0)
		case <-w.trigger:
			w.readNow(ctx)
		case <-poll:
			w.readNow(ctx)
		case event := <-w.tree.fs.Events:
			w.notice(ctx, event)
		case err := <-w.tree.fs.Errors: // events were lost
			w.cfg.Failed(ctx, fmt.Errorf("watching files: %w", err))
			w.wait()
		}
	}
}

// readNow calls changed now, unless a reading is due anyway. A reading too soon after
// the last one could repeat the same incomplete content, which would then be used.
func (w *Watcher) readNow(ctx context.Context) {
	if !w.armed {
		w.changed(ctx, false)
	}
}

// notice handles an event.
func (w *Watcher) notice(ctx context.Context, event fsnotify.Event) {
	name := filepath.Clean(event.Name)
	switch {
	case !w.tree.concerns(name):
	case isRename(event):
		w.renamed[name] = true
		switch {
		case w.pending: // another file is being written in place
			w.wait()
		case time.Since(w.lastRead) < w.cfg.quiet: // one of many renames: at most one reading in a quiet time
			w.arm(w.cfg.quiet - time.Since(w.lastRead))
		default:
			w.changed(ctx, true)
		}
	case event.Has(fsnotify.Create), event.Has(fsnotify.Write):
		w.wait()
	default: // the file was removed, or its permissions changed: there may be nothing new to read yet
		w.arm(w.cfg.quiet)
	}
}

// isRename reports whether an event is the second half of a rename from one watched
// directory into another: the file was written before, under its old name. fsnotify
// shows the old name only in the text of the event, in which quotes inside of names are
// escaped. A rename from a directory that is not watched counts as a write in place,
// which is slower but never wrong.
func isRename(event fsnotify.Event) bool {
	return event.Has(fsnotify.Create) && strings.Contains(event.String(), `" ← "`)
}

// arm makes sure that there will be a reading within d.
func (w *Watcher) arm(d time.Duration) {
	if !w.armed {
		w.armed, w.armedAt = true, time.Now()
		w.timer.Reset(d)
	}
}

// wait puts the reading off until there was no event for the quiet time. If the events
// do not cease, the files are read all the same; the reader then uses a reading only
// after another one has repeated it.
func (w *Watcher) wait() {
	w.pending = true
	w.arm(w.cfg.quiet)
	left := time.Until(w.armedAt.Add(mostEvents * w.cfg.quiet))
	w.timer.Reset(min(w.cfg.quiet, max(left, 0)))
}

// changed calls Changed, unless a process has one of the files open for writing.
func (w *Watcher) changed(ctx context.Context, complete bool) {
	w.armed = false
	w.timer.Stop()
	for _, err := range w.tree.walk() {
		w.cfg.Failed(ctx, err)
	}
	if w.writerIn(ctx) {
		w.pending = true
		w.arm(w.cfg.quiet) // there is no event when the writer closes the file
		return
	}
	// A rename says that its own file is complete. Another file that was written just
	// now may be incomplete, and its events may still be on their way.
	complete = complete && w.writing.IsZero() && !w.tree.recentlyWritten(w.cfg.quiet, w.renamed)
	clear(w.renamed)
	w.pending = !w.cfg.Changed(ctx, complete)
	w.lastRead = time.Now()
	if w.pending {
		w.arm(w.cfg.quiet)
	}
}

// writerIn reports whether a process has a file open for writing and should still be
// waited for.
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
