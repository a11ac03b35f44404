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

// tree holds the directories and files that the configured paths lead to. The paths of
// the directories contain no symbolic link, and all of them are watched.
type tree struct {
	fs     *fsnotify.Watcher
	paths  []string // the configured paths, absolute
	inside func(name string) bool

	watched map[string]fs.FileInfo // directories that are watched
	told    map[string]string      // the last error for a directory that cannot be watched
	failed  []error                // new errors of the current walk

	// The following fields are the result of the current walk.
	dirs   map[string]bool // directories on the way to a file
	steps  map[string]bool // paths of the names that were passed in these directories
	listed map[string]bool // directories whose entries are read
	files  []file          // files at the end
}

// file is a file that a path leads to.
type file struct {
	path  string
	info  fs.FileInfo
	steps []string // paths of the names that were passed on the way
}

// walk follows every path again. It returns an error for what cannot be watched, once
// for each directory and cause.
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

// follow resolves the names of a path from the directory at, as the kernel does, through
// symbolic links. It returns the end of the path, the names that it passed, and the
// FileInfo of the end, which is nil if the end does not exist. Each directory is watched
// before its next name is looked up, so that a name which is created later is an event.
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

// list adds the files in a directory.
func (t *tree) list(dir string, steps []string) {
	t.watch(dir, true)
	t.listed[dir] = true
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the reader will report the error
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

// watch watches a directory. last says that it holds the file or is read itself, and is
// not only on the way. A directory that has replaced another one of the same name is
// watched anew. So is a directory that was moved away and back, because its watch ended.
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
	case errors.Is(err, fs.ErrNotExist), !last && errors.Is(err, fs.ErrPermission): // it may be created later, or need not be watched
	case t.told[dir] != err.Error():
		t.told[dir] = err.Error()
		t.failed = append(t.failed, fmt.Errorf("watching directory %s: %w; changes in it show only at the next poll", dir, err))
	}
}

// concerns reports whether an event for a name may mean that a file has changed.
func (t *tree) concerns(name string) bool {
	return t.steps[name] || t.listed[filepath.Dir(name)] && t.inside(filepath.Base(name))
}

// written returns a file that a process has open for writing, as far as that can be
// told, or "".
func (t *tree) written() string {
	for _, f := range t.files {
		if f.info.Mode().IsRegular() && openForWriting(f.path) {
			return f.path
		}
	}
	return ""
}

// recentlyWritten reports whether a file was written less than d ago. It ignores files
// whose path goes through a name in renamed.
func (t *tree) recentlyWritten(d time.Duration, renamed map[string]bool) bool {
	return slices.ContainsFunc(t.files, func(f file) bool {
		vouched := slices.ContainsFunc(f.steps, func(step string) bool { return renamed[step] })
		return !vouched && time.Since(f.info.ModTime()) < d
	})
}
