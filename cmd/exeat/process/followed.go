package process

import (
	"context"
	"log/slog"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// followed is files of an identity, read again when they change. It belongs to
// the goroutine of its watcher.
type followed struct {
	files interface {
		Look() string
		Reload() (changed bool, err error)
	}
	what    string // what the files hold, for messages
	log     *slog.Logger
	failure string // the last error of a reload; reported once
	seen    string // in the files, by the last reading that was not settled
}

// reload reads the files again; see watch.Config.Changed. A bundle that is half
// written would be one from which authorities have gone.
func (f *followed) reload(ctx context.Context, settled bool) (done bool) {
	if !settled {
		before := f.seen
		if f.seen = f.files.Look(); f.seen != before {
			return false
		}
	}
	_, err := f.files.Reload()
	switch {
	case err == nil:
		f.failure = ""
	case err.Error() != f.failure:
		f.failure = err.Error()
		f.log.LogAttrs(ctx, slog.LevelError, "new files are not used as they are, what cannot be used stays as it was",
			slog.String("of", f.what), slog.Any("error", err))
	}
	return !limit.NoDescriptor(err) // what is there cannot be known: it is read again in a moment
}
