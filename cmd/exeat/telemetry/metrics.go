package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/exemplar"
	"go.opentelemetry.io/otel/sdk/resource"
)

// seriesLimit bounds the series of one metric, in addition to those of identities,
// which have a cap of their own. Beyond it the SDK counts into one series.
const seriesLimit = 2000

// metrics is the meter provider with the handler that shows its metrics.
type metrics struct {
	provider    *sdkmetric.MeterProvider
	meter       metric.Meter
	instruments *Instruments
	handler     http.Handler
}

// newMetrics sets up metrics for the handler, in the Prometheus form, and for pushing
// them if a variable asks for that. It uses a registry of its own, so that nothing else
// is shown.
func newMetrics(ctx context.Context, cfg Config, res *resource.Resource) (*metrics, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	shown, err := otelprometheus.New(otelprometheus.WithRegisterer(registry),
		otelprometheus.WithoutScopeInfo(), otelprometheus.WithoutTargetInfo())
	if err != nil {
		return nil, fmt.Errorf("setting up metrics: %w", err)
	}
	opts := []sdkmetric.Option{
		sdkmetric.WithResource(res), sdkmetric.WithReader(shown),
		sdkmetric.WithExemplarFilter(exemplar.AlwaysOffFilter),
		sdkmetric.WithCardinalityLimit(seriesLimit + 3*4*(cfg.IdentityCap+1)), // for each identity a proof and a verdict
	}
	pushed := pushWanted(cfg.Getenv)
	if pushed {
		reader, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return nil, fmt.Errorf("setting up the metrics exporter that the OTEL_* variables ask for: %w", err)
		}
		opts = append(opts, sdkmetric.WithReader(reader))
	}
	m := &metrics{
		provider: sdkmetric.NewMeterProvider(opts...),
		handler:  promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
	}
	m.meter = m.provider.Meter(scope)
	if pushed { // the handler shows the same metrics of the runtime from the client library
		err = runtime.Start(runtime.WithMeterProvider(m.provider))
	}
	if err == nil {
		m.instruments, err = newInstruments(m.meter, cfg.IdentityCap)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("setting up metrics: %w", err), m.provider.Shutdown(ctx))
	}
	return m, nil
}

// pushWanted reports whether metrics are pushed. The exporter "prometheus" does not
// count, because it would open a listener of its own; the admin listener serves the
// metrics.
func pushWanted(getenv func(string) string) bool {
	return wanted(getenv, "METRICS") && getenv("OTEL_METRICS_EXPORTER") != exporterPrometheus
}
