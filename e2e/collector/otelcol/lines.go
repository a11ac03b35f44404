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

// linesConfig is the section exporters.lines of the Collector's configuration.
type linesConfig struct {
	// Directory is the directory for the files SIGNAL-PID.jsonl. Each process has its own
	// files, because one that was killed may leave an incomplete line.
	Directory string `mapstructure:"directory"`
}

// Validate checks the configuration, as the Collector requires.
func (c *linesConfig) Validate() error {
	if c.Directory == "" {
		return errors.New("lines: a directory is required")
	}
	return nil
}

// newLinesFactory returns the factory of the exporter "lines", which writes every request
// as one line of OTLP/JSON. The sender gets its answer only when the line is written, so
// that every request that was answered is in the file even if the process is killed.
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

// lines appends requests to one file.
type lines struct {
	path string

	mu   sync.Mutex
	file *os.File // nil until Start
}

func newLines(cfg component.Config, signal string) (*lines, error) {
	settings, ok := cfg.(*linesConfig)
	if !ok {
		return nil, errors.New("lines: not a configuration of this exporter")
	}
	return &lines{path: filepath.Join(settings.Directory, fmt.Sprintf("%s-%d.jsonl", signal, os.Getpid()))}, nil
}

// Start opens the file.
func (l *lines) Start(context.Context, component.Host) error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	l.file = f
	return err
}

// Shutdown closes the file.
func (l *lines) Shutdown(context.Context) error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// Capabilities says that the exporter does not change requests.
func (l *lines) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }

// ConsumeTraces writes a request with spans.
func (l *lines) ConsumeTraces(_ context.Context, td ptrace.Traces) error {
	line, err := (&ptrace.JSONMarshaler{}).MarshalTraces(td)
	return l.write(line, err)
}

// ConsumeLogs writes a request with log records.
func (l *lines) ConsumeLogs(_ context.Context, ld plog.Logs) error {
	line, err := (&plog.JSONMarshaler{}).MarshalLogs(ld)
	return l.write(line, err)
}

// ConsumeMetrics writes a request with metrics.
func (l *lines) ConsumeMetrics(_ context.Context, md pmetric.Metrics) error {
	line, err := (&pmetric.JSONMarshaler{}).MarshalMetrics(md)
	return l.write(line, err)
}

// write writes a line in one piece, so that only a full disk or a killed process can
// leave an incomplete line.
func (l *lines) write(line []byte, err error) error {
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err = l.file.Write(append(line, '\n'))
	return err
}
