package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/DeRuina/timberjack"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

// recordFile is a file of records. It is rotated if the configuration says so,
// and opened again when it is no longer where it was, or after SIGHUP. One
// goroutine writes, and nobody else waits for it: only reopen may be called at
// any time, and Close when nobody writes any more.
type recordFile struct {
	path   string
	rotate config.Rotation // zero: not
	failed func(error)     // is told that an old file has to do

	again atomic.Bool // it is to be opened again
	file  io.WriteCloser
	info  fs.FileInfo // of file; nil if it is rotated
	torn  bool        // half a line is at its end, of an earlier process perhaps
	due   time.Time   // of the next rotation by age
}

// openRecordFile opens the file once, so that one that cannot be written is an
// error at start.
func openRecordFile(sink config.RecordSink, failed func(error)) (*recordFile, error) {
	f := &recordFile{path: sink.File, rotate: sink.Rotate, failed: failed}
	if every := f.rotate.Every; every > 0 {
		f.due = time.Now().Truncate(every)
		if old, err := os.Stat(f.path); err != nil || !old.ModTime().Before(f.due) {
			f.due = f.due.Add(every)
		}
	}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("records: sink %s: %w", sink.Name, err)
	}
	return f, nil
}

// open opens the file under its name, and only then lets go of the one before.
func (f *recordFile) open() error {
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	old := f.file
	f.file, f.info, f.torn = file, info, isTorn(f.path, info)
	if f.rotate != (config.Rotation{}) { // the library opens by itself, at the first write
		f.file, f.info = f.rotated(), nil
		err = file.Close()
	}
	if old != nil {
		_ = old.Close() // what it has taken it has
	}
	return err
}

func (f *recordFile) rotated() io.WriteCloser {
	return &timberjack.Logger{
		Filename: f.path, FileMode: 0o600, MaxSize: int(f.most() >> 20), MaxBackups: f.rotate.Keep,
	}
}

// most is how many bytes a file may have, and so a single write.
func (f *recordFile) most() int64 {
	const unbounded = 1 << 40 // the library has a default of its own for zero
	if f.rotate.Size == 0 {
		return unbounded
	}
	return f.rotate.Size >> 20 << 20 // whole ones are what the library counts in
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

// Write writes lines to the file that has the name now.
func (f *recordFile) Write(lines []byte) (int, error) {
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
func (f *recordFile) follow() error {
	again, moved := f.again.Swap(false), f.moved()
	if !again && !moved {
		return nil
	}
	err := f.open()
	if err == nil || moved {
		return err
	}
	f.failed(err)
	return nil
}

func (f *recordFile) moved() bool {
	now, err := os.Stat(f.path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return f.info != nil && !os.SameFile(now, f.info)
}

// age rotates the file at every multiple of the configured time, whenever the
// process was started and however often the file was opened again. One that
// cannot be rotated is written on.
func (f *recordFile) age() {
	now := time.Now()
	file, ok := f.file.(*timberjack.Logger)
	if !ok || f.due.IsZero() || now.Before(f.due) {
		return
	}
	f.due = now.Truncate(f.rotate.Every).Add(f.rotate.Every)
	if info, err := os.Stat(f.path); err == nil && info.Size() == 0 {
		return
	}
	if err := file.RotateWithReason("time"); err != nil {
		f.failed(err)
	}
}

// reopen has the file opened again before the next write; if that fails the old
// one stays.
func (f *recordFile) reopen() { f.again.Store(true) }

// Close closes the file.
func (f *recordFile) Close() error { return f.file.Close() }
