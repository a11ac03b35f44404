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

// How long a server that did not answer is asked after the others.
const (
	minBackoff = time.Second // after the first failure
	maxBackoff = time.Minute // at most
)

// The log says that a server fails if it does not answer, or after this number of error
// responses in a row, because a single one may be about the name. It does not say so
// again within logInterval.
const (
	errorsBeforeLog = 5
	logInterval     = time.Minute
)

// health records how well a server works. It is safe for concurrent use.
type health struct {
	name   string // name of the server, for the log
	log    *slog.Logger
	counts [causeCount]atomic.Uint64

	mu           sync.Mutex
	backoff      time.Duration // back-off after the last failure; the next one is twice as long
	backoffUntil time.Time     // end of the back-off; the server is then asked in its turn again
	errorStreak  int           // number of errors in a row
	failing      bool          // says that the last log line reported a failure
	lastLogged   time.Time     // when the log last reported a failure
}

// isHealthy reports whether the server is asked in its turn.
func (h *health) isHealthy(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !now.Before(h.backoffUntil)
}

// note counts and logs the result of asking the server.
func (h *health) note(ctx context.Context, err error, cause Cause, text string) {
	if isShortage(err) { // not a fault of the server
		return
	}
	if err != nil {
		h.counts[cause].Add(1)
	}
	switch fails, recovered := h.update(err, time.Now()); {
	case fails:
		h.log.LogAttrs(ctx, slog.LevelWarn, "a name server fails",
			slog.String("server", h.name), slog.String("cause", cause.String()), slog.String("error", text))
	case recovered:
		h.log.LogAttrs(ctx, slog.LevelInfo, "a name server answers again", slog.String("server", h.name))
	}
}

// update notes the result of a question. A server that does not answer is asked after the
// others during a back-off, which doubles with each failure. A server that answers is
// healthy, whatever the answer is, because that depends on the name. update reports
// whether to log that the server fails, or that it answers again.
func (h *health) update(err error, now time.Time) (fails, recovered bool) {
	if isShortage(err) {
		return false, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	answered := err == nil || wire.Answered(err) || errors.Is(err, errLame)
	switch {
	case answered:
		h.backoff, h.backoffUntil = 0, time.Time{}
	case !now.Before(h.backoffUntil): // during a back-off, failures of questions that were already under way do not prolong it
		h.backoff = min(max(2*h.backoff, minBackoff), maxBackoff)
		h.backoffUntil = now.Add(h.backoff)
	}
	if err == nil {
		recovered = h.failing
		h.errorStreak, h.failing = 0, false
		return false, recovered
	}
	h.errorStreak++
	if h.failing || answered && h.errorStreak < errorsBeforeLog || !h.lastLogged.IsZero() && now.Sub(h.lastLogged) < logInterval {
		return false, false
	}
	h.failing, h.lastLogged = true, now
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
