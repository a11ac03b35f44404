package process

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/workload"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// identityFiles is the provider that reads the gateway's identity and the trusted
// authorities from files.
type identityFiles struct {
	identity.Provider

	followed *followed
	watching *watching
	changed  func(context.Context) // set by Follow
}

// openIdentityFiles reads the files.
func openIdentityFiles(cfg identity.FileConfig, count *identityReloads, log *slog.Logger) (*identityFiles, error) {
	files, err := identity.LoadFiles(cfg)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	count.loaded.Add(1)
	f := &identityFiles{Provider: files, followed: &followed{files: files, count: count, what: "identity", log: log}}
	f.watching = newWatching(log, watch.Config{Paths: identityPaths(cfg), Inside: isIdentityFile, Changed: f.reload})
	return f, nil
}

// Follow implements gateway.IdentityProvider.
func (f *identityFiles) Follow(ctx context.Context, reread <-chan struct{}, changed func(context.Context)) {
	f.changed = changed
	f.watching.run(ctx, reread)
}

// reload reads the files again; see watch.Config.Changed.
func (f *identityFiles) reload(ctx context.Context, complete bool) (done bool) {
	if !f.followed.reload(ctx, complete) {
		return false
	}
	f.changed(ctx)
	return true
}

// identityPaths returns every path of a configuration, which has either a directory or
// three files.
func identityPaths(c identity.FileConfig) []string {
	paths := slices.Sorted(maps.Values(c.Bundles))
	for _, path := range []string{c.Dir, c.Certificate, c.Key, c.Bundle} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// isIdentityFile reports whether an identity directory may have a file with a name; see
// identity.FileConfig.
func isIdentityFile(name string) bool {
	return slices.Contains([]string{".pem", ".crt", ".key"}, filepath.Ext(name))
}

// identityAgent is the provider that gets the gateway's identity and the trusted
// authorities from the Workload API.
type identityAgent struct {
	*workload.Provider

	count   *identityReloads
	log     *slog.Logger
	updated chan struct{} // receives after a new snapshot
}

// openAgent waits for the first identity from the Workload API.
func (s *inputs) openAgent(ctx context.Context, socket string) (*identityAgent, error) {
	a := &identityAgent{count: &s.reloads, log: s.log, updated: make(chan struct{}, 1)}
	s.waitFor("the first X509-SVID of the Workload API at " + socket + " is waited for")
	s.log.LogAttrs(ctx, slog.LevelInfo, "waiting for an identity", slog.String("workload_api", socket))
	var err error
	a.Provider, err = workload.New(ctx, workload.Config{
		Socket: socket, StartTimeout: s.identityTimeout, Report: a.report,
		Waiting: func(why error) {
			s.waitFor("the first X509-SVID of the Workload API at " + socket + " is waited for: " + why.Error())
			s.log.LogAttrs(ctx, slog.LevelWarn, "there is no identity yet", slog.String("workload_api", socket), slog.Any("cause", why))
		},
	})
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return a, nil
}

// Follow implements gateway.IdentityProvider. It has nothing to do when it receives from
// reread, because the Workload API sends every change by itself.
func (a *identityAgent) Follow(ctx context.Context, reread <-chan struct{}, changed func(context.Context)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-reread:
		case <-a.updated:
			changed(ctx)
		}
	}
}

// report handles an event of the Workload API provider, in that provider's goroutine.
func (a *identityAgent) report(e workload.Event) {
	ctx := context.Background()
	switch e.Kind {
	case workload.Updated:
		a.count.loaded.Add(1)
		select {
		case a.updated <- struct{}{}:
		default: // a change is announced already
		}
	case workload.Refused:
		a.count.refused.Add(1)
		a.log.LogAttrs(ctx, slog.LevelError, "the new identity is not used, the last one stays", slog.Any("error", e.Err))
	case workload.BundleRefused:
		a.count.refused.Add(1)
		a.log.LogAttrs(ctx, slog.LevelError, "the new bundle of another trust domain is not used, its last one stays if there is one", slog.Any("error", e.Err))
	case workload.AgentLost:
		a.log.LogAttrs(ctx, slog.LevelWarn, "the Workload API is gone, the last identity stays", slog.Any("error", e.Err))
	case workload.AgentBack:
		a.log.LogAttrs(ctx, slog.LevelInfo, "the Workload API is back")
	}
}
