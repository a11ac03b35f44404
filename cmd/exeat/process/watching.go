package process

import (
	"context"
	"log/slog"
	"sync"

	"github.com/exeat-dev/exeat/proxy/watch"
)

// watching is files that are read again when they change, once open was called.
type watching struct {
	cfg     watch.Config
	watcher *watch.Watcher // nil before open
}

// newWatching returns what is to be watched. It opens nothing: whoever only checks
// a configuration watches no file.
func newWatching(log *slog.Logger, cfg watch.Config) *watching {
	cfg.Failed = func(ctx context.Context, err error) {
		log.LogAttrs(ctx, slog.LevelError, "watching files", slog.Any("error", err))
	}
	return &watching{cfg: cfg}
}

// open begins to watch; run reads, or else close ends it.
func (w *watching) open() error {
	var err error
	w.watcher, err = watch.New(w.cfg)
	return err
}

// run has the files read when they have changed, and at once when it receives from
// again, until ctx is done.
func (w *watching) run(ctx context.Context, again <-chan struct{}) {
	var running sync.WaitGroup
	running.Go(func() { w.watcher.Run(ctx) })
	defer running.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again:
			w.watcher.Trigger()
		}
	}
}

// close ends what open began; after run nothing happens.
func (w *watching) close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
	}
}
