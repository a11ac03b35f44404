package listen

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Cut is why a connection is closed as soon as it is accepted.
type Cut uint8

// The causes: as many connections are open as may be; the process has no file
// descriptor to serve one with.
const (
	NoSlot Cut = iota
	NoDescriptor
)

// String returns the word for metrics and records.
func (c Cut) String() string {
	switch c {
	case NoSlot:
		return "no-slot"
	case NoDescriptor:
		return "no-descriptor"
	}
	return "unknown"
}

// enter takes what a connection needs that was just accepted, which end gives
// back, and reports whether there is any. Otherwise it closes the connection.
func (l *Listener) enter(ctx context.Context, conn net.Conn) (busy, ok bool) {
	why := NoSlot
	if ok, busy = l.cfg.Slots.take(); ok {
		if l.cfg.Descriptors.TakeSoon(ctx) {
			return busy, true
		}
		l.cfg.Slots.used.Add(-1)
		why = NoDescriptor
	}
	_ = conn.Close()
	l.cfg.Cut(ctx, clientAddr(conn), why)
	return false, false
}

// When accepting fails, which is for want of descriptors most of the time.
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

func nobodyCut(context.Context, netip.AddrPort, Cut) {}
