package telemetry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// errNoLogs means that a sink of OpenTelemetry logs was asked for and that the
// OTEL_* variables name no place for them.
var errNoLogs = errors.New("records are to go to OpenTelemetry, but no variable says where: set OTEL_EXPORTER_OTLP_ENDPOINT")

// ErrDisabled means that OTEL_SDK_DISABLED is set: a sink would take every
// record and keep none.
var ErrDisabled = errors.New("OTEL_SDK_DISABLED is set, so that OpenTelemetry takes no records")

// logBatch is how many records go in one request, which stays below the 4 MiB
// that a collector takes over gRPC.
const logBatch = 1024

// LogSink sends records as OpenTelemetry log records. It implements
// audit.Sink: the collector has answered when Write returns, so there is no
// second queue, no second count and nobody else told of errors; all of that is
// the recorder's.
type LogSink struct {
	provider *sdklog.LoggerProvider
	logger   log.Logger
	exporter sdklog.Exporter
	line     *delivery
	batch    collect
	attrs    []attribute.KeyValue // reused
}

var _ audit.Sink = (*LogSink)(nil)

// LogSink returns a new sink, which Shutdown ends; ErrDisabled or errNoLogs if
// there can be none.
func (t *Telemetry) LogSink(ctx context.Context) (*LogSink, error) {
	if disabled(t.cfg.Getenv) {
		return nil, ErrDisabled
	}
	if !wanted(t.cfg.Getenv, "LOGS") {
		return nil, errNoLogs
	}
	exporter, err := autoexport.NewLogExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("setting up the log exporter that the OTEL_* variables ask for: %w", err)
	}
	s := newLogSink(t.resource, t.cfg.Version, exporter)
	s.line.warn = t.cfg.Warned
	t.mu.Lock()
	defer t.mu.Unlock()
	t.logs = append(t.logs, s)
	return s, nil
}

func newLogSink(res *resource.Resource, version string, exporter sdklog.Exporter) *LogSink {
	s := &LogSink{exporter: exporter, line: newDelivery(SignalLogs, func(string, error) {})}
	s.provider = sdklog.NewLoggerProvider(sdklog.WithResource(res), sdklog.WithProcessor(&s.batch),
		sdklog.WithAllowKeyDuplication()) // there are no duplicates, and looking for them costs
	s.logger = s.provider.Logger(scope, log.WithInstrumentationVersion(version))
	return s
}

// Write sends records and returns when the collector has answered. What cannot
// be sent is lost, and named in the error; of what the collector has rejected it says
// only how many that are.
func (s *LogSink) Write(ctx context.Context, records []*audit.Record) error {
	var lost *audit.LostError
	first := 0
	for part := range slices.Chunk(records, logBatch) {
		if err := s.send(ctx, part); err != nil {
			if lost == nil {
				lost = &audit.LostError{Err: fmt.Errorf("sending records as logs: %w", err)}
			}
			if n := countLost(err, len(part)); n < len(part) {
				lost.Unnamed += n
			} else {
				for i := range part {
					lost.Lost = append(lost.Lost, first+i)
				}
			}
		}
		first += len(part)
	}
	if lost != nil { // not a nil pointer in an error that is not nil
		return lost
	}
	return nil
}

func (s *LogSink) send(ctx context.Context, records []*audit.Record) error {
	for _, r := range records {
		s.emit(ctx, r)
	}
	defer s.batch.empty()
	return s.line.run(ctx, func(ctx context.Context) error { return s.exporter.Export(ctx, s.batch.records) })
}

// emit puts one record into the batch. The SDK takes the trace from a context.
func (s *LogSink) emit(ctx context.Context, r *audit.Record) {
	var rec log.Record
	rec.SetTimestamp(r.Time)
	rec.SetObservedTimestamp(r.Time)
	rec.SetBody(attribute.StringValue(string(r.Event)))
	severity := severityOf(r)
	rec.SetSeverity(severity)
	rec.SetSeverityText(severity.String())
	s.attrs = appendAttributes(s.attrs[:0], r)
	rec.AddAttributes(s.attrs...)
	s.logger.Emit(trace.ContextWithSpanContext(ctx, r.Trace), rec)
}

// severityOf is by the verdict: what was refused is a warning, what went wrong
// an error.
func severityOf(r *audit.Record) log.Severity {
	switch r.Event {
	case audit.EventDecision, audit.EventCollapsed:
		switch {
		case r.Verdict == allowlist.Allow:
			return log.SeverityInfo
		case r.Verdict == allowlist.Observe, r.KeptIn():
			return log.SeverityWarn
		}
		return log.SeverityError
	case audit.EventHandshake, audit.EventSummary:
		return log.SeverityWarn
	case audit.EventTunnelClose:
		if r.Reason != allowlist.NoReason { // a later state forbade it
			return log.SeverityWarn
		}
	case audit.EventTunnelProgress, audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
	}
	return log.SeverityInfo
}

// shutdown ends the exporter. The recorder has written its last record before.
func (s *LogSink) shutdown(ctx context.Context) error {
	s.line.hurry()
	return errors.Join(s.provider.Shutdown(ctx), s.exporter.Shutdown(ctx))
}

// collect is a processor that keeps what is emitted until the batch is full:
// the SDK makes its records only on the way to one.
type collect struct{ records []sdklog.Record }

// Enabled implements sdklog.Processor.
func (*collect) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

// OnEmit keeps a record, which nobody else has.
func (c *collect) OnEmit(_ context.Context, r *sdklog.Record) error {
	c.records = append(c.records, *r)
	return nil
}

// ForceFlush does nothing: Write flushes.
func (*collect) ForceFlush(context.Context) error { return nil }

// Shutdown does nothing.
func (*collect) Shutdown(context.Context) error { return nil }

// empty forgets the records, also what they point to.
func (c *collect) empty() {
	clear(c.records)
	c.records = c.records[:0]
}
