// Package file is the file that lines of records are appended to. It is rotated by
// size and age if that is asked for, and follows its name: a file that was moved
// or removed is made again.
//
// Open a [File], give it to audit.NewLines, and call [File.Reopen] when somebody
// who rotates files says so, as by SIGHUP. The package knows nothing of what the
// lines say, and does not sync: a line is as safe as the operating system makes
// it.
package file

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/DeRuina/timberjack"
)

// Config is what a file needs.
type Config struct {
	// Path of the file, which is created with mode 0600. Required.
	Path string
	// Rotate is how the file is rotated; zero is not.
	Rotate Rotation
	// Failed is called by Write if the file cannot be rotated or opened again; the
	// old one stays in use. Required.
	Failed func(error)
}

// Rotation bounds a file. A zero field bounds nothing.
type Rotation struct {
	Size  int64         // bytes of a file, of which whole MiB count
	Every time.Duration // a new file begins at each multiple of it
	Keep  int           // rotated files that are kept
}

// File is an open file of records. One goroutine writes; Reopen may be called at
// any time, and Close when nobody writes any more.
type File struct {
	cfg Config

	again atomic.Bool // the file is to be opened again
	file  io.WriteCloser
	info  fs.FileInfo // of file; nil if it is rotated
	torn  bool        // half a line is at its end, of an earlier process perhaps
	due   time.Time   // when the file is rotated next for its age
}

// Open opens the file, so that one that cannot be written is an error at start.
func Open(cfg Config) (*File, error) {
	if cfg.Path == "" || cfg.Failed == nil {
		return nil, errors.New("a record file needs a path and who is told of failures")
	}
	f := &File{cfg: cfg}
	if every := cfg.Rotate.Every; every > 0 {
		f.due = time.Now().Truncate(every)
		if old, err := os.Stat(cfg.Path); err != nil || !old.ModTime().Before(f.due) {
			f.due = f.due.Add(every)
		}
	}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// open opens the file under its name, and only then lets go of the one before.
func (f *File) open() error {
	file, err := os.OpenFile(f.cfg.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	old := f.file
	f.file, f.info, f.torn = file, info, isTorn(f.cfg.Path, info)
	if f.cfg.Rotate != (Rotation{}) { // the library opens by itself, at the first write
		f.file, f.info = f.rotated(), nil
		err = file.Close()
	}
	if old != nil {
		_ = old.Close() // what it has taken it has
	}
	return err
}

func (f *File) rotated() io.WriteCloser {
	return &timberjack.Logger{
		Filename: f.cfg.Path, FileMode: 0o600, MaxSize: int(f.most() >> 20), MaxBackups: f.cfg.Rotate.Keep,
	}
}

// most is how many bytes a file may have, and so a single write.
func (f *File) most() int64 {
	const unbounded = 1 << 40 // the library has a default of its own for zero
	if f.cfg.Rotate.Size == 0 {
		return unbounded
	}
	return f.cfg.Rotate.Size >> 20 << 20 // whole ones are what the library counts in
}

// isTorn reports whether a file ends in the middle of a line.
func isTorn(path string, info fs.FileInfo) bool {
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	file, err := os.Open(path) //nolint:gosec // G304: the file that the operator named
	if err != nil {
		return false // it may be for writing only
	}
	defer func() { _ = file.Close() }()
	var last [1]byte
	_, err = file.ReadAt(last[:], info.Size()-1)
	return err == nil && last[0] != '\n'
}

// Write appends lines to the file that has the name now. It returns how many of
// their bytes are written, and an error if that is not all.
func (f *File) Write(lines []byte) (int, error) {
	if err := f.follow(); err != nil {
		return 0, err
	}
	if f.torn && !bytes.HasPrefix(lines, []byte{'\n'}) {
		if _, err := f.file.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
	}
	f.torn = false
	f.age()
	written := 0
	for written < len(lines) {
		// One that fills a file makes the library leave an empty one behind.
		n, err := f.file.Write(fitting(lines[written:], f.most()-1))
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// fitting returns as many of the lines as a write may have bytes, at least one.
func fitting(lines []byte, most int64) []byte {
	if int64(len(lines)) <= most {
		return lines
	}
	end := bytes.LastIndexByte(lines[:most], '\n')
	if end < 0 {
		end = bytes.IndexByte(lines, '\n')
	}
	if end < 0 {
		return lines
	}
	return lines[:end+1]
}

// follow opens the file again if that was asked for, or if what is open is no
// longer what has its name: who writes on to a file that was removed loses
// everything and is never told.
func (f *File) follow() error {
	again, moved := f.again.Swap(false), f.moved()
	if !again && !moved {
		return nil
	}
	err := f.open()
	if err == nil || moved {
		return err
	}
	f.cfg.Failed(err)
	return nil
}

func (f *File) moved() bool {
	now, err := os.Stat(f.cfg.Path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return f.info != nil && !os.SameFile(now, f.info)
}

// age rotates the file at every multiple of the configured time, whenever the
// process was started and however often the file was opened again. One that
// cannot be rotated is written on.
func (f *File) age() {
	now := time.Now()
	file, ok := f.file.(*timberjack.Logger)
	if !ok || f.due.IsZero() || now.Before(f.due) {
		return
	}
	f.due = now.Truncate(f.cfg.Rotate.Every).Add(f.cfg.Rotate.Every)
	if info, err := os.Stat(f.cfg.Path); err == nil && info.Size() == 0 {
		return
	}
	if err := file.RotateWithReason("time"); err != nil {
		f.cfg.Failed(err)
	}
}

// Reopen has the file opened again before the next write; if that fails the old
// one stays.
func (f *File) Reopen() { f.again.Store(true) }

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }
