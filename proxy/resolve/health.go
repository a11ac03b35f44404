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

// How long a server that did not answer is asked after the others: for the first time,
// and at most.
const (
	firstRest = time.Second
	longRest  = time.Minute
)

// The log says that a server fails if it does not answer, or after this number of error
// responses in a row, because a single one may be about the name. It does not say so
// again within tellAfter.
const (
	errorsInARow = 5
	tellAfter    = time.Minute
)

// health records how well a server works. It is safe for concurrent use.
type health struct {
	name   string // name of the server, for the log
	log    *slog.Logger
	counts [causeCount]atomic.Uint64

	mu      sync.Mutex
	rest    time.Duration // rest of the last failure; the next one is twice as long
	until   time.Time     // end of the rest; the server is then asked in its turn again
	inARow  int           // number of errors in a row
	failing bool          // says that the last log line reported a failure
	told    time.Time     // when the log last reported a failure
}

// well reports whether the server is asked in its turn.
func (h *health) well(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !now.Before(h.until)
}

// note counts and logs the result of asking the server.
func (h *health) note(ctx context.Context, err error, cause Cause, text string) {
	if isShortage(err) { // not a fault of the server
		return
	}
	if err != nil {
		h.counts[cause].Add(1)
	}
	switch fails, recovered := h.judge(err, time.Now()); {
	case fails:
		h.log.LogAttrs(ctx, slog.LevelWarn, "a name server fails",
			slog.String("server", h.name), slog.String("cause", cause.String()), slog.String("error", text))
	case recovered:
		h.log.LogAttrs(ctx, slog.LevelInfo, "a name server answers again", slog.String("server", h.name))
	}
}

// judge lets a server rest that does not answer, each time for twice as long. A server
// that answers is well, whatever the answer is, because that depends on the name. judge
// reports whether to log that the server fails, or that it answers again.
func (h *health) judge(err error, now time.Time) (fails, recovered bool) {
	if isShortage(err) {
		return false, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	answered := err == nil || wire.Answered(err) || errors.Is(err, errLame)
	switch {
	case answered:
		h.rest, h.until = 0, time.Time{}
	case !now.Before(h.until): // other questions that were sent to it at the same time have been counted otherwise
		h.rest = min(max(2*h.rest, firstRest), longRest)
		h.until = now.Add(h.rest)
	}
	if err == nil {
		recovered = h.failing
		h.inARow, h.failing = 0, false
		return false, recovered
	}
	h.inARow++
	if h.failing || answered && h.inARow < errorsInARow || !h.told.IsZero() && now.Sub(h.told) < tellAfter {
		return false, false
	}
	h.failing, h.told = true, now
	return true, false
}

// ServerStats counts the failures of a server.
type ServerStats struct {
	Server string
	Errors map[Cause]uint64 // contains every cause
}

// Stats returns the counts of every server in the configuration, each once, in their
// order.
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
