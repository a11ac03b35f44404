package telemetry

import (
	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
)

// logErrors makes the SDK of OpenTelemetry pass the errors that it would log to misread.
// The SDK has one logger for the whole process, so that the last call counts.
func logErrors(misread func(what string)) { otel.SetLogger(logr.New(errorLog{misread})) }

// errorLog is the logger of the SDK. It passes on what the SDK was doing and the name of
// the file in question. It drops all other values and the error itself: the SDK logs the
// text of variables that may hold credentials, such as OTEL_EXPORTER_OTLP_HEADERS.
type errorLog struct{ misread func(what string) }

// Init implements logr.LogSink.
func (errorLog) Init(logr.RuntimeInfo) {}

// Enabled implements logr.LogSink. Only errors are passed on.
func (errorLog) Enabled(int) bool { return false }

// Info implements logr.LogSink.
func (errorLog) Info(int, string, ...any) {}

// Error implements logr.LogSink.
func (l errorLog) Error(_ error, doing string, values ...any) {
	for i := 0; i+1 < len(values); i += 2 {
		if file, ok := values[i+1].(string); ok && values[i] == "file" {
			doing += " " + file
		}
	}
	l.misread(doing)
}

// WithValues implements logr.LogSink.
func (l errorLog) WithValues(...any) logr.LogSink { return l }

// WithName implements logr.LogSink.
func (l errorLog) WithName(string) logr.LogSink { return l }
