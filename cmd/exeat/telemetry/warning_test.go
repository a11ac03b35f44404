package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestWarningOfACollectorIsNoFailure checks that an answer of a collector with a
// warning, and without rejected items, counts as a complete success, as OTLP says. The
// text of the warning is the collector's.
func TestWarningOfACollectorIsNoFailure(t *testing.T) {
	for _, row := range []struct {
		name, text string
		rejected   int64
		lost       bool
	}{
		{"a warning", "old version", 0, false},
		{"a warning about what was rejected", "once (5 log records rejected)", 0, false},
		{"a rejected item", "too old", 1, true},
		{"a rejected item, with another number in the text", "all but (0 spans rejected)", 1, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			tel, sink := withPartialSuccess(t, row.text, row.rejected)
			if err := sink.Write(t.Context(), []*audit.Record{allowed()}); (err != nil) != row.lost {
				t.Errorf("writing a record: %v", err)
			}
			end(t.Context(), tel.Tracer(), 1)
			if err := tel.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := spanStats{Made: 1, Exported: 1}
			if row.lost {
				want = spanStats{Made: 1, Failed: 1}
			}
			if got := tel.spanStats(); got != want {
				t.Errorf("spans: %+v, want %+v", got, want)
			}
		})
	}
}

// TestOnlyRejectedItemsAreLost checks that only the rejected items count as lost if a
// collector accepts a part of a batch, over either protocol.
func TestOnlyRejectedItemsAreLost(t *testing.T) {
	const sent = 5
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		for rejected, want := range map[int64]int{-1: 0, 0: 0, 1: 1, 4: 4, 5: 5, 6: 5, 1 << 40: 5} {
			for _, text := range []string{"", "too old", "all but (0 spans rejected)"} {
				t.Run(fmt.Sprintf("%s, %d, %q", protocol, rejected, text), func(t *testing.T) {
					warnings := 0
					tel, sink := withAnswers(t, protocol, text, rejected, func(string, error) { warnings++ })
					records := make([]*audit.Record, sent)
					for i := range records {
						records[i] = allowed()
					}
					err := sink.Write(t.Context(), records)
					lost, _ := errors.AsType[*audit.LostError](err)
					switch {
					case want == 0 && err != nil:
						t.Errorf("writing records: %v", err)
					case want > 0 && (lost == nil || len(lost.Lost)+lost.Unnamed != want || want < sent && len(lost.Lost) > 0):
						t.Errorf("writing records: %v, %+v", err, lost)
					}
					end(t.Context(), tel.Tracer(), sent)
					if err := tel.Shutdown(t.Context()); err != nil {
						t.Fatal(err)
					}
					if got := tel.spanStats(); got != (spanStats{Made: sent, Exported: uint64(sent - want), Failed: uint64(want)}) {
						t.Errorf("spans: %+v, want %d to be lost", got, want)
					}
					if warned := warnings > 0; warned != (want == 0 && (text != "" || rejected != 0)) {
						t.Errorf("%d warnings", warnings)
					}
				})
			}
		}
	}
}

// TestErrorThatQuotesAPartialSuccess checks that an error counts as a partial success
// only if it is the exporters' own, and not if it quotes one or comes with another
// error.
func TestErrorThatQuotesAPartialSuccess(t *testing.T) {
	none := partial(0)
	for name, row := range map[string]struct {
		err  error
		lost int
	}{
		"no error":                        {nil, 0},
		"nothing is rejected":             {none, 0},
		"wrapped":                         {fmt.Errorf("traces export: %w", errors.Join(nil, none)), 0},
		"some are rejected":               {fmt.Errorf("traces export: %w", partial(2)), 2},
		"more than all are rejected":      {partial(12), 10},
		"quoted":                          {errors.New("rpc error: code = Internal desc = " + none.Error()), 10},
		"before another error":            {errors.Join(none, errOther), 10},
		"after another error":             {errors.Join(errOther, partial(2)), 10},
		"something else":                  {errOther, 10},
		"another type with the same text": {renamed{3}, 10},
	} {
		d := newDelivery("x", silent)
		if got := countLost(d.run(t.Context(), func(context.Context) error { return row.err }), 10); got != row.lost {
			t.Errorf("%s: %d of 10 are lost, want %d", name, got, row.lost)
		}
	}
}

// partial returns the error of an exporter after a partial success.
func partial(rejected int64) error { return PartialSuccess{RejectedItems: rejected} }

// PartialSuccess has the name and the fields of the exporters' own types, which are
// internal; TestOnlyRejectedItemsAreLost uses the real ones.
type PartialSuccess struct{ RejectedItems int64 } //nolint:errname // the exporters' types have this name

func (p PartialSuccess) Error() string {
	return fmt.Sprintf("OTLP partial success: empty message (%d spans rejected)", p.RejectedItems)
}

// renamed has the field of PartialSuccess, but another name.
type renamed struct{ RejectedItems int64 }

func (renamed) Error() string { return "OTLP partial success: x (0 spans rejected)" }

// TestWarningAboutMetricsIsNoFailure checks that a warning in the answer to metrics is
// not reported as a failure. The SDK itself pushes metrics.
func TestWarningAboutMetricsIsNoFailure(t *testing.T) {
	var told []string
	tell := func(what string) func(string, error) {
		return func(signal string, _ error) { told = append(told, what+" "+signal) }
	}
	tel := newTelemetry(t, Config{Failing: tell("failing"), Warned: tell("warned")})
	for _, err := range []error{partial(0), partial(0), partial(1), partial(0)} {
		tel.HandleErrors(fmt.Errorf("failed to upload metrics: %w", err))
	}
	if diff := cmp.Diff(told, []string{"warned sdk", "failing sdk", "warned sdk"}); diff != "" {
		t.Errorf("told (-got +want):\n%s", diff)
	}
}

// withPartialSuccess sends records and spans to a collector that answers with a partial
// success.
func withPartialSuccess(t *testing.T, text string, rejected int64) (*Telemetry, *LogSink) {
	t.Helper()
	return withAnswers(t, "http/protobuf", text, rejected, nil)
}

// withAnswers sends records and spans over a protocol to a collector that answers with
// a partial success.
func withAnswers(t *testing.T, protocol, text string, rejected int64, warned func(string, error)) (*Telemetry, *LogSink) {
	t.Helper()
	logs := &collogs.ExportLogsServiceResponse{
		PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: rejected, ErrorMessage: text},
	}
	traces := &coltrace.ExportTraceServiceResponse{
		PartialSuccess: &coltrace.ExportTracePartialSuccess{RejectedSpans: rejected, ErrorMessage: text},
	}
	endpoint := ""
	if protocol == "grpc" {
		endpoint = answerGRPC(t, logs, traces)
	} else {
		endpoint = answerHTTP(t, logs, traces)
	}
	getenv := setenv(t, map[string]string{
		"OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
		"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
		"OTEL_METRICS_EXPORTER":       "none",
	})
	tel := newTelemetry(t, Config{Getenv: getenv, Warned: warned})
	sink, err := tel.LogSink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tel, sink
}

// answerHTTP starts a collector with these answers over HTTP, and returns its URL.
func answerHTTP(t *testing.T, logs, traces proto.Message) string {
	t.Helper()
	answer := func(message proto.Message) http.HandlerFunc {
		body, err := proto.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-protobuf")
			_, _ = w.Write(body)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/logs", answer(logs))
	mux.HandleFunc("POST /v1/traces", answer(traces))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// answering is a collector over gRPC.
type answering struct {
	collogs.UnimplementedLogsServiceServer

	logs *collogs.ExportLogsServiceResponse
}

func (a *answering) Export(context.Context, *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	return a.logs, nil
}

// answeringTraces is the traces service of answering.
type answeringTraces struct {
	coltrace.UnimplementedTraceServiceServer

	traces *coltrace.ExportTraceServiceResponse
}

func (a *answeringTraces) Export(context.Context, *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	return a.traces, nil
}

// answerGRPC starts a collector with these answers over gRPC, and returns its URL.
func answerGRPC(t *testing.T, logs *collogs.ExportLogsServiceResponse, traces *coltrace.ExportTraceServiceResponse) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collogs.RegisterLogsServiceServer(server, &answering{logs: logs})
	coltrace.RegisterTraceServiceServer(server, &answeringTraces{traces: traces})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return "http://" + l.Addr().String()
}
