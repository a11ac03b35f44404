package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/workload"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// living is the gateway's identity and whom it trusts, from files or from the
// Workload API, followed as they change.
type living struct {
	source   identity.Source
	verifier *identity.Verifier
	first    *identity.Snapshot
	files    *followed        // nil with the Workload API
	paths    []string         // of the files, or of their directory
	agent    *workload.Source // nil with files
	log      *slog.Logger
	changed  func(ctx context.Context, before, after *identity.Snapshot)

	following sync.Mutex
	last      *identity.Snapshot // that changed was told of; nil before start
}

// openIdentity returns nil when the configuration names none. changed is told
// of every later snapshot, never concurrently with itself.
func openIdentity(ctx context.Context, cfg config.Config, log *slog.Logger,
	changed func(ctx context.Context, before, after *identity.Snapshot),
) (*living, error) {
	l := &living{log: log, changed: changed}
	switch {
	case cfg.WorkloadAPI != "":
		log.LogAttrs(ctx, slog.LevelInfo, "waiting for an identity", slog.String("workload_api", cfg.WorkloadAPI))
		agent, err := workload.New(ctx, workload.Config{Socket: cfg.WorkloadAPI, Report: l.report})
		if err != nil {
			return nil, fmt.Errorf("identity: %w", err)
		}
		l.agent, l.source = agent, agent
	case cfg.Identity != nil:
		files, err := identity.LoadFiles(*cfg.Identity)
		if err != nil {
			return nil, fmt.Errorf("identity: %w", err)
		}
		l.files, l.source, l.paths = &followed{files: files, what: "identity", log: log}, files, identityPaths(*cfg.Identity)
	default:
		return nil, nil //nolint:nilnil // no identity is a configuration of its own
	}
	l.first = l.source.Snapshot()
	verifier, err := identity.NewVerifier(l.source)
	l.verifier = verifier
	return l, err
}

// trusts reports whether certificates of a live tunnel still lead to an
// authority that is trusted. Without an identity nobody is.
func (l *living) trusts(certs []*x509.Certificate) bool {
	return l != nil && l.verifier.Trusts(certs)
}

// identityPaths returns every path of a configuration, which holds either
// a directory or three files.
func identityPaths(c identity.FileConfig) []string {
	paths := slices.Sorted(maps.Values(c.Bundles))
	for _, path := range []string{c.Dir, c.Certificate, c.Key, c.Bundle} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// reload reads the files again; see watch.Config.Changed.
func (l *living) reload(ctx context.Context, settled bool) bool {
	if !l.files.reload(ctx, settled) {
		return false
	}
	l.follow(ctx)
	return true
}

// isIdentityFile reports whether a name is one that an identity directory may
// hold; see identity.FileConfig.
func isIdentityFile(name string) bool {
	return slices.Contains([]string{".pem", ".crt", ".key"}, filepath.Ext(name))
}

// report takes what the Workload API source has to say, from its goroutine.
func (l *living) report(e workload.Event) {
	ctx := context.Background()
	switch e.Kind {
	case workload.Updated:
		l.follow(ctx)
	case workload.Refused:
		l.log.LogAttrs(ctx, slog.LevelError, "the new identity is not used, the last one stays", slog.Any("error", e.Err))
	case workload.BundleRefused:
		l.log.LogAttrs(ctx, slog.LevelError, "the new bundle of another trust domain is not used, its last one stays if there is one", slog.Any("error", e.Err))
	case workload.AgentLost:
		l.log.LogAttrs(ctx, slog.LevelWarn, "the Workload API is gone, the last identity stays", slog.Any("error", e.Err))
	case workload.AgentBack:
		l.log.LogAttrs(ctx, slog.LevelInfo, "the Workload API is back")
	}
}

// start begins to tell of snapshots, also of one that came while the gateway
// was being built.
func (l *living) start(ctx context.Context) {
	l.following.Lock()
	l.last = l.first
	l.following.Unlock()
	l.follow(ctx)
}

// follow tells of a snapshot that is new.
func (l *living) follow(ctx context.Context) {
	l.following.Lock()
	defer l.following.Unlock()
	if l.last == nil {
		return
	}
	if after := l.source.Snapshot(); after != l.last {
		l.changed(ctx, l.last, after)
		l.last = after
	}
}

func (l *living) close() {
	if l.agent != nil {
		l.agent.Close()
	}
}

// identityChanged records the rotation and, if other authorities are trusted
// now, ends the tunnels that rest on one that has gone.
func (g *gateway) identityChanged(ctx context.Context, before, after *identity.Snapshot) {
	g.recorder.Event(audit.Record{
		Event: audit.EventIdentityRotate, Identity: after.ID(),
		Detail: "valid until " + after.NotAfter().UTC().Format(time.RFC3339),
	})
	if !after.SameTrust(before) {
		g.enforcer.Again(ctx)
	}
}

// watch begins to watch the files of policy and identity.
func (g *gateway) watch() error {
	failed := func(ctx context.Context, err error) {
		g.log.LogAttrs(ctx, slog.LevelError, "watching files", slog.Any("error", err))
	}
	policy, err := watch.New(watch.Config{
		Paths: g.cfg.Policy, Inside: isPolicyFile, Poll: g.cfg.PolicyPoll, Changed: g.policy.reload, Failed: failed,
	})
	if err != nil {
		return err
	}
	g.watchers, g.policyWatcher = append(g.watchers, policy), policy
	for _, web := range g.webs {
		w, err := watch.New(watch.Config{Paths: web.paths, Changed: web.reload, Failed: failed})
		if err != nil {
			return err
		}
		g.watchers = append(g.watchers, w)
	}
	if g.identity == nil || g.identity.files == nil {
		return nil
	}
	own, err := watch.New(watch.Config{
		Paths: g.identity.paths, Inside: isIdentityFile, Changed: g.identity.reload, Failed: failed,
	})
	if err != nil {
		return err
	}
	g.watchers = append(g.watchers, own)
	return nil
}

// isPolicyFile reports whether a name in a policy directory is read, or refused
// for looking as if it were; see policyfile.Read.
func isPolicyFile(name string) bool {
	ext := strings.ToLower(filepath.Ext(name))
	return (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(name, ".")
}

// reload reads everything again, as SIGHUP asks, and puts a policy in force
// that was held.
func (g *gateway) reload() {
	g.policy.sure.Store(true)
	for _, w := range g.watchers {
		w.Trigger()
	}
	for _, f := range g.recordFiles {
		f.Reopen()
	}
}
