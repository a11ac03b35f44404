package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
)

// linesConfig is the part of the Collector's configuration under
// exporters.lines.
type linesConfig struct {
	// Directory gets SIGNAL-PID.jsonl: a file of its own for each process, as
	// one that was killed may leave half a line.
	Directory string `mapstructure:"directory"`
}

// Validate implements the Collector's check of a configuration.
func (c *linesConfig) Validate() error {
	if c.Directory == "" {
		return errors.New("lines: a directory is required")
	}
	return nil
}

// newLinesFactory makes the exporter "lines": every request that arrives is one
// line of OTLP/JSON. A sender has its answer only when the line is written, so
// that what was answered is there after the process was killed.
func newLinesFactory() exporter.Factory {
	return exporter.NewFactory(component.MustNewType("lines"),
		func() component.Config { return &linesConfig{} },
		exporter.WithTraces(func(_ context.Context, _ exporter.Settings, cfg component.Config) (exporter.Traces, error) {
			return newLines(cfg, "traces")
		}, component.StabilityLevelDevelopment),
		exporter.WithLogs(func(_ context.Context, _ exporter.Settings, cfg component.Config) (exporter.Logs, error) {
			return newLines(cfg, "logs")
		}, component.StabilityLevelDevelopment),
		exporter.WithMetrics(func(_ context.Context, _ exporter.Settings, cfg component.Config) (exporter.Metrics, error) {
			return newLines(cfg, "metrics")
		}, component.StabilityLevelDevelopment))
}

// lines appends to one file.
type lines struct {
	path string

	mu   sync.Mutex
	file *os.File // nil until Start
}

func newLines(cfg component.Config, signal string) (*lines, error) {
	own, ok := cfg.(*linesConfig)
	if !ok {
		return nil, errors.New("lines: not a configuration of this exporter")
	}
	return &lines{path: filepath.Join(own.Directory, fmt.Sprintf("%s-%d.jsonl", signal, os.Getpid()))}, nil
}

// Start opens the file.
func (l *lines) Start(context.Context, component.Host) error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	l.file = f
	return err
}

// Shutdown closes it.
func (l *lines) Shutdown(context.Context) error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// Capabilities says that nothing that arrives is changed.
func (l *lines) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }

// ConsumeTraces writes one request.
func (l *lines) ConsumeTraces(_ context.Context, td ptrace.Traces) error {
	line, err := (&ptrace.JSONMarshaler{}).MarshalTraces(td)
	return l.write(line, err)
}

// ConsumeLogs writes one request.
func (l *lines) ConsumeLogs(_ context.Context, ld plog.Logs) error {
	line, err := (&plog.JSONMarshaler{}).MarshalLogs(ld)
	return l.write(line, err)
}

// ConsumeMetrics writes one request.
func (l *lines) ConsumeMetrics(_ context.Context, md pmetric.Metrics) error {
	line, err := (&pmetric.JSONMarshaler{}).MarshalMetrics(md)
	return l.write(line, err)
}

// write writes a line in one piece, so that only a full disk or a killed
// process can leave half a one.
func (l *lines) write(line []byte, err error) error {
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err = l.file.Write(append(line, '\n'))
	return err
}
