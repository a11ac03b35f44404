package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/native"
)

// takeAll is an exporter of logs that answers each batch with the next error, and with
// nil after the last one.
type takeAll struct {
	answers []error
	batches []int
}

func (e *takeAll) Export(_ context.Context, records []sdklog.Record) error {
	if e.answers == nil {
		return nil
	}
	e.batches = append(e.batches, len(records))
	answer := e.answers[0]
	if len(e.answers) > 1 {
		e.answers = e.answers[1:]
	}
	return answer
}
func (*takeAll) Shutdown(context.Context) error   { return nil }
func (*takeAll) ForceFlush(context.Context) error { return nil }

// fields returns the attributes as a map, and fails if a key is there twice.
func fields(t *testing.T, attrs []attribute.KeyValue) map[string]any {
	t.Helper()
	all := make(map[string]any, len(attrs))
	for _, kv := range attrs {
		if _, twice := all[string(kv.Key)]; twice {
			t.Errorf("%s is there twice", kv.Key)
		}
		all[string(kv.Key)] = kv.Value.AsInterface()
	}
	return all
}

// TestLogRecordHasTheAttributesOfTheSpan compares the attributes of each decision's span with
// those of its log record: the log record has all of them, with the same values.
func TestLogRecordHasTheAttributesOfTheSpan(t *testing.T) {
	for _, sample := range audittest.Samples() {
		if sample.Record.Event != audit.EventDecision {
			continue
		}
		t.Run(sample.Name, func(t *testing.T) {
			spans := tracetest.NewSpanRecorder()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
			recorder, err := audit.New(t.Context(), audit.Config{
				Sinks: []audit.SinkConfig{{Name: "none", Sink: drop{}}}, Tracer: provider.Tracer("test"),
			})
			if err != nil {
				t.Fatal(err)
			}
			open := recorder.Begin(t.Context(), audit.Start{})
			open.Record = sample.Record
			open.End()
			if err := recorder.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			logged := fields(t, appendAttributes(nil, &sample.Record))
			for key, want := range fields(t, spans.Ended()[0].Attributes()) {
				if diff := cmp.Diff(logged[key], want); diff != "" {
					t.Errorf("%s (-log +span):\n%s", key, diff)
				}
			}
		})
	}
}

// TestLogRecordHasEveryFieldOfTheRecord counts the fields of the native form. Each has
// an attribute, except those for which a log record, or its resource, has other places;
// three fields are two attributes each.
func TestLogRecordHasEveryFieldOfTheRecord(t *testing.T) {
	for _, sample := range audittest.Samples() {
		t.Run(sample.Name, func(t *testing.T) {
			line, err := native.Render(nil, &sample.Record)
			if err != nil {
				t.Fatal(err)
			}
			var written map[string]any
			if err := json.Unmarshal(line, &written); err != nil {
				t.Fatal(err)
			}
			want := len(written)
			for key, more := range map[string]int{"time": -1, "instance": -1, "trace_id": -1, "span_id": -1, "identity": 1, "client": 1, "address": 1} {
				if _, there := written[key]; there {
					want += more
				}
			}
			if written["identity"] == audit.Other {
				want-- // audit.Other has no trust domain
			}
			logged := fields(t, appendAttributes(nil, &sample.Record))
			if _, there := logged["error.type"]; there {
				want++ // an attribute of the span's convention
			}
			if len(logged) != want {
				t.Errorf("%d attributes, want %d\nnative: %s\nlog: %v", len(logged), want, line, logged)
			}
		})
	}
}

// TestUntrustedTextIsBoundedAndValid checks that untrusted text in a log record is
// bounded and valid UTF-8. One invalid byte would lose a whole batch.
func TestUntrustedTextIsBoundedAndValid(t *testing.T) {
	long := strings.Repeat("é", 5000) + "\xff"
	r := audittest.Samples()[0].Record
	r.Method, r.Detail, r.Rule, r.Protocol = "\xff\xfe", long, "a\xffb", "\xc3"
	for key, value := range fields(t, appendAttributes(nil, &r)) {
		if text, ok := value.(string); ok && (!utf8.ValidString(text) || len(text) > 1024) {
			t.Errorf("%s: %q", key, text)
		}
	}
}

// TestLogRecordHasNoTerminalControls checks that control characters in a log record are
// replaced, because its form has no escapes.
func TestLogRecordHasNoTerminalControls(t *testing.T) {
	for _, text := range audittest.Obeyed() {
		r := audittest.Hostile(audit.EventDecision, text, 1)
		r.Path = text
		for _, protocol := range []audit.Protocol{audit.Protocol(text), audit.ProtocolDNS} {
			r.Protocol, r.DNS = protocol, audit.DNS{Code: text, Origin: text}
			for key, value := range fields(t, appendAttributes(nil, &r)) {
				if text, ok := value.(string); ok && audittest.IsObeyed(text, true) {
					t.Fatalf("%s: %q", key, text)
				}
			}
		}
	}
}

// TestSeverities checks the severity of each kind of record.
func TestSeverities(t *testing.T) {
	for name, want := range map[string]log.Severity{
		"allow": log.SeverityInfo, "deny": log.SeverityWarn, "observe": log.SeverityWarn, "fail": log.SeverityError,
		"tunnel-close": log.SeverityInfo, "tunnel-revoked": log.SeverityWarn, "handshake": log.SeverityWarn,
		"summary": log.SeverityWarn, "collapsed": log.SeverityWarn, "policy-reload": log.SeverityInfo,
	} {
		i := slices.IndexFunc(audittest.Samples(), func(s audittest.Sample) bool { return s.Name == name })
		if i < 0 {
			t.Errorf("no sample %s", name)
			continue
		}
		if got := severityOf(&audittest.Samples()[i].Record); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// TestRecordsReachTheCollector sends records over a real socket.
func TestRecordsReachTheCollector(t *testing.T) {
	c, getenv := newCollector(t)
	tel := newTelemetry(t, Config{Version: "v0", Getenv: getenv})
	sink, err := tel.LogSink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := audittest.Samples()[0].Record
	if err := sink.Write(t.Context(), []*audit.Record{&want}); err != nil {
		t.Fatal(err)
	}
	resource := received(t, c.logs).GetResourceLogs()[0]
	got := resource.GetScopeLogs()[0].GetLogRecords()[0]
	if body := got.GetBody().GetStringValue(); body != "decision" {
		t.Errorf("body %q", body)
	}
	if got.GetSeverityNumber() != logspb.SeverityNumber_SEVERITY_NUMBER_INFO || got.GetSeverityText() != "INFO" {
		t.Errorf("severity %v %q", got.GetSeverityNumber(), got.GetSeverityText())
	}
	if at := time.Unix(0, int64(got.GetTimeUnixNano())); !at.Equal(want.Time) {
		t.Errorf("time %v, want %v", at, want.Time)
	}
	if id, span := want.Trace.TraceID(), want.Trace.SpanID(); string(got.GetTraceId()) != string(id[:]) || string(got.GetSpanId()) != string(span[:]) {
		t.Errorf("trace %x, span %x; want %s, %s", got.GetTraceId(), got.GetSpanId(), id, span)
	}
	isID := func(kv *commonpb.KeyValue) bool { return kv.GetKey() == "egress.decision.id" }
	if i := slices.IndexFunc(got.GetAttributes(), isID); i < 0 || got.GetAttributes()[i].GetValue().GetStringValue() != want.ID {
		t.Errorf("no id in %v", got.GetAttributes())
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sink.Write(t.Context(), []*audit.Record{&want}); err == nil {
		t.Error("a record after the end is no error")
	}
}

// TestLostRecordsAreCounted sends three batches, of which the second fails, and checks
// that its records are reported as lost.
func TestLostRecordsAreCounted(t *testing.T) {
	exporter := &takeAll{answers: []error{nil, errOther, nil}}
	sink := newLogSink(nil, "v0", exporter)
	records := make([]*audit.Record, 2*logBatch+10)
	for i := range records {
		records[i] = allowed()
	}
	err := sink.Write(t.Context(), records)
	lost, ok := errors.AsType[*audit.LostError](err)
	if !ok || !errors.Is(err, errOther) {
		t.Fatalf("got %v", err)
	}
	if n := len(lost.Lost); n != logBatch || lost.Lost[0] != logBatch || lost.Lost[n-1] != 2*logBatch-1 {
		t.Errorf("%d are lost, from %d to %d", n, lost.Lost[0], lost.Lost[n-1])
	}
	if diff := cmp.Diff(exporter.batches, []int{logBatch, logBatch, 10}); diff != "" {
		t.Errorf("batches (-got +want):\n%s", diff)
	}
}

// TestLogSinkNeedsAnExporter checks the error of LogSink if no exporter of logs is
// configured, and if the SDK is disabled.
func TestLogSinkNeedsAnExporter(t *testing.T) {
	tel := newTelemetry(t, Config{})
	if _, err := tel.LogSink(t.Context()); !errors.Is(err, errNoLogs) {
		t.Errorf("with nothing set: %v", err)
	}
	off := newTelemetry(t, Config{Getenv: func(key string) string { return map[string]string{"OTEL_SDK_DISABLED": "true"}[key] }})
	if _, err := off.LogSink(t.Context()); !errors.Is(err, ErrDisabled) {
		t.Errorf("disabled: %v", err)
	}
}
