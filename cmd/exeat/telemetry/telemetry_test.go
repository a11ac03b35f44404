package telemetry

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

func TestWhatAsksForAnExporter(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		want bool
	}{
		{"nothing set", nil, false},
		{"an endpoint", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, true},
		{"an endpoint for traces", map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, true},
		{"an exporter", map[string]string{"OTEL_TRACES_EXPORTER": "console"}, true},
		{"none", map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, false},
		{"disabled", map[string]string{"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := wanted(func(key string) string { return tt.env[key] }); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestSpansHaveIDsWithoutAnExporter(t *testing.T) {
	provider, err := Traces(t.Context(), "v0", func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	_, span := provider.Tracer("test").Start(t.Context(), "CONNECT")
	defer span.End()
	if sc := span.SpanContext(); !sc.IsValid() || !sc.IsSampled() {
		t.Errorf("span context %v is not valid and sampled", sc)
	}
}

// TestSpansReachTheCollector goes over a real socket, with a sampler in the
// environment that would drop every span.
func TestSpansReachTheCollector(t *testing.T) {
	got := make(chan *coltrace.ExportTraceServiceRequest, 1)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- readExport(t, r)
	}))
	defer collector.Close()
	env := map[string]string{
		"OTEL_TRACES_EXPORTER":        "otlp",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL,
		"OTEL_TRACES_SAMPLER":         "always_off",
	}
	for k, v := range env {
		t.Setenv(k, v)
	}
	provider, err := Traces(t.Context(), "v0", func(key string) string { return env[key] })
	if err != nil {
		t.Fatal(err)
	}
	endOne(t, provider)
	resource := (<-got).GetResourceSpans()[0]
	if name := resource.GetScopeSpans()[0].GetSpans()[0].GetName(); name != "CONNECT" {
		t.Errorf("span name %q, want CONNECT", name)
	}
	attrs := map[string]string{}
	for _, kv := range resource.GetResource().GetAttributes() {
		attrs[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	if attrs["service.name"] != "exeat" || attrs["service.version"] != "v0" {
		t.Errorf("resource %v", attrs)
	}
}

func endOne(t *testing.T, provider *trace.TracerProvider) {
	t.Helper()
	_, span := provider.Tracer("test").Start(t.Context(), "CONNECT")
	span.End()
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func readExport(t *testing.T, r *http.Request) *coltrace.ExportTraceServiceRequest {
	t.Helper()
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		zipped, err := gzip.NewReader(body)
		if err != nil {
			t.Error(err)
			return nil
		}
		body = zipped
	}
	data, err := io.ReadAll(body)
	if err != nil {
		t.Error(err)
	}
	var export coltrace.ExportTraceServiceRequest
	if err := proto.Unmarshal(data, &export); err != nil {
		t.Error(err)
	}
	return &export
}
