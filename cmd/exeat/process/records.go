package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/ecs"
	"github.com/exeat-dev/exeat/proxy/audit/file"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/audit/ocsf"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// sinks holds the places that records go to.
type sinks struct {
	recorder *audit.Recorder // nil until all sinks are open
	files    []*file.File
	// waitFor is called with what the start waits for from now on.
	waitFor func(what string)
}

// open opens the sinks of the configuration and the recorder that writes to them. Call
// close even after an error, because some may be open.
func (s *sinks) open(ctx context.Context, cfg *config.Config, opts Options, tel *telemetry.Telemetry) error {
	all, err := s.openAll(ctx, cfg.Records, opts, tel)
	if err != nil {
		return err
	}
	s.recorder, err = audit.New(ctx, audit.Config{
		Sinks: all, Tracer: tel.Tracer(), Instance: tel.Instance(), Measure: tel.Instruments().Measure, Required: cfg.RecordsRequired, Collapse: cfg.Collapse,
		SinkError: sinkError(opts.Log),
	})
	return err
}

func (s *sinks) openAll(ctx context.Context, configured []config.RecordSink, opts Options, tel *telemetry.Telemetry) ([]audit.SinkConfig, error) {
	var all []audit.SinkConfig
	for _, rs := range configured {
		sink := audit.SinkConfig{Name: rs.Name}
		if rs.Only == config.Denials {
			sink.Keep = denials
		}
		switch {
		case rs.OTLP:
			logs, err := openLogs(ctx, configured, rs, opts, tel)
			if err != nil {
				return nil, err
			}
			if logs == nil {
				continue
			}
			sink.Sink = logs
		case rs.File == "":
			sink.Sink = audit.NewLines(opts.Stdout, renderer(rs.Format))
		default:
			s.waitForFile(ctx, rs, opts.Log)
			f, err := file.Open(file.Config{Path: rs.File, Rotate: rs.Rotate, Failed: recordFileStays(opts.Log, rs.Name)})
			if err != nil {
				return nil, recordFileError(rs, err)
			}
			s.files = append(s.files, f)
			sink.Sink = audit.NewLines(f, renderer(rs.Format))
		}
		all = append(all, sink)
	}
	return all, nil
}

// waitForFile says that the start waits until a record file is open. A named pipe is
// opened when it has a reader.
func (s *sinks) waitForFile(ctx context.Context, rs config.RecordSink, log *slog.Logger) {
	what := "the sinks of records are opened: " + rs.File
	if info, err := os.Stat(rs.File); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		what += " is a pipe, and must have a reader"
		log.LogAttrs(ctx, slog.LevelInfo, "a record file is a pipe: its reader is waited for", slog.String("sink", rs.Name), slog.String("file", rs.File))
	}
	s.waitFor(what)
}

// openLogs makes a sink of OpenTelemetry logs. It returns nil if the sink is left out.
func openLogs(ctx context.Context, configured []config.RecordSink, rs config.RecordSink, opts Options, tel *telemetry.Telemetry) (*telemetry.LogSink, error) {
	logs, err := tel.LogSink(ctx)
	if errors.Is(err, telemetry.ErrDisabled) && othersKeep(configured, rs) {
		opts.Log.WarnContext(ctx, "a sink is left out", slog.String("sink", rs.Name), slog.Any("cause", err))
		return nil, nil //nolint:nilnil // nil means that the sink is left out
	}
	if err != nil {
		return nil, fmt.Errorf("records: sink %s: %w", rs.Name, err)
	}
	return logs, nil
}

// checkRecordFiles warns of reasons why the record files could not be opened by this
// process now. It creates no file.
func checkRecordFiles(cfg *config.Config) (warnings strictyaml.Errors) {
	for _, rs := range cfg.Records {
		if rs.OTLP || rs.File == "" {
			continue
		}
		dir, err := os.Stat(filepath.Dir(rs.File))
		info, missing := os.Stat(rs.File)
		switch {
		case err != nil:
			err = errors.Unwrap(err) // the error without the directory
		case !dir.IsDir():
			err = syscall.ENOTDIR
		case missing == nil && info.IsDir():
			err = syscall.EISDIR
		}
		if err != nil {
			err = &fs.PathError{Op: "open", Path: rs.File, Err: err}
		} else {
			err = file.CheckRotation(rs.File, rs.Rotate)
		}
		if err != nil {
			for _, at := range cfg.Places[rs.File] {
				warnings.Add(at.Pos, "%v", recordFileError(rs, err))
			}
		}
	}
	return warnings
}

// recordFileError returns an error of opening a record file with advice what to do.
func recordFileError(rs config.RecordSink, err error) error {
	if file.IsNotRotatable(err) {
		return fmt.Errorf("records: sink %s: %w; leave out rotate, or write the path of another file", rs.Name, err)
	}
	return fmt.Errorf("records: sink %s: %w; write the path of a file in a directory that is there and that the gateway may write to", rs.Name, err)
}

// sinkError returns a function that logs that a sink fails, or works again.
func sinkError(log *slog.Logger) func(sink string, err error) {
	return func(sink string, err error) {
		if err != nil {
			log.Error("records cannot be written; they are counted as lost", slog.String("sink", sink), slog.Any("error", err))
			return
		}
		log.Info("records can be written again", slog.String("sink", sink))
	}
}

// recordFileStays returns a function that logs that a record file could not be reopened
// or rotated.
func recordFileStays(log *slog.Logger, sink string) func(error) {
	return func(err error) {
		log.Error("the old record file stays open", slog.String("sink", sink), slog.Any("error", err))
	}
}

// othersKeep reports whether a sink of OpenTelemetry logs can be left out, because another
// kind of sink keeps at least the same records.
func othersKeep(all []config.RecordSink, sink config.RecordSink) bool {
	return slices.ContainsFunc(all, func(other config.RecordSink) bool {
		return !other.OTLP && (other.Only == config.Everything || other.Only == sink.Only)
	})
}

// reopen makes every record file reopen before the next write.
func (s *sinks) reopen() {
	for _, f := range s.files {
		f.Reopen()
	}
}

// close ends the recorder, which first writes all records, and then closes the files.
// After an error of the recorder the files stay open, because a write to one of them
// may still be running.
func (s *sinks) close(ctx context.Context) error {
	if s.recorder != nil {
		if err := s.recorder.Close(ctx); err != nil {
			return err
		}
	}
	var errs []error
	for _, f := range s.files {
		if err := f.Close(); err != nil {
			errs = append(errs, fmt.Errorf("closing a record file: %w", err))
		}
	}
	return errors.Join(errs...)
}

// denials reports whether "only: denials" keeps a record: decisions other than allow
// (an observed request would be refused), requests and tunnels that a later state
// ended, failed handshakes, and records that stand for many of these. A request or
// tunnel that was cut off for another reason was allowed, so that its record is not
// kept.
func denials(r *audit.Record) bool {
	switch r.Event {
	case audit.EventDecision:
		if r.Reason == allowlist.CutOff {
			return r.Detail == tunnel.Revoked.String() || r.Detail == tunnel.Quarantined.String()
		}
		return r.Verdict != allowlist.Allow
	case audit.EventTunnelClose:
		return r.Reason != allowlist.NoReason
	case audit.EventHandshake, audit.EventSummary, audit.EventCollapsed:
		return true
	case audit.EventTunnelProgress, audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
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
	return native.Render
}
