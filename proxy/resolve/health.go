package resolve

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// How long a server that did not answer is asked after the others, the first
// time and at most.
const (
	firstRest = time.Second
	longRest  = time.Minute
)

// A server fails, for the log, if it does not answer, or if so many of its answers one
// after another say that it has none: one alone may be about the name. Another line
// that it fails does not follow within tellAfter.
const (
	errorsInARow = 5
	tellAfter    = time.Minute
)

// health is what is known of how a server does. It is safe for concurrent use.
type health struct {
	name   string // for the log
	log    *slog.Logger
	counts [causeCount]atomic.Uint64

	mu      sync.Mutex
	rest    time.Duration // after the next failure
	until   time.Time     // when it is asked in its turn again
	inARow  int           // answers that said that there is none
	failing bool          // as the log has it
	told    time.Time     // when the log was told so last
}

// well reports whether the server is asked in its turn.
func (h *health) well(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !now.Before(h.until)
}

// note takes what came of asking the server, counts it and tells the log.
func (h *health) note(ctx context.Context, err error, cause Cause, text string) {
	if unasked(err) { // that is no fault of the server's
		return
	}
	if err != nil {
		h.counts[cause].Add(1)
	}
	switch fails, again := h.judge(err, time.Now()); {
	case fails:
		h.log.LogAttrs(ctx, slog.LevelWarn, "a name server fails",
			slog.String("server", h.name), slog.String("cause", cause.String()), slog.String("error", text))
	case again:
		h.log.LogAttrs(ctx, slog.LevelInfo, "a name server answers again", slog.String("server", h.name))
	}
}

// judge lets a server rest that does not answer, each time for twice as long. One that
// answers is well, whatever it says: that depends on the name. It reports whether the
// log is to be told that the server fails, or that it answers again.
func (h *health) judge(err error, now time.Time) (fails, again bool) {
	if unasked(err) {
		return false, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	answered := err == nil || wire.Answered(err) || errors.Is(err, errLame)
	switch {
	case answered:
		h.rest, h.until = 0, time.Time{}
	case !now.Before(h.until): // else others that were with it at the same time said so
		h.rest = min(max(2*h.rest, firstRest), longRest)
		h.until = now.Add(h.rest)
	}
	if err == nil {
		again = h.failing
		h.inARow, h.failing = 0, false
		return false, again
	}
	h.inARow++
	if h.failing || answered && h.inARow < errorsInARow || !h.told.IsZero() && now.Sub(h.told) < tellAfter {
		return false, false
	}
	h.failing, h.told = true, now
	return true, false
}

// ServerStats counts what went wrong with a server.
type ServerStats struct {
	Server string
	Errors map[Cause]uint64 // every cause is there
}

// Stats returns the counts of every server that the configuration names, each once, in
// its order.
func (r *Resolver) Stats() []ServerStats {
	var all []ServerStats
	at := map[string]int{}
	for _, u := range r.upstreams {
		i, ok := at[u.server.String()]
		if !ok {
			i = len(all)
			at[u.server.String()] = i
			all = append(all, ServerStats{Server: u.server.String(), Errors: map[Cause]uint64{}})
		}
		for cause := range causeCount {
			all[i].Errors[cause] += u.health.counts[cause].Load()
		}
	}
	return all
}
