package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/admin"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// openAdmin registers what metrics read and opens the admin listener, if the
// configuration names one.
func (g *gateway) openAdmin(ctx context.Context) error {
	observed := telemetry.Observed{
		Tunnels: g.registry.Tunnels,
		Records: func() []audit.SinkStats { return g.recorder.Stats().Sinks },
		Policy: func() (telemetry.Policy, bool) {
			s := g.current.Load()
			if s == nil || s.Policy == nil {
				return telemetry.Policy{}, false
			}
			return telemetry.Policy{Version: s.Policy.Version(), Generation: s.Generation, Since: s.Loaded}, true
		},
	}
	if g.dns != nil {
		observed.Unanswered = func() telemetry.Unanswered {
			s := g.dns.Stats()
			return telemetry.Unanswered{NoQuery: s.Ignored, OverLimit: s.Shed}
		}
	}
	if g.identity != nil {
		observed.Expiry = func() time.Time { return g.identity.source.Snapshot().NotAfter() }
	}
	if err := g.telemetry.Observe(observed); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if g.cfg.AdminAddress == "" {
		return nil
	}
	var err error
	g.admin, err = admin.Listen(ctx, admin.Config{Address: g.cfg.AdminAddress, NotReady: g.notReady, Notes: g.notes, Metrics: g.telemetry.Handler()})
	return err
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
	for _, f := range g.recorder.Failing() {
		text := fmt.Sprintf("records: sink %s loses records since %s: %v", f.Sink, f.Since.UTC().Format(time.RFC3339), f.Err)
		causes = append(causes, allowlist.Visible(text)) // the error may quote a collector
	}
	return causes
}

// notes says what is wrong with the log, which is no reason to send connections
// elsewhere.
func (g *gateway) notes() []string {
	if g.logFailing == nil {
		return nil
	}
	since, err := g.logFailing()
	if err == nil {
		return nil
	}
	return []string{fmt.Sprintf("log: lines are lost since %s: %v", since.UTC().Format(time.RFC3339), err)}
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
