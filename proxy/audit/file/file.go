// Package file appends lines of records to a file. It rotates the file by size and age
// if configured, and follows the file's name: if the file was moved or removed, it
// creates a new one.
//
// Open a [File], pass it to audit.NewLines, and call [File.Reopen] when a program that
// rotates files asks for it, as by SIGHUP. The package does not interpret the lines,
// and does not sync: a line is as safe as the operating system makes it.
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

// Config configures a [File].
type Config struct {
	// Path of the file, which is created with mode 0600. It is required.
	Path string
	// Rotate says when the file is rotated; zero means never.
	Rotate Rotation
	// Failed is called by Write if the file cannot be rotated or reopened; the old file
	// stays in use. It is required.
	Failed func(error)
}

// Rotation bounds a file. A zero field sets no bound.
type Rotation struct {
	Size  int64         // largest number of bytes of a file, rounded down to whole MiB
	Every time.Duration // the file is rotated at each multiple of this time
	Keep  int           // number of rotated files that are kept
}

// File is an open file of records. One goroutine writes; Reopen may be called at any
// time, and Close after the last Write.
type File struct {
	cfg Config

	reopen atomic.Bool // Reopen was called since the last write
	file   io.WriteCloser
	info   fs.FileInfo // information about file; nil with rotation
	torn   bool        // the file ends within a line, which an earlier process may have left
	due    time.Time   // when the file is rotated next because of its age
}

// errNotRegular is the error of a file that cannot be rotated.
var errNotRegular = errors.New("it is no regular file, which alone can be rotated")

// CheckRotation returns an error if a file that is to be rotated is a pipe, a device or
// anything else that is not a regular file. The rotation would rename it and go on in a
// file of the same name.
func CheckRotation(path string, rotate Rotation) error {
	info, err := os.Stat(path)
	if err != nil || rotate == (Rotation{}) || info.Mode().IsRegular() || info.IsDir() {
		return nil //nolint:nilerr // opening the file tells what is wrong with it
	}
	return &fs.PathError{Op: "rotate", Path: path, Err: errNotRegular}
}

// IsNotRotatable reports whether an error is one of CheckRotation.
func IsNotRotatable(err error) bool { return errors.Is(err, errNotRegular) }

// Open opens the file, so that a file which cannot be written is an error at start. It
// waits until a named pipe has a reader.
func Open(cfg Config) (*File, error) {
	if cfg.Path == "" || cfg.Failed == nil {
		return nil, errors.New("a record file needs a path and a function for failures")
	}
	f := &File{cfg: cfg}
	if every := cfg.Rotate.Every; every > 0 {
		f.due = time.Now().Truncate(every)
		if old, err := os.Stat(cfg.Path); err != nil || !old.ModTime().Before(f.due) {
			f.due = f.due.Add(every)
		}
	}
	if err := CheckRotation(cfg.Path, cfg.Rotate); err != nil {
		return nil, err
	}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// open opens the file under its name, and then closes the previous one.
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
	if f.cfg.Rotate != (Rotation{}) { // the library opens the file itself at the first write
		f.file, f.info = f.newRotatingFile(), nil
		err = file.Close()
	}
	if old != nil {
		_ = old.Close() // everything written to it is in the file already
	}
	return err
}

func (f *File) newRotatingFile() io.WriteCloser {
	return &timberjack.Logger{
		Filename: f.cfg.Path, FileMode: 0o600, MaxSize: int(f.maxSize() >> 20), MaxBackups: f.cfg.Rotate.Keep,
	}
}

// maxSize returns the largest size of a file, which is also that of a single write.
func (f *File) maxSize() int64 {
	const unbounded = 1 << 40 // zero would select the library's default
	if f.cfg.Rotate.Size == 0 {
		return unbounded
	}
	return f.cfg.Rotate.Size >> 20 << 20 // the library counts in whole MiB
}

// isTorn reports whether a file ends within a line.
func isTorn(path string, info fs.FileInfo) bool {
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	file, err := os.Open(path) //nolint:gosec // G304: the operator chose the path
	if err != nil {
		return false // the file may be writable only
	}
	defer func() { _ = file.Close() }()
	var last [1]byte
	_, err = file.ReadAt(last[:], info.Size()-1)
	return err == nil && last[0] != '\n'
}

// Write appends lines to the file that has the name now. It returns the number of bytes
// written, and an error if that is not all.
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
	f.rotateByAge()
	written := 0
	for written < len(lines) {
		// Lines that fill a file exactly make the library leave an empty file behind.
		n, err := f.file.Write(wholeLines(lines[written:], f.maxSize()-1))
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// wholeLines returns as many whole lines as fit into one write, but at least one.
func wholeLines(lines []byte, most int64) []byte {
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

// follow reopens the file if Reopen was called, or if the open file no longer has the
// name: a process that goes on writing to a removed file loses every line without an
// error.
func (f *File) follow() error {
	asked, moved := f.reopen.Swap(false), f.moved()
	if !asked && !moved {
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

// rotateByAge rotates the file at every multiple of the configured time, independent of
// when the process was started and how often the file was reopened. A file that cannot be
// rotated stays in use.
func (f *File) rotateByAge() {
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

// Reopen makes the next Write reopen the file first; if that fails the old file stays
// in use.
func (f *File) Reopen() { f.reopen.Store(true) }

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }
