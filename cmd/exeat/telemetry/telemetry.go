// Package telemetry sets up OpenTelemetry from the standard OTEL_* variables,
// and counts: spans, what the records say, and what it loses itself.
//
//	t, err := telemetry.New(ctx, telemetry.Config{Version: "v1", Getenv: os.Getenv})
//	defer t.Shutdown(ctx)
//	audit.New(audit.Config{Tracer: t.Tracer(), Measure: t.Instruments().Measure, …})
//	t.Observe(telemetry.Observed{Tunnels: registry.Tunnels})
//	http.Handle("/metrics", t.Handler())
//
// Nothing is exported unless a variable asks for it: OTEL_SDK_DISABLED ends
// all of it, OTEL_TRACES_EXPORTER and its like choose, and an
// OTEL_EXPORTER_OTLP_ENDPOINT alone means OTLP. OTEL_BSP_* size the queue of
// spans. OTEL_TRACES_SAMPLER is not obeyed: no decision may go unseen.
//
// The package never blocks a decision: what waits is bounded, and what is lost
// is counted.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/trace"
)

// scope names what makes the spans, the metrics and the log records.
const scope = "github.com/exeat-dev/exeat"

// What Config.Failing and Config.Warned tell of. Logs are a sink of records, so the
// recorder tells of what fails there.
const (
	SignalTraces = "traces"
	SignalLogs   = "logs"
	// SignalSDK is any other error of the OpenTelemetry SDK, such as one of pushing
	// metrics; see HandleErrors.
	SignalSDK = "sdk"
)

// Config says what New sets up.
type Config struct {
	// Version of this program, as the resource's service.version.
	Version string
	// Getenv reads the environment. Required.
	Getenv func(string) string
	// IdentityCap is how many identities get a series of their own in
	// egress.decisions.by_identity; the others share _other. Zero means that
	// there is no such metric.
	IdentityCap int
	// Failing is told when an export of a signal begins to fail (err not nil)
	// and when it works again (nil), from the goroutine that exports. Of SignalSDK it
	// is told every new error, and never that it works again. nil means nobody
	// is told; the counts remain.
	Failing func(signal string, err error)
	// Warned is told what a collector has to say that has taken everything, each once
	// until something else comes. nil means nobody is told.
	Warned func(signal string, err error)
}

// Telemetry is the SDK, set up. All methods are safe for concurrent use.
type Telemetry struct {
	cfg      Config
	resource *resource.Resource
	traces   *traces
	metrics  *metrics

	mu    sync.Mutex
	logs  []*LogSink
	other string // the last error that HandleErrors told of
}

// New sets up traces and metrics. Shut it down last of all, to flush them.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	if cfg.Getenv == nil {
		return nil, errors.New("telemetry: Getenv is required")
	}
	if cfg.Failing == nil {
		cfg.Failing = func(string, error) {}
	}
	if cfg.Warned == nil {
		cfg.Warned = func(string, error) {}
	}
	res, err := resource.New(ctx,
		resource.WithService(), // an instance id, without which the metrics of two processes are one series
		resource.WithAttributes(attribute.String("service.name", "exeat"), attribute.String("service.version", cfg.Version)),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describing this process for OpenTelemetry: %w", err)
	}
	t := &Telemetry{cfg: cfg, resource: res}
	if t.traces, err = newTraces(ctx, cfg, res); err != nil {
		return nil, err
	}
	if t.metrics, err = newMetrics(ctx, cfg, res); err != nil {
		return nil, errors.Join(err, t.traces.provider.Shutdown(ctx))
	}
	return t, nil
}

// Instance is the name of this process: the service.instance.id that its spans,
// metrics and logs have.
func (t *Telemetry) Instance() string {
	id, _ := t.resource.Set().Value("service.instance.id")
	return id.AsString()
}

// Tracer makes the spans of decisions.
func (t *Telemetry) Tracer() trace.Tracer { return t.traces.provider.Tracer(scope) }

// spanStats returns the counts of spans so far.
func (t *Telemetry) spanStats() spanStats { return t.traces.queue.stats() }

// Instruments returns what counts and measures.
func (t *Telemetry) Instruments() *Instruments { return t.metrics.instruments }

// Handler shows all metrics in the Prometheus form.
func (t *Telemetry) Handler() http.Handler { return t.metrics.handler }

// HandleErrors is for otel.SetErrorHandler, which is state of the process and
// therefore for main to set: errors of the SDK then go to Config.Failing, each
// once until another one comes, and not to standard error.
func (t *Telemetry) HandleErrors(err error) {
	t.mu.Lock()
	known := err.Error() == t.other
	t.other = err.Error()
	t.mu.Unlock()
	if known {
		return
	}
	if rejected, ok := partialSuccess(err); ok && rejected <= 0 {
		t.cfg.Warned(SignalSDK, err)
		return
	}
	t.cfg.Failing(SignalSDK, err)
}

// ShutdownTraces flushes spans until ctx is done, before Shutdown, which has nothing
// left to do with them then.
func (t *Telemetry) ShutdownTraces(ctx context.Context) error { return t.traces.provider.Shutdown(ctx) }

// Shutdown flushes everything until ctx is done: metrics last, so that they
// count what became of the rest.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	t.mu.Lock()
	sinks := t.logs
	t.logs = nil
	t.mu.Unlock()
	errs := []error{t.traces.provider.Shutdown(ctx)}
	for _, s := range sinks {
		errs = append(errs, s.shutdown(ctx))
	}
	errs = append(errs, t.metrics.provider.Shutdown(ctx))
	return errors.Join(errs...)
}
