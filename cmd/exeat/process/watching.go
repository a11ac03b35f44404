package process

import (
	"context"
	"log/slog"
	"sync"

	"github.com/exeat-dev/exeat/proxy/watch"
)

// watching is a set of files that are read again when they change, after open was
// called.
type watching struct {
	cfg     watch.Config
	watcher *watch.Watcher // nil before open
}

// newWatching returns the set of a configuration. It opens nothing, because checking a
// configuration watches no file.
func newWatching(log *slog.Logger, cfg watch.Config) *watching {
	cfg.Failed = func(ctx context.Context, err error) {
		log.LogAttrs(ctx, slog.LevelError, "watching files", slog.Any("error", err))
	}
	return &watching{cfg: cfg}
}

// open begins to watch. Call run or close afterwards.
func (w *watching) open() error {
	var err error
	w.watcher, err = watch.New(w.cfg)
	return err
}

// run calls Changed of the configuration when the files have changed, and at once when
// it receives from reread, until ctx is done.
func (w *watching) run(ctx context.Context, reread <-chan struct{}) {
	var running sync.WaitGroup
	running.Go(func() { w.watcher.Run(ctx) })
	defer running.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-reread:
			w.watcher.Trigger()
		}
	}
}

// close ends what open began. After run it does nothing.
func (w *watching) close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
	}
}
