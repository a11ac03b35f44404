package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/ecs"
	"github.com/exeat-dev/exeat/proxy/audit/file"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/audit/ocsf"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// openRecords makes the sinks of the configuration. What it opened stands in g
// also after an error.
func (g *gateway) openRecords(ctx context.Context, stdout io.Writer) ([]audit.SinkConfig, error) {
	var sinks []audit.SinkConfig
	for _, rs := range g.cfg.Records {
		sink := audit.SinkConfig{Name: rs.Name}
		if rs.Only == config.Denials {
			sink.Keep = denials
		}
		switch {
		case rs.OTLP:
			logs, err := g.telemetry.LogSink(ctx)
			if errors.Is(err, telemetry.ErrDisabled) && g.othersKeep(rs) {
				g.log.WarnContext(ctx, "a sink is left out", slog.String("sink", rs.Name), slog.Any("cause", err))
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("records: sink %s: %w", rs.Name, err)
			}
			sink.Sink = logs
		case rs.File == "":
			sink.Sink = audit.NewLines(stdout, renderer(rs.Format))
		default:
			f, err := file.Open(file.Config{Path: rs.File, Rotate: rs.Rotate, Failed: g.recordFileStays(rs.Name)})
			if err != nil {
				return nil, fmt.Errorf("records: sink %s: %w", rs.Name, err)
			}
			g.recordFiles = append(g.recordFiles, f)
			sink.Sink = audit.NewLines(f, renderer(rs.Format))
		}
		sinks = append(sinks, sink)
	}
	return sinks, nil
}

// othersKeep reports whether a sink can be left out: if another one takes at
// least as much.
func (g *gateway) othersKeep(sink config.RecordSink) bool {
	return slices.ContainsFunc(g.cfg.Records, func(other config.RecordSink) bool {
		return !other.OTLP && (other.Only == config.Everything || other.Only == sink.Only)
	})
}

// denials is what "only: denials" keeps: decisions that are not allowed (an
// observed one would not be), requests and tunnels that a later state ended,
// failed handshakes, and what stands for many of these. What was cut off for
// another reason was allowed and stays so.
func denials(r *audit.Record) bool {
	switch r.Event {
	case audit.EventDecision:
		if r.Reason == allowlist.CutOff {
			return r.Detail == tunnel.Revoked.String() || r.Detail == tunnel.Quarantined.String()
		}
		return r.Verdict != allowlist.Allow
	case audit.EventTunnelClose:
		return r.Reason != allowlist.NoReason
	case audit.EventHandshake, audit.EventSummary, audit.EventCollapsed:
		return true
	case audit.EventTunnelProgress, audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
	}
	return false
}

func renderer(f config.Format) audit.Render {
	switch f {
	case config.OCSF:
		return ocsf.Render
	case config.ECS:
		return ecs.Render
	case config.Native:
	}
	return native.Render
}

// recordFileStays tells that a record file could not be opened again or rotated.
func (g *gateway) recordFileStays(sink string) func(error) {
	return func(err error) {
		g.log.Error("the old record file stays open", slog.String("sink", sink), slog.Any("error", err))
	}
}
