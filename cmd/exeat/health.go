package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/admin"
)

// openAdmin opens the admin listener, if the configuration names one, and
// registers the metrics that it shows.
func (g *gateway) openAdmin(ctx context.Context) error {
	provider, handler, err := telemetry.Metrics()
	if err != nil {
		return err
	}
	meter := provider.Meter("github.com/exeat-dev/exeat")
	if err := g.observe(meter); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if g.cfg.AdminAddress == "" {
		return nil
	}
	g.admin, err = admin.Listen(ctx, admin.Config{Address: g.cfg.AdminAddress, NotReady: g.notReady, Metrics: handler})
	return err
}

// observe registers what is read when somebody asks, and the counters.
func (g *gateway) observe(meter metric.Meter) error {
	expiry, err1 := meter.Float64ObservableGauge("egress.svid.expiry", metric.WithUnit("s"),
		metric.WithDescription("Time until the gateway's SVID expires; negative once it has."))
	tunnels, err2 := meter.Int64ObservableGauge("egress.tunnels.active",
		metric.WithDescription("Open tunnels."))
	info, err3 := meter.Int64ObservableGauge("egress.policy.info",
		metric.WithDescription("The policy in force."))
	age, err4 := meter.Float64ObservableGauge("egress.policy.age", metric.WithUnit("s"),
		metric.WithDescription("Time since the policy came into force."))
	var err5 error
	g.reloads, err5 = meter.Int64Counter("egress.policy.reloads",
		metric.WithDescription("Policies that were loaded, by result."))
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		if g.identity != nil {
			o.ObserveFloat64(expiry, time.Until(g.identity.source.Snapshot().NotAfter()).Seconds())
		}
		o.ObserveInt64(tunnels, int64(g.registry.Len()))
		if s := g.current.Load(); s != nil {
			o.ObserveInt64(info, 1, metric.WithAttributes(attribute.String("version", s.Policy.Version()),
				attribute.String("generation", strconv.FormatUint(s.Generation, 10))))
			o.ObserveFloat64(age, time.Since(s.Loaded).Seconds())
		}
		return nil
	}, expiry, tunnels, info, age)
	return err
}

// countReload counts a load of the policy: in-force, held or refused.
func (g *gateway) countReload(ctx context.Context, result string) {
	g.reloads.Add(ctx, 1, metric.WithAttributes(attribute.String("result", result)))
}

// notReady says why no new connection should be sent here.
func (g *gateway) notReady() []string {
	var causes []string
	if g.stopping.Load() {
		causes = append(causes, "draining: the gateway is shutting down")
	}
	if s := g.current.Load(); s == nil || s.Policy == nil {
		causes = append(causes, "policy: none is loaded")
	}
	if g.identity != nil {
		if end := g.identity.source.Snapshot().NotAfter(); time.Now().After(end) {
			causes = append(causes, "identity: expired "+end.UTC().Format(time.RFC3339)+", and no newer one has come")
		}
	}
	return causes
}

// serveAdmin answers probes until closeAdmin.
func (g *gateway) serveAdmin(ctx context.Context) {
	if g.admin == nil {
		return
	}
	if err := g.admin.Serve(); err != nil {
		g.log.LogAttrs(ctx, slog.LevelError, "the admin listener stopped", slog.Any("error", err))
	}
}

func (g *gateway) closeAdmin() {
	if g.admin != nil {
		_ = g.admin.Close()
	}
}
