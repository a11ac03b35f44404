// Package telemetry sets up the OpenTelemetry SDK from the standard OTEL_*
// variables: nothing is exported unless one of them asks for it.
package telemetry

import (
	"context"
	"fmt"
	"strings"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// The queue of spans that wait for the exporter, and how many go at a time.
const (
	queueSize = 16384
	batchSize = 2048
)

// Traces returns a tracer provider that samples every span, whatever a
// caller's context or OTEL_TRACES_SAMPLER says: no decision may go unseen.
// Without an exporter spans still have ids, which the records carry. Shut the
// provider down last, to flush it.
func Traces(ctx context.Context, version string, getenv func(string) string) (*sdktrace.TracerProvider, error) {
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "exeat"), attribute.String("service.version", version)),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describing this process for traces: %w", err)
	}
	opts := []sdktrace.TracerProviderOption{
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(res),
	}
	if wanted(getenv) {
		exporter, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return nil, fmt.Errorf("setting up the trace exporter that the OTEL_* variables ask for: %w", err)
		}
		opts = append(opts, sdktrace.WithBatcher(exporter,
			sdktrace.WithMaxQueueSize(queueSize), sdktrace.WithMaxExportBatchSize(batchSize)))
	}
	return sdktrace.NewTracerProvider(opts...), nil
}

// wanted reports whether a variable asks for an exporter. The Go SDK knows
// OTEL_SDK_DISABLED not, and takes "nothing set" for OTLP to localhost.
func wanted(getenv func(string) string) bool {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	if exporter := getenv("OTEL_TRACES_EXPORTER"); exporter != "" {
		return exporter != "none"
	}
	return getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}
