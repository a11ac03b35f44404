package process

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// identityReloads counts the identities, bundles and web certificates that were loaded
// and those that were refused.
type identityReloads struct {
	loaded, refused atomic.Uint64
	unused          atomic.Int64 // number of followed identities and web certificates whose last reading was refused
}

// followed reads the files of an identity or a web certificate again when they change. It
// is used by the goroutine of its watcher only.
type followed struct {
	files interface {
		Fingerprint() string
		Reload() (changed bool, err error)
	}
	count   *identityReloads
	what    string // what the files hold, for log messages
	log     *slog.Logger
	failure string // the last error of a reload, which is logged once
	unused  bool   // the last reading was refused, which count.unused includes
	seen    string // fingerprint of the last reading that may have been incomplete
}

// reload reads the files again; see watch.Config.Changed. A reading that may be
// incomplete must be confirmed by the next one, because a bundle that is half written
// looks like one from which authorities were removed.
func (f *followed) reload(ctx context.Context, complete bool) (done bool) {
	if !complete {
		before := f.seen
		if f.seen = f.files.Fingerprint(); f.seen != before {
			return false
		}
	}
	changed, err := f.files.Reload()
	if changed {
		f.count.loaded.Add(1)
	}
	if !limit.NoDescriptor(err) {
		f.setUnused(err != nil)
	}
	switch {
	case err == nil:
		f.failure = ""
	case err.Error() != f.failure:
		f.failure = err.Error()
		if !limit.NoDescriptor(err) {
			f.count.refused.Add(1)
		}
		f.log.LogAttrs(ctx, slog.LevelError, "new files have an error: what cannot be used stays as it was",
			slog.String("of", f.what), slog.Any("error", err))
	}
	return !limit.NoDescriptor(err) // without a descriptor nothing was read: try again soon
}

// setUnused notes whether the last reading was refused.
func (f *followed) setUnused(unused bool) {
	switch {
	case unused && !f.unused:
		f.count.unused.Add(1)
	case !unused && f.unused:
		f.count.unused.Add(-1)
	}
	f.unused = unused
}
