package telemetry

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
)

// logErrors makes the SDK of OpenTelemetry pass the errors that it would log to misread,
// and those that it would print. The SDK has one logger and one handler of errors for the
// whole process, so that the last call counts. See [Telemetry.HandleErrors] for the handler
// after the start.
func logErrors(misread func(what string)) {
	otel.SetLogger(logr.New(errorLog{misread}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { misread(failedStep(err)) }))
}

// failedStep says what the setup of an exporter could not do. Of the error it has only the
// name of a variable or of a file, because its text quotes values, which may hold
// credentials.
func failedStep(err error) string {
	words := strings.Fields(err.Error())
	if len(words) > 1 && words[0] == "invalid" && strings.HasPrefix(words[1], "OTEL_") {
		return "read " + words[1]
	}
	if file, ok := errors.AsType[*fs.PathError](err); ok {
		return "read file " + file.Path
	}
	return "set up an exporter"
}

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
