package process

import (
	"context"
	"log/slog"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/exeat-dev/exeat/proxy/h2"
)

// LimitMemory sets Go's memory limit below that of the control group, whose excess
// would end the process. GOMEMLIMIT takes precedence if it is set.
func LimitMemory(ctx context.Context, log *slog.Logger) {
	if _, err := memlimit.Set(); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "the memory limit of the control group is not known", slog.Any("error", err))
	}
}

// The share of the memory limit that bytes waiting in streams of HTTP/2 may take.
const (
	waitingShare = 8        // the memory limit divided by this
	leastWaiting = 16 << 20 // bytes that may wait however low the memory limit is
)

// newStreamMemory returns the bound on the bytes that wait in all streams of HTTP/2
// together, because their origins or their clients do not read: a share of Go's memory
// limit, or h2.DefaultMemory if there is none.
func newStreamMemory() *h2.Memory {
	limit := debug.SetMemoryLimit(-1) // a negative value only queries the limit
	if limit == math.MaxInt64 {
		return h2.NewMemory(h2.DefaultMemory)
	}
	return h2.NewMemory(max(leastWaiting, limit/waitingShare))
}

// When memory is given back by a quiet process.
const (
	quietEvery    = 500 * time.Millisecond // between two readings of the usage
	quietReadings = 2                      // number of quiet readings in a row
	quietAllowed  = 128 << 10              // bytes that a quiet process allocates at most between two readings
	quietLeast    = 4 << 20                // least number of allocated bytes that is worth a collection
	quietFraction = 8                      // fewer bytes than the live heap divided by this are not worth one
)

// quietness finds out when the process has become quiet after it has allocated much. Idle
// tunnels, the usual state of most tunnels, allocate nothing, so that the garbage of their
// handshakes would otherwise stay for two minutes. What a collection in the middle of the
// work has left does not matter: it has counted as live what the work still used, and has
// freed memory that the process keeps.
type quietness struct {
	allocated uint64 // usage.allocated at the last reading
	given     uint64 // usage.allocated when memory was last given back
	quiet     int    // number of quiet readings in a row
}

// usage is the usage of the heap in bytes: allocated since the start, and live after the last
// collection.
type usage struct{ allocated, live uint64 }

// due is called with the usage every quietEvery and reports whether to collect garbage and
// give memory back.
func (q *quietness) due(u usage) bool {
	q.quiet++
	if u.allocated-q.allocated > quietAllowed {
		q.quiet = 0
	}
	q.allocated = u.allocated
	if q.quiet < quietReadings || u.allocated-q.given <= max(quietLeast, u.live/quietFraction) {
		return false
	}
	q.given = u.allocated
	return true
}

// collectWhenQuiet calls collect whenever a collection is due, until ctx is done.
func collectWhenQuiet(ctx context.Context, collect func()) {
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	ticker := time.NewTicker(quietEvery)
	defer ticker.Stop()
	for q := (quietness{}); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		metrics.Read(samples)
		if q.due(usage{samples[0].Value.Uint64(), samples[1].Value.Uint64()}) {
			collect()
		}
	}
}
