package telemetry

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestLogOfTheSDKHasNoValues checks that a variable which the SDK cannot read is
// reported without its text, which may hold credentials.
func TestLogOfTheSDKHasNoValues(t *testing.T) {
	for name, row := range map[string]struct{ variable, value, want string }{
		"a header without =":    {"OTEL_EXPORTER_OTLP_HEADERS", "authorization secret", "parse headers"},
		"an escape in a header": {"OTEL_EXPORTER_OTLP_HEADERS", "authorization=%secret", "escape header value"},
		"an endpoint":           {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:secret@[::1", "parse url"},
		"a timeout":             {"OTEL_EXPORTER_OTLP_TIMEOUT", "secret", "parse duration"},
		"an authority":          {"OTEL_EXPORTER_OTLP_CERTIFICATE", "none.pem", "read tls ca cert file none.pem"},
		"an endpoint of logs":   {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "://secret", "read OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"},
		"a header of logs":      {"OTEL_EXPORTER_OTLP_LOGS_HEADERS", "authorization=%secret", "read OTEL_EXPORTER_OTLP_LOGS_HEADERS"},
		"a timeout of logs":     {"OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "secret", "read OTEL_EXPORTER_OTLP_LOGS_TIMEOUT"},
		"compression of logs":   {"OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "secret", "read OTEL_EXPORTER_OTLP_LOGS_COMPRESSION"},
		"an authority of logs":  {"OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", "none.pem", "read file none.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv("OTEL_METRICS_EXPORTER", "none")
			t.Setenv(row.variable, row.value)
			var misread []string
			tel, err := New(t.Context(), Config{Getenv: os.Getenv, Misread: func(what string) { misread = append(misread, what) }})
			if err == nil {
				_, err = tel.LogSink(t.Context())
				err = errors.Join(err, tel.Shutdown(t.Context()))
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error is %v", err)
			}
			if !slices.Contains(misread, row.want) && err == nil {
				t.Errorf("got %q, want %q", misread, row.want)
			}
			if strings.Contains(strings.Join(misread, " "), "secret") {
				t.Errorf("got %q", misread)
			}
		})
	}
}
