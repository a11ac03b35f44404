package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// maxLinks is how many symbolic links one path may lead through, as in Linux.
const maxLinks = 40

const separator = string(filepath.Separator)

// tree is where the paths lead now: the directories passed on the way, all
// without a symbolic link in their own paths and all watched, and the files at
// the end.
type tree struct {
	fs     *fsnotify.Watcher
	paths  []string // absolute
	inside func(name string) bool

	watched map[string]fs.FileInfo
	told    map[string]string // what went wrong with a directory when last tried
	failed  []error           // of this walk, and new

	dirs   map[string]bool // directories of this walk
	steps  map[string]bool // names in them that were passed
	listed map[string]bool // those of them that are read as a whole
	files  []file
}

// file is what is read in the end.
type file struct {
	path  string
	info  fs.FileInfo
	steps []string // names passed on the way
}

// walk follows every path anew. It returns what cannot be watched, each error
// once.
func (t *tree) walk() []error {
	if t.watched == nil {
		t.watched, t.told = map[string]fs.FileInfo{}, map[string]string{}
	}
	t.dirs, t.steps, t.listed = map[string]bool{}, map[string]bool{}, map[string]bool{}
	t.files, t.failed = nil, nil
	for _, path := range t.paths {
		at, steps, info := t.follow(separator, strings.Split(path, separator), nil)
		switch {
		case info == nil:
		case info.IsDir():
			t.list(at, steps)
		default:
			t.files = append(t.files, file{at, info, steps})
		}
	}
	for dir := range t.watched {
		if !t.dirs[dir] {
			_ = t.fs.Remove(dir) // gone already, most of the time
			delete(t.watched, dir)
		}
	}
	return t.failed
}

// follow goes on from a directory as the kernel does, name by name and through
// symbolic links. It returns what is at the end, nil if that is not there. Each
// directory is watched before it is asked for the next name, so that whatever
// comes into being after that is an event.
func (t *tree) follow(at string, rest, steps []string) (end string, passed []string, info fs.FileInfo) {
	links := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at, info = filepath.Dir(at), nil
			continue
		}
		t.watch(at, len(rest) == 0)
		step := filepath.Join(at, name)
		t.steps[step] = true
		steps = append(steps, step)
		var err error
		if info, err = os.Lstat(step); err != nil {
			return "", nil, nil
		}
		if info.Mode().Type() != fs.ModeSymlink {
			at = step
			continue
		}
		target, err := os.Readlink(step)
		if links++; err != nil || links > maxLinks {
			return "", nil, nil
		}
		if filepath.IsAbs(target) {
			at = separator
		}
		rest = append(strings.Split(target, separator), rest...)
	}
	if info == nil { // the path ended in ..
		info, _ = os.Lstat(at) // nil is the answer
	}
	return at, steps, info
}

// list takes up what a directory holds.
func (t *tree) list(dir string, steps []string) {
	t.watch(dir, true)
	t.listed[dir] = true
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the reader says so
	}
	for _, entry := range entries {
		if !t.inside(entry.Name()) {
			continue
		}
		if at, steps, info := t.follow(dir, []string{entry.Name()}, slices.Clip(steps)); info != nil {
			t.files = append(t.files, file{at, info, steps})
		}
	}
}

// watch watches a directory; last means that it is not merely on the way. A
// directory under the name of another one is watched anew, and one that was
// moved away and back again too: its watch is gone.
func (t *tree) watch(dir string, last bool) {
	if t.dirs[dir] {
		return
	}
	t.dirs[dir] = true
	info, err := os.Lstat(dir)
	if before := t.watched[dir]; before != nil && (err != nil || !os.SameFile(before, info)) {
		_ = t.fs.Remove(dir)
		delete(t.watched, dir)
	}
	if err == nil {
		err = t.fs.Add(dir)
	}
	switch {
	case err == nil:
		t.watched[dir] = info
		delete(t.told, dir)
	case errors.Is(err, fs.ErrNotExist), !last && errors.Is(err, fs.ErrPermission): // it may come, or need not be seen
	case t.told[dir] != err.Error():
		t.told[dir] = err.Error()
		t.failed = append(t.failed, fmt.Errorf("watching directory %s: %w; changes in it show only at the next poll", dir, err))
	}
}

// concerns reports whether an event of that name may change what is read.
func (t *tree) concerns(name string) bool {
	return t.steps[name] || t.listed[filepath.Dir(name)] && t.inside(filepath.Base(name))
}

// written returns a file that somebody has open for writing, as far as that
// can be told; "" is none.
func (t *tree) written() string {
	for _, f := range t.files {
		if f.info.Mode().IsRegular() && openForWriting(f.path) {
			return f.path
		}
	}
	return ""
}

// young reports whether a file was written less than d ago, other than those
// that a name leads to which was renamed.
func (t *tree) young(d time.Duration, renamed map[string]bool) bool {
	return slices.ContainsFunc(t.files, func(f file) bool {
		vouched := slices.ContainsFunc(f.steps, func(step string) bool { return renamed[step] })
		return !vouched && time.Since(f.info.ModTime()) < d
	})
}
