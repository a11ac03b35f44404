package process

import (
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

// fill creates a named pipe that has no room for another byte. It is open for reading,
// and is not read.
func fill(t *testing.T, path string) {
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

// TestAStuckRecordFileDoesNotKeepTheProcess checks that neither a reload nor the end of
// the process waits for a record file whose writes block.
func TestAStuckRecordFileDoesNotKeepTheProcess(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "records.pipe")
	fill(t, pipe)
	cfg, opts := configured(t, write(t, "policy.yaml", goodPolicy)), options()
	cfg.Records = []config.RecordSink{{Name: "records", File: pipe}}
	var log lines
	opts.Log = slog.New(slog.NewTextHandler(&log, nil))
	p, err := Open(t.Context(), cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	hangup := make(chan os.Signal)
	stop := serve(t, p, hangup)
	eventually(t, "a policy is in force", func() bool { return p.gateway.State() != nil })
	before := p.gateway.State()
	for range 2 { // the second signal is sent after the reload of the first
		select {
		case hangup <- syscall.SIGHUP:
		case <-time.After(patience):
			t.Fatal("it does not read everything again")
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		stop()
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if p.gateway.State() != before || !log.has("records_lost=1 ") {
		t.Errorf("it does not say that a record is lost:\n%s", log.text)
	}
}
