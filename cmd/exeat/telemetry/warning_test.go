package telemetry

import (
	"net/http"
	"net/http/httptest"
	"testing"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestACollectorThatOnlyWarns has taken everything, as OTLP says. The text of
// the warning is the collector's.
func TestACollectorThatOnlyWarns(t *testing.T) {
	for _, row := range []struct {
		name, text string
		rejected   int64
		lost       bool
	}{
		{"a warning", "old version", 0, false},
		{"a warning about what was rejected", "once (5 log records rejected)", 0, false},
		{"what was rejected", "too old", 1, true},
		{"what was rejected, with a number in the text", "all but (0 spans rejected)", 1, true},
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

// withPartialSuccess sends records and spans to a collector that answers so.
func withPartialSuccess(t *testing.T, text string, rejected int64) (*Telemetry, *LogSink) {
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
	mux.HandleFunc("POST /v1/logs", answer(&collogs.ExportLogsServiceResponse{
		PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: rejected, ErrorMessage: text},
	}))
	mux.HandleFunc("POST /v1/traces", answer(&coltrace.ExportTraceServiceResponse{
		PartialSuccess: &coltrace.ExportTracePartialSuccess{RejectedSpans: rejected, ErrorMessage: text},
	}))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	getenv := setenv(t, map[string]string{
		"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL,
		"OTEL_METRICS_EXPORTER":       "none",
	})
	tel := newTelemetry(t, Config{Getenv: getenv})
	sink, err := tel.LogSink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tel, sink
}
