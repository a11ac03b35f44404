// Package telemetry sets up OpenTelemetry from the standard OTEL_* variables, and
// counts spans, records, and its own losses.
//
//	t, err := telemetry.New(ctx, telemetry.Config{Version: "v1", Getenv: os.Getenv})
//	defer t.Shutdown(ctx)
//	audit.New(ctx, audit.Config{Tracer: t.Tracer(), Measure: t.Instruments().Measure, …})
//	t.Observe(telemetry.Observed{Tunnels: registry.Tunnels})
//	http.Handle("/metrics", t.Handler())
//
// Nothing is exported unless a variable asks for it: OTEL_SDK_DISABLED switches
// everything off, OTEL_TRACES_EXPORTER and its likes choose an exporter, and
// OTEL_EXPORTER_OTLP_ENDPOINT alone means OTLP. OTEL_BSP_* set the size of the queue of
// spans. OTEL_TRACES_SAMPLER is ignored, because every decision must be seen.
//
// The package never blocks a decision: queues are bounded, and losses are counted.
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

// scope is the name of the instrumentation scope of spans, metrics and log records.
const scope = "github.com/exeat-dev/exeat"

// The signals of Config.Failing and Config.Warned. Logs are a sink of records, so that
// their failures are reported by the recorder.
const (
	SignalTraces = "traces"
	SignalLogs   = "logs"
	// SignalSDK is any other error of the OpenTelemetry SDK, such as a failure to push
	// metrics; see HandleErrors.
	SignalSDK = "sdk"
)

// Config configures [New].
type Config struct {
	// Version of this program, for the resource's service.version.
	Version string
	// Getenv reads the environment. It is required.
	Getenv func(string) string
	// IdentityCap bounds the identities that have a series of their own in
	// egress.decisions.by_identity; the others share _other. Zero means that there is
	// no such metric.
	IdentityCap int
	// Failing is called when exports of a signal begin to fail (err is not nil) and
	// when they work again (nil), from the goroutine that exports. For SignalSDK it is
	// called with every new error, and never with nil. It may be nil; failures are
	// counted all the same.
	Failing func(signal string, err error)
	// Warned is called with the warning of a collector that has accepted everything,
	// once until there is another warning. It may be nil.
	Warned func(signal string, err error)
	// Misread is called with what the SDK could not do when it read one of the OTEL_*
	// variables, such as "parse headers". It goes on as if the variable were not set.
	// It may be nil.
	Misread func(what string)
}

// Telemetry is the SDK after New. All methods are safe for concurrent use.
type Telemetry struct {
	cfg      Config
	resource *resource.Resource
	traces   *traces
	metrics  *metrics

	mu    sync.Mutex
	logs  []*LogSink
	other string // last error that HandleErrors reported
}

// New sets up traces and metrics. Call Shutdown last of all, which flushes them.
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
	if cfg.Misread == nil {
		cfg.Misread = func(string) {}
	}
	logErrors(cfg.Misread)
	if err := checkResourceAttributes(cfg.Getenv); err != nil {
		return nil, err
	}
	res, err := resource.New(ctx,
		resource.WithService(), // adds an instance id; without it the metrics of two processes are one series
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

// Instance returns the name of this process: the service.instance.id of its spans,
// metrics and logs.
func (t *Telemetry) Instance() string {
	id, _ := t.resource.Set().Value("service.instance.id")
	return id.AsString()
}

// Tracer returns the tracer for the spans of decisions.
func (t *Telemetry) Tracer() trace.Tracer { return t.traces.provider.Tracer(scope) }

// spanStats returns the counts of spans so far.
func (t *Telemetry) spanStats() spanStats { return t.traces.queue.stats() }

// Instruments returns the counters and histograms.
func (t *Telemetry) Instruments() *Instruments { return t.metrics.instruments }

// Handler returns a handler that shows all metrics in the Prometheus form.
func (t *Telemetry) Handler() http.Handler { return t.metrics.handler }

// HandleErrors is the argument for otel.SetErrorHandler. Only main calls that function,
// because it changes the whole process. Errors of the SDK are then passed to
// Config.Failing, each once until there is another one, instead of standard error.
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

// ShutdownTraces flushes spans until ctx is done. It may be called before Shutdown,
// which then has nothing left to do with them.
func (t *Telemetry) ShutdownTraces(ctx context.Context) error { return t.traces.provider.Shutdown(ctx) }

// Shutdown flushes everything until ctx is done. Metrics come last, so that they count
// the results of the others.
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
