package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// policyFiles is the provider that reads the policy and the quarantine list from files.
type policyFiles struct {
	paths    []string
	loader   *policyfile.Loader
	first    live.Change // what the first load has read
	watching *watching
	log      *slog.Logger
	loaded   func(context.Context, live.Change, error) // set by Follow
	starved  bool                                      // the last reading found no free file descriptor
}

// openPolicyFiles loads the policy for the first time. Every error is an error of the
// start, except that a directory is empty: then everything is denied with
// policy-unavailable. own is the gateway's trust domain, zero if it has none. A policy
// for everyone applies to it unless the policy names other trust domains.
func openPolicyFiles(ctx context.Context, paths []string, poll time.Duration, own spiffeid.TrustDomain, log *slog.Logger) (*policyFiles, error) {
	f := &policyFiles{paths: paths, log: log, loader: policyfile.NewLoader(policyfile.Options{TrustDomain: own}, paths...)}
	loaded, err := f.loadConfirmed(ctx)
	switch {
	case errors.Is(err, policyfile.ErrEmpty):
		log.LogAttrs(ctx, slog.LevelWarn, "the policy directory is empty: every request is denied as policy-unavailable until it holds a file whose name ends in .yaml",
			slog.String("directory", strings.Join(paths, ", ")))
		f.first = live.Change{Quarantine: loaded.Quarantine}
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w; check the path, and whether what writes it has run", err)
	case err != nil:
		return nil, err
	default:
		f.first = live.Change{Policy: loaded.Policy, Quarantine: loaded.Quarantine}
	}
	f.watching = newWatching(log, watch.Config{Paths: paths, Inside: isPolicyFile, Poll: poll, Changed: f.reload})
	return f, nil
}

// loadConfirmed reads the files until two readings are equal, because they may be being
// written. Like the watcher, it waits for a process that has a file open for writing.
func (f *policyFiles) loadConfirmed(ctx context.Context) (loaded policyfile.Loaded, err error) {
	patience := time.Now().Add(watch.MaxWriting)
	for warned := false; ; {
		file := watch.Writing(f.paths, isPolicyFile)
		if file == "" || time.Now().After(patience) {
			if loaded, err = f.loader.Load(false); loaded.Confirmed {
				return loaded, err
			}
		} else if !warned {
			warned = true
			f.log.LogAttrs(ctx, slog.LevelWarn, "a policy file is open for writing: its writer is waited for",
				slog.String("file", file), slog.Duration("at_most", watch.MaxWriting))
		}
		if err := pause(ctx, watch.DefaultQuiet); err != nil {
			return policyfile.Loaded{}, err
		}
	}
}

// Loaded implements gateway.PolicyProvider.
func (f *policyFiles) Loaded() live.Change { return f.first }

// Follow implements gateway.PolicyProvider.
func (f *policyFiles) Follow(ctx context.Context, reread <-chan struct{}, loaded func(context.Context, live.Change, error)) {
	f.loaded = loaded
	f.watching.run(ctx, reread)
}

// reload reads the files again; see watch.Config.Changed.
func (f *policyFiles) reload(ctx context.Context, complete bool) (done bool) {
	loaded, err := f.loader.Load(complete)
	if !loaded.Confirmed {
		return false
	}
	stillStarved := f.starved && !loaded.Changed // no descriptor was free this time either, which is reported already
	f.starved = stillStarved || limit.NoDescriptor(err)
	if stillStarved {
		return false
	}
	change := live.Change{Policy: loaded.Policy, SameRules: !loaded.PolicyChanged}
	if loaded.QuarantineChanged {
		change.Quarantine = loaded.Quarantine
	}
	f.loaded(ctx, change, err)
	return !f.starved // without a descriptor nothing was read: try again soon
}

// isPolicyFile reports whether a file in a policy directory is read by its name, or
// refused because the name is similar; see policyfile.Read.
func isPolicyFile(name string) bool {
	ext := strings.ToLower(filepath.Ext(name))
	return (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(name, ".")
}

// pause waits for a time. It returns early with the cause if ctx is done.
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
