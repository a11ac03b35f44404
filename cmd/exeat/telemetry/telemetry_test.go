package telemetry

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// nothing is an empty environment.
func nothing(string) string { return "" }

func newTelemetry(t *testing.T, cfg Config) *Telemetry {
	t.Helper()
	if cfg.Getenv == nil {
		cfg.Getenv = nothing
	}
	tel, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.WithoutCancel(t.Context())) })
	return tel
}

// collector accepts OTLP over HTTP.
type collector struct {
	*httptest.Server

	traces  chan *coltrace.ExportTraceServiceRequest
	logs    chan *collogs.ExportLogsServiceRequest
	metrics chan *colmetrics.ExportMetricsServiceRequest
}

// newCollector starts a collector and returns an environment with its address, which
// autoexport reads from the process.
func newCollector(t *testing.T) (c *collector, getenv func(string) string) {
	t.Helper()
	c = &collector{
		traces:  make(chan *coltrace.ExportTraceServiceRequest, 100),
		logs:    make(chan *collogs.ExportLogsServiceRequest, 100),
		metrics: make(chan *colmetrics.ExportMetricsServiceRequest, 100),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(_ http.ResponseWriter, r *http.Request) {
		c.traces <- read(t, r, &coltrace.ExportTraceServiceRequest{})
	})
	mux.HandleFunc("POST /v1/logs", func(_ http.ResponseWriter, r *http.Request) {
		c.logs <- read(t, r, &collogs.ExportLogsServiceRequest{})
	})
	mux.HandleFunc("POST /v1/metrics", func(_ http.ResponseWriter, r *http.Request) {
		c.metrics <- read(t, r, &colmetrics.ExportMetricsServiceRequest{})
	})
	c.Server = httptest.NewServer(mux)
	t.Cleanup(c.Close)
	return c, setenv(t, map[string]string{
		"OTEL_EXPORTER_OTLP_PROTOCOL":    "http/protobuf",
		"OTEL_EXPORTER_OTLP_ENDPOINT":    c.URL,
		"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
		"OTEL_TRACES_SAMPLER":            "always_off",
	})
}

// received returns the next request. It does not wait, because the sender has had an
// answer.
func received[M any](t *testing.T, requests <-chan M) M {
	t.Helper()
	select {
	case m := <-requests:
		return m
	default:
		t.Fatal("nothing has reached the collector")
		panic("unreachable")
	}
}

func setenv(t *testing.T, env map[string]string) func(string) string {
	t.Helper()
	for k, v := range env {
		t.Setenv(k, v)
	}
	return func(key string) string { return env[key] }
}

func read[M proto.Message](t *testing.T, r *http.Request, message M) M {
	t.Helper()
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		zipped, err := gzip.NewReader(body)
		if err != nil {
			t.Error(err)
			return message
		}
		body = zipped
	}
	data, err := io.ReadAll(body)
	if err != nil {
		t.Error(err)
	}
	if err := proto.Unmarshal(data, message); err != nil {
		t.Error(err)
	}
	return message
}

// TestVariablesThatConfigureAnExporter checks which variables of the environment
// configure an exporter of spans.
func TestVariablesThatConfigureAnExporter(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		want bool
	}{
		{"no variable", nil, false},
		{"an endpoint", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, true},
		{"an endpoint for traces", map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, true},
		{"an endpoint for logs", map[string]string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:1"}, false},
		{"an exporter", map[string]string{"OTEL_TRACES_EXPORTER": "console"}, true},
		{"none", map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, false},
		{"disabled", map[string]string{"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := wanted(func(key string) string { return tt.env[key] }, "TRACES"); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestSizesOfTheQueue checks how the size of the queue is read from the environment.
func TestSizesOfTheQueue(t *testing.T) {
	for text, want := range map[string]int{"": 7, "100": 100, "0": 7, "-1": 7, "many": 7, "99999999999": 1 << 20} {
		if got := size(func(string) string { return text }, "OTEL_BSP_MAX_QUEUE_SIZE", 7); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}

// TestSpansHaveIDsWithoutAnExporter checks that spans have the ids for records if there
// is no exporter, and that their attributes, which nobody would see, are not set.
func TestSpansHaveIDsWithoutAnExporter(t *testing.T) {
	tel := newTelemetry(t, Config{})
	_, span := tel.Tracer().Start(t.Context(), "CONNECT")
	span.End()
	if sc := span.SpanContext(); !sc.IsValid() || span.IsRecording() {
		t.Errorf("span context %v, recording %v", sc, span.IsRecording())
	}
	if got := tel.spanStats(); got != (spanStats{}) {
		t.Errorf("counted %+v", got)
	}
}

// TestSpansReachTheCollector sends spans over a real socket, with a sampler in the
// environment that would drop every span.
func TestSpansReachTheCollector(t *testing.T) {
	c, getenv := newCollector(t)
	tel := newTelemetry(t, Config{Version: "v0", Getenv: getenv})
	end(t.Context(), tel.Tracer(), 1)
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	resource := received(t, c.traces).GetResourceSpans()[0]
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
	if attrs["service.instance.id"] == "" {
		t.Errorf("two gateways that push to one place are one series: resource %v", attrs)
	}
	if got, want := tel.spanStats(), (spanStats{Made: 1, Exported: 1}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

// TestTheEnvironmentNamesThisProcess checks that the process has the name in the
// environment, and that two processes have different names without one.
func TestTheEnvironmentNamesThisProcess(t *testing.T) {
	instance := func() string {
		t.Helper()
		tel := newTelemetry(t, Config{})
		value, _ := tel.resource.Set().Value("service.instance.id")
		if got := tel.Instance(); got != value.AsString() {
			t.Errorf("records name it %q, spans and metrics %q", got, value.AsString())
		}
		return value.AsString()
	}
	if a, b := instance(), instance(); a == b {
		t.Errorf("both are %q", a)
	}
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-1")
	if got := instance(); got != "pod-1" {
		t.Errorf("got %q", got)
	}
}

// TestResourceAttributesAreNotQuoted checks that the error for a wrong
// OTEL_RESOURCE_ATTRIBUTES says where it is wrong, and nothing of what it holds.
func TestResourceAttributesAreNotQuoted(t *testing.T) {
	for _, row := range []struct{ attributes, want string }{
		{"", ""},
		{" service.namespace=prod , token=a%2Cb=c ", ""},
		{"secret", "attribute 1 "},
		{"service.namespace=prod,secret", "attribute 2 "},
		{"service.namespace=prod,", "attribute 2 "},
		{"service.namespace=prod,token=secret%zz,secret", "attribute 2 "},
	} {
		env := map[string]string{"OTEL_RESOURCE_ATTRIBUTES": row.attributes}
		tel, err := New(t.Context(), Config{Getenv: setenv(t, env)})
		if err == nil {
			_ = tel.Shutdown(t.Context())
		}
		switch {
		case row.want == "" && err != nil:
			t.Errorf("%q: %v", row.attributes, err)
		case row.want == "":
		case err == nil || !strings.Contains(err.Error(), "OTEL_RESOURCE_ATTRIBUTES: ") || !strings.Contains(err.Error(), row.want):
			t.Errorf("%q: got %v, want the variable and %q", row.attributes, err, row.want)
		case strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "zz"):
			t.Errorf("%q: the error quotes the value: %v", row.attributes, err)
		}
	}
}

// TestMetricsReachTheCollector checks that metrics are sent, and that the last counts
// are sent at the end.
func TestMetricsReachTheCollector(t *testing.T) {
	c, getenv := newCollector(t)
	tel := newTelemetry(t, Config{Getenv: getenv})
	if err := tel.Observe(Observed{}); err != nil {
		t.Fatal(err)
	}
	tel.Instruments().Reload("in-force")
	end(t.Context(), tel.Tracer(), 3)
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, rm := range received(t, c.metrics).GetResourceMetrics() {
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				got[m.GetName()] = 0
				for _, p := range m.GetSum().GetDataPoints() {
					got[m.GetName()] += p.GetAsInt()
				}
			}
		}
	}
	if got["egress.policy.reloads"] != 1 || got["egress.spans"] != 3 {
		t.Errorf("got %v", got)
	}
	if _, ok := got["go.goroutine.count"]; !ok {
		t.Error("nothing about the Go runtime")
	}
}

func TestUnknownExporterIsAnError(t *testing.T) {
	for _, variable := range []string{"OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"} {
		t.Run(variable, func(t *testing.T) {
			getenv := setenv(t, map[string]string{variable: "carrier-pigeon"})
			if tel, err := New(t.Context(), Config{Getenv: getenv}); err == nil {
				_ = tel.Shutdown(t.Context())
				t.Error("no error")
			}
		})
	}
}

// TestPrometheusIsNotPushed checks that no exporter is made for Prometheus, because it
// would open a listener.
func TestPrometheusIsNotPushed(t *testing.T) {
	if pushWanted(func(key string) string { return map[string]string{"OTEL_METRICS_EXPORTER": "prometheus"}[key] }) {
		t.Error("it is")
	}
}

func TestErrorsOfTheSDKAreReportedOnce(t *testing.T) {
	var told []string
	tel := newTelemetry(t, Config{Failing: func(signal string, err error) { told = append(told, signal+" "+err.Error()) }})
	for _, text := range []string{"one", "one", "two", "two", "one"} {
		tel.HandleErrors(errors.New(text))
	}
	if diff := cmp.Diff(told, []string{"sdk one", "sdk two", "sdk one"}); diff != "" {
		t.Errorf("told (-got +want):\n%s", diff)
	}
}
