package process

import (
	"fmt"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// metricsOf returns the functions that count events without a record.
func metricsOf(i *telemetry.Instruments) gateway.Metrics {
	return gateway.Metrics{
		Handshaken: i.Handshake, Unused: i.Unused,
		Shed:     func(listener string, why limit.Cause, n int) { i.Cut(listener, why.String(), n) },
		Loaded:   func(l gateway.Load) { i.Reload(string(l)) },
		Enforced: func(e live.Enforcement) { i.Enforced(e.Took) },
	}
}

// observe registers the functions that metrics read.
func (p *Process) observe() error {
	observed := telemetry.Observed{
		Tunnels:  p.gateway.Registry().Tunnels,
		Held:     func() int { return p.gateway.Stats().Held.Identities },
		Refused:  func() bool { return p.gateway.Stats().PolicyRefused },
		Records:  func() []audit.SinkStats { return p.sinks.recorder.Stats().Sinks },
		Resolver: func() []telemetry.ServerErrors { return serverErrors(p.resolver.Stats()) },
		Policy: func() (telemetry.Policy, bool) {
			s := p.gateway.State()
			if s == nil || s.Policy == nil {
				return telemetry.Policy{}, false
			}
			return telemetry.Policy{
				Version: s.Policy.Version(), Quarantine: s.Policy.QuarantineVersion(), Generation: s.Generation, Since: s.Since,
			}, true
		},
	}
	if p.gateway.AnswersQueries() {
		observed.Unanswered = func() telemetry.Unanswered {
			s := p.gateway.Stats().DNS
			return telemetry.Unanswered{NoQuery: s.Ignored, OverLimit: s.Shed}
		}
	}
	if p.files.limit > 0 {
		observed.Descriptors = func() []telemetry.Descriptors {
			in, out := p.descriptors.Accepted.Stats(), p.descriptors.Opened.Stats()
			return []telemetry.Descriptors{
				{Purpose: "accepted", Used: in.Used, Limit: in.Most, Missing: in.Missed},
				{Purpose: "opened", Used: out.Used, Limit: out.Most, Missing: out.Missed},
			}
		}
	}
	if own := p.inputs.identity; own != nil {
		observed.Expiry = func() time.Time { return own.Snapshot().NotAfter() }
	}
	if p.inputs.identity != nil || len(p.inputs.webs) > 0 {
		reloads := &p.inputs.reloads
		observed.IdentityReloads = func() (loaded, refused uint64) { return reloads.loaded.Load(), reloads.refused.Load() }
		observed.IdentityRefused = p.inputs.identityRefused
	}
	if err := p.telemetry.Observe(observed); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	return nil
}

// serverErrors returns the errors of each name server, by cause.
func serverErrors(stats []resolve.ServerStats) []telemetry.ServerErrors {
	var all []telemetry.ServerErrors
	for _, s := range stats {
		for cause, n := range s.Errors {
			all = append(all, telemetry.ServerErrors{Server: s.Server, Cause: cause.String(), Count: n})
		}
	}
	return all
}

// notes returns the problems of the log. They do not make the process unready.
func (p *Process) notes() []string {
	if p.opts.LogFailing == nil {
		return nil
	}
	since, err := p.opts.LogFailing()
	if err == nil {
		return nil
	}
	return []string{fmt.Sprintf("log: lines are lost since %s: %v", since.UTC().Format(time.RFC3339), err)}
}
