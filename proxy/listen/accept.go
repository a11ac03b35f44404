package listen

import (
	"context"
	"log/slog"
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// enter takes a slot and a descriptor for a connection that was just accepted, and
// reports whether there were both: end gives them back. If there were not, neither is
// held, and Cut was told.
func (l *Listener) enter(ctx context.Context, conn *Conn) bool {
	if !conn.takeSlot(ctx) {
		return false
	}
	if l.cfg.Descriptors.TakeSoon(ctx) {
		return true
	}
	conn.slot.Leave()
	if !conn.GaveWay() {
		l.cfg.Cut(limit.CauseDescriptors)
	}
	return false
}

// What follows when accepting fails, most often for want of descriptors.
const (
	acceptPause = 50 * time.Millisecond // before the next try: connections that end free some
	acceptLog   = time.Second           // between two lines of the log
)

// failing is accepting that fails. It belongs to the goroutine that accepts.
type failing struct {
	failures uint64    // since the last line
	said     time.Time // when that was
}

// pause waits a moment after accepting has failed. It logs a line a second at
// most, with the number of failures since the last one. The end of ctx is its
// error.
func (l *Listener) pause(ctx context.Context, f *failing, err error) error {
	l.cfg.Descriptors.Missing(err)
	f.failures++
	if now := time.Now(); now.Sub(f.said) >= acceptLog {
		l.cfg.Log.LogAttrs(ctx, slog.LevelError, "accepting a connection", slog.String("listener", l.cfg.Name),
			slog.Any("error", err), slog.Uint64("failures", f.failures))
		f.failures, f.said = 0, now
	}
	select {
	case <-time.After(acceptPause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
