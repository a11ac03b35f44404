package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// policyReloader keeps the last good policy and quarantine list and puts them
// in force together. It belongs to the goroutine of its watcher, but for sure.
type policyReloader struct {
	g          *gateway
	loader     *policyfile.Loader
	classifier atomic.Pointer[allowlist.Classifier] // of the host as it is now
	classified *allowlist.Classifier                // the one in force
	policy     *allowlist.Policy                    // the last good one; nil: none was ever loaded
	inForce    *allowlist.Policy
	held       bool // policy is not in force: it would close too much
	quarantine *allowlist.QuarantineList
	sure       atomic.Bool // the operator asked for what is held
}

func (g *gateway) newPolicyReloader() *policyReloader {
	var opts policyfile.Options
	if g.identity != nil {
		opts.TrustDomain = g.identity.source.Snapshot().TrustDomain()
	}
	return &policyReloader{g: g, loader: policyfile.NewLoader(opts, g.cfg.Policy...)}
}

// first loads the policy at start, where every error ends the process but that
// of an empty directory: then everything is denied as policy-unavailable.
func (r *policyReloader) first(ctx context.Context) error {
	loaded, err := r.settle(ctx)
	if errors.Is(err, policyfile.ErrEmpty) {
		r.g.log.WarnContext(ctx, "the policy directory is empty: every request is denied as policy-unavailable")
		return nil
	}
	r.policy, r.quarantine = loaded.Policy, loaded.Quarantine
	return err
}

// settle reads the files until they stay as they are: somebody may be writing
// them just now. A writer that keeps one open is waited for, as the watcher does.
func (r *policyReloader) settle(ctx context.Context) (loaded policyfile.Loaded, err error) {
	patience := time.Now().Add(watch.MaxWriting)
	for told := false; ; {
		file := watch.Writing(r.g.cfg.Policy, isPolicyFile)
		if file == "" || time.Now().After(patience) {
			if loaded, err = r.loader.Load(false); loaded.Settled {
				return loaded, err
			}
		} else if !told {
			told = true
			r.g.log.LogAttrs(ctx, slog.LevelWarn, "a policy file is open for writing: its writer is waited for",
				slog.String("file", file), slog.Duration("at_most", watch.MaxWriting))
		}
		if err := pause(ctx, watch.DefaultQuiet); err != nil {
			return policyfile.Loaded{}, err
		}
	}
}

// reload is told by the watcher that the files may have changed. What does not
// load changes nothing; policy and quarantine list hold each by itself.
func (r *policyReloader) reload(ctx context.Context, settled bool) (done bool) {
	loaded, err := r.loader.Load(settled)
	if !loaded.Settled {
		return false
	}
	sure := r.sure.Swap(false)
	if err != nil {
		r.g.log.LogAttrs(ctx, slog.LevelError, "the new policy is not used, the last good one stays", slog.Any("error", err))
		r.g.telemetry.Instruments().Reload("refused")
		r.g.recorder.Event(audit.Record{Event: audit.EventPolicyReload, Detail: "refused: " + err.Error()})
	}
	if loaded.Policy != nil {
		r.policy = loaded.Policy
	}
	if loaded.Quarantine != nil {
		r.quarantine = loaded.Quarantine
	}
	moved := r.classifier.Load() != r.classified
	if loaded.PolicyChanged || loaded.QuarantineChanged || moved || r.held && sure {
		r.put(ctx, loaded.PolicyChanged, sure, loaded.QuarantineChanged || moved)
	}
	return true
}

// enforce puts what was loaded at start in force.
func (r *policyReloader) enforce(ctx context.Context) {
	if r.policy != nil {
		r.put(ctx, true, true, false)
	}
}

// put puts the last good policy in force, unless it is held: another one may be,
// and stays so until it is meant, or yet another one comes. What may not wait for
// that, a quarantine or an address of the host, goes over the one that stays.
func (r *policyReloader) put(ctx context.Context, another, sure, urgent bool) {
	r.classified = r.classifier.Load()
	if r.policy == nil || r.quarantine == nil {
		return // a quarantine list alone allows nothing, and one that was never read nobody
	}
	if another || sure || !r.held {
		r.held = r.g.enforcer.Put(ctx, r.whole(r.policy), sure || !another).Held
		if !r.held {
			r.inForce = r.policy
			r.g.telemetry.Instruments().Reload("in-force")
			return
		}
		r.g.telemetry.Instruments().Reload("held")
	}
	if urgent {
		r.g.enforcer.Put(ctx, r.whole(r.inForce), true)
	}
}

func (r *policyReloader) whole(p *allowlist.Policy) *allowlist.Policy {
	return p.WithClassifier(r.classified).WithQuarantine(r.quarantine)
}

// pause waits, or returns why it did not.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// enforced records what a new state, or a date that passed, did.
func (g *gateway) enforced(ctx context.Context, e live.Enforcement) {
	rec := audit.Record{Event: audit.EventPolicyReload, Duration: e.Took}
	if e.State != nil {
		rec.Policy, rec.Generation = e.State.Policy.Version(), e.State.Generation
	}
	rec.Detail = fmt.Sprintf("closed %d of %d tunnels", e.Closed, e.Open)
	if e.Held {
		rec.Detail = fmt.Sprintf("held: would close %d of %d tunnels", e.Closed, e.Open)
	}
	g.recorder.Event(rec)
	if !e.Held {
		g.proxy.StateChanged()
		g.budgets.Apply(e.State.Policy)
		g.noteQuarantine(e.State)
		g.telemetry.Instruments().Enforced(e.Took)
	}
	attrs := []slog.Attr{
		slog.String("policy", rec.Policy), slog.Uint64("generation", rec.Generation),
		slog.Int("closed", e.Closed), slog.Int("tunnels", e.Open),
	}
	if e.Held {
		g.log.LogAttrs(ctx, slog.LevelWarn, "policy held: it would close more tunnels than policy.max_revoke allows; SIGHUP puts it in force", attrs...)
		return
	}
	g.log.LogAttrs(ctx, slog.LevelInfo, "in force", attrs...)
}

// mostNamed is how many patterns of each kind a record of the quarantine names.
const mostNamed = 10

// noteQuarantine records who is cut off by a new state and was not before, and
// who is let in again. It is called of one state after the other.
func (g *gateway) noteQuarantine(s *live.State) {
	before, now := g.quarantined, s.Policy.Quarantined()
	if g.quarantined = now; slices.Equal(before, now) {
		return
	}
	var detail strings.Builder
	fmt.Fprintf(&detail, "%d in force", len(now))
	for _, change := range []struct {
		word        string
		from, other []string
	}{{"added", now, before}, {"released", before, now}} {
		var names []string
		for _, name := range change.from {
			if _, stays := slices.BinarySearch(change.other, name); !stays {
				names = append(names, name)
			}
		}
		if more := len(names) - mostNamed; more > 0 {
			names = append(names[:mostNamed], fmt.Sprintf("%d more", more))
		}
		if len(names) > 0 {
			fmt.Fprintf(&detail, "; %s: %s", change.word, strings.Join(names, ", "))
		}
	}
	g.recorder.Event(audit.Record{
		Event: audit.EventQuarantine, Policy: s.Policy.Version(), Generation: s.Generation, Detail: detail.String(),
	})
}
