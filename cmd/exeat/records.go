package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/DeRuina/timberjack"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/ecs"
	"github.com/exeat-dev/exeat/proxy/audit/ocsf"
)

// openRecords makes the sinks of the configuration. What it opened stands in g
// also after an error.
func (g *gateway) openRecords(ctx context.Context, stdout io.Writer) ([]audit.SinkConfig, error) {
	var sinks []audit.SinkConfig
	for _, rs := range g.cfg.Records {
		sink := audit.SinkConfig{Name: rs.Name}
		if rs.Only == config.Denials {
			sink.Keep = denials
		}
		switch {
		case rs.OTLP:
			logs, err := g.telemetry.LogSink(ctx)
			if err != nil {
				return nil, fmt.Errorf("records: sink %s: %w", rs.Name, err)
			}
			sink.Sink = logs
		case rs.File == "":
			sink.Sink = audit.NewLines(stdout, renderer(rs.Format))
		default:
			file, err := openRecordFile(rs)
			if err != nil {
				return nil, err
			}
			g.recordFiles = append(g.recordFiles, file)
			sink.Sink = audit.NewLines(file, renderer(rs.Format))
		}
		sinks = append(sinks, sink)
	}
	return sinks, nil
}

// denials is what "only: denials" keeps: decisions that are not allowed (an
// observed one would not be), tunnels that a later state ended, failed
// handshakes, and what stands for many of these.
func denials(r *audit.Record) bool {
	switch r.Event {
	case audit.EventDecision:
		return r.Verdict != allowlist.Allow
	case audit.EventTunnelClose:
		return r.Reason != allowlist.NoReason
	case audit.EventHandshake, audit.EventSummary, audit.EventCollapsed:
		return true
	case audit.EventTunnelProgress, audit.EventPolicyReload, audit.EventIdentityRotate:
	}
	return false
}

func renderer(f config.Format) audit.Render {
	switch f {
	case config.OCSF:
		return ocsf.Render
	case config.ECS:
		return ecs.Render
	case config.Native:
	}
	return audit.Native
}

// recordFile is a file of records that is rotated, if the configuration says
// so, and opened again on SIGHUP, after somebody else has moved it away.
type recordFile struct {
	open func() (io.WriteCloser, error)

	mu   sync.Mutex
	file io.WriteCloser
}

// openRecordFile opens the file once, so that one that cannot be written is an
// error at start.
func openRecordFile(sink config.RecordSink) (*recordFile, error) {
	f := &recordFile{open: func() (io.WriteCloser, error) { return openAppend(sink.File) }}
	if sink.Rotate != (config.Rotation{}) {
		f.open = func() (io.WriteCloser, error) { return openRotated(sink.File, sink.Rotate) }
	}
	file, err := f.open()
	if err != nil {
		return nil, fmt.Errorf("records: sink %s: %w", sink.Name, err)
	}
	f.file = file
	return f, nil
}

func openAppend(path string) (io.WriteCloser, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // G304: the file that the operator named
}

func openRotated(path string, r config.Rotation) (io.WriteCloser, error) {
	probe, err := openAppend(path) // the library opens at the first write
	if err != nil {
		return nil, err
	}
	if err := probe.Close(); err != nil {
		return nil, err
	}
	const unbounded = 1 << 40 // bytes; the library has a default of its own for zero
	size := r.Size
	if size == 0 {
		size = unbounded
	}
	return &timberjack.Logger{
		Filename: path, FileMode: 0o600, MaxSize: int(size >> 20), RotationInterval: r.Every, MaxBackups: r.Keep,
	}, nil
}

// Write writes to the file that is open now.
func (f *recordFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file.Write(p)
}

// reopen opens the file again under its name; if that fails the old one stays.
func (f *recordFile) reopen() error {
	file, err := f.open()
	if err != nil {
		return fmt.Errorf("opening the record file again: %w", err)
	}
	f.mu.Lock()
	old := f.file
	f.file = file
	f.mu.Unlock()
	return old.Close()
}

// Close closes the file.
func (f *recordFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file.Close()
}
