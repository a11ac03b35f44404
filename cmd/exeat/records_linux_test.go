package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// full makes a named pipe that has no room for another byte. Somebody has it
// open, and does not read.
func full(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pipe.Close() })
	if err := pipe.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = pipe.Write(make([]byte, 1<<16))
	}
}

// TestAStuckRecordFileDoesNotKeepTheProcess writes records to what takes none.
// Neither reading everything again nor the end waits for it.
func TestAStuckRecordFileDoesNotKeepTheProcess(t *testing.T) {
	dir := t.TempDir()
	full(t, filepath.Join(dir, "records.pipe"))
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("policy.yaml", goodPolicy)
	cfg := file("exeat.yaml", `version: 1
policy: [policy.yaml]
listeners:
  - {name: own, address: "unix:s", identity: fixed, id: "`+builder+`"}
timeouts: {drain_delay: 0s, drain_timeout: 1s}
records: {file: records.pipe}
`)
	t.Chdir(dir)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	log, err := os.Create("log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	ended := make(chan int)
	go func() { ended <- run(ctx, []string{"serve", "--config", cfg}, io.Discard, log) }()
	for {
		if _, err := os.Stat("s"); err == nil {
			break
		}
		select {
		case code := <-ended:
			t.Fatalf("exit code %d before it was told to stop", code)
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	said, err := os.ReadFile("log")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(said, []byte("records_lost=1 ")) {
		t.Errorf("it does not say that a record is lost:\n%s", said)
	}
}
