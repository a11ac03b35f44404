package listen

import (
	"context"
	"log/slog"
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// enter takes a slot and a descriptor for a connection that was just accepted, and
// reports whether both were free; end gives them back. If one was missing, neither is
// kept, and Config.Shed has been called.
func (l *Listener) enter(ctx context.Context, conn *Conn) bool {
	if !conn.takeSlot(ctx) {
		return false
	}
	if l.cfg.Descriptors.TakeSoon(ctx) {
		return true
	}
	conn.slot.Leave()
	if !conn.LostSlot() {
		l.cfg.Shed(limit.CauseDescriptors)
	}
	return false
}

// Pauses while accepting fails, most often for want of descriptors.
const (
	acceptPause = 50 * time.Millisecond // before the next try; connections that end meanwhile give descriptors back
	acceptLog   = time.Second           // shortest time between two log lines
)

// failing counts failures to accept. Only the goroutine that accepts uses it.
type failing struct {
	failures   uint64    // failures since the last log line
	lastLogged time.Time // when the last line was logged
}

// pause waits a moment after accepting has failed. It logs at most one line per second,
// with the number of failures since the line before. If ctx ends, it returns the cause.
func (l *Listener) pause(ctx context.Context, f *failing, err error) error {
	l.cfg.Descriptors.Missing(err)
	f.failures++
	if now := time.Now(); now.Sub(f.lastLogged) >= acceptLog {
		l.cfg.Log.LogAttrs(ctx, slog.LevelError, "accepting a connection", slog.String("listener", l.cfg.Name),
			slog.Any("error", err), slog.Uint64("failures", f.failures))
		f.failures, f.lastLogged = 0, now
	}
	select {
	case <-time.After(acceptPause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
