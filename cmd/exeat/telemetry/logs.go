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

// errNoLogs means that the configuration has a sink of OpenTelemetry logs but no OTEL_*
// variable says where they go.
var errNoLogs = errors.New("records are to go to OpenTelemetry, but no variable says where: set OTEL_EXPORTER_OTLP_ENDPOINT")

// ErrDisabled means that OTEL_SDK_DISABLED is set: a sink would accept every record and
// keep none.
var ErrDisabled = errors.New("OTEL_SDK_DISABLED is set, so that OpenTelemetry takes no records")

// logBatch bounds the records of one request, so that it stays below the 4 MiB that a
// collector accepts over gRPC.
const logBatch = 1024

// LogSink sends records as OpenTelemetry log records. It implements audit.Sink. Write
// returns after the collector has answered, so that queue, counts and reports of errors
// are only those of the recorder.
type LogSink struct {
	provider *sdklog.LoggerProvider
	logger   log.Logger
	exporter sdklog.Exporter
	sender   *delivery
	batch    collect
	attrs    []attribute.KeyValue // reused
}

var _ audit.Sink = (*LogSink)(nil)

// LogSink returns a new sink, which Shutdown ends. The error is ErrDisabled or
// errNoLogs if there can be none.
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
	s.sender.warn = t.cfg.Warned
	t.mu.Lock()
	defer t.mu.Unlock()
	t.logs = append(t.logs, s)
	return s, nil
}

func newLogSink(res *resource.Resource, version string, exporter sdklog.Exporter) *LogSink {
	s := &LogSink{exporter: exporter, sender: newDelivery(SignalLogs, func(string, error) {})}
	s.provider = sdklog.NewLoggerProvider(sdklog.WithResource(res), sdklog.WithProcessor(&s.batch),
		sdklog.WithAllowKeyDuplication()) // keys are never duplicate, and checking that takes time
	s.logger = s.provider.Logger(scope, log.WithInstrumentationVersion(version))
	return s
}

// Write sends records and returns when the collector has answered. The error names the
// records that could not be sent, and gives only the number of those that the collector
// has rejected.
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
	if lost != nil { // a nil *LostError would be an error that is not nil
		return lost
	}
	return nil
}

func (s *LogSink) send(ctx context.Context, records []*audit.Record) error {
	for _, r := range records {
		s.emit(ctx, r)
	}
	defer s.batch.empty()
	return s.sender.run(ctx, func(ctx context.Context) error { return s.exporter.Export(ctx, s.batch.records) })
}

// emit adds one record to the batch. The SDK reads the trace from a context.
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

// severityOf returns the severity by the verdict: a refusal is a warning, a failure is
// an error.
func severityOf(r *audit.Record) log.Severity {
	switch r.Event {
	case audit.EventDecision, audit.EventCollapsed:
		switch {
		case r.Verdict == allowlist.Allow:
			return log.SeverityInfo
		case r.Verdict == allowlist.Observe, r.LetNothingOut():
			return log.SeverityWarn
		}
		return log.SeverityError
	case audit.EventHandshake, audit.EventSummary:
		return log.SeverityWarn
	case audit.EventTunnelClose:
		if r.Reason != allowlist.NoReason { // a later state forbade the tunnel
			return log.SeverityWarn
		}
	case audit.EventTunnelProgress, audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
	}
	return log.SeverityInfo
}

// shutdown ends the exporter. The recorder must have written its last record.
func (s *LogSink) shutdown(ctx context.Context) error {
	s.sender.hurry()
	return errors.Join(s.provider.Shutdown(ctx), s.exporter.Shutdown(ctx))
}

// collect is a processor that keeps the emitted records until the batch is complete.
// The SDK makes its records only when they are passed to a processor.
type collect struct{ records []sdklog.Record }

// Enabled implements sdklog.Processor.
func (*collect) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

// OnEmit keeps a record, which no other processor has.
func (c *collect) OnEmit(_ context.Context, r *sdklog.Record) error {
	c.records = append(c.records, *r)
	return nil
}

// ForceFlush does nothing: Write flushes.
func (*collect) ForceFlush(context.Context) error { return nil }

// Shutdown does nothing.
func (*collect) Shutdown(context.Context) error { return nil }

// empty removes the records, and releases what they refer to.
func (c *collect) empty() {
	clear(c.records)
	c.records = c.records[:0]
}
