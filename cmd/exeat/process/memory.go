package process

import (
	"context"
	"log/slog"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// LimitMemory sets Go's memory limit below that of the control group, whose excess
// would end the process. GOMEMLIMIT takes precedence if it is set.
func LimitMemory(ctx context.Context, log *slog.Logger) {
	if _, err := memlimit.Set(); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "the memory limit of the control group is not known", slog.Any("error", err))
	}
}

// When garbage is collected in a quiet process.
const (
	restEvery    = 500 * time.Millisecond // between two readings of the usage
	restReadings = 2                      // number of quiet readings in a row
	restAllowed  = 128 << 10              // bytes that a quiet process may allocate between two readings
	restLeast    = 4 << 20                // bytes of garbage that are worth a collection
	restFraction = 8                      // garbage below this part of the live heap is not worth one
)

// A rest finds out when the process has become quiet and holds garbage. Idle tunnels,
// the usual state of most tunnels, allocate nothing, so that without it the garbage of
// their handshakes would stay for two minutes.
type rest struct {
	allocated uint64
	quiet     int // number of quiet readings in a row
}

// usage is the usage of the heap, in bytes.
type usage struct{ allocated, objects, live uint64 }

// due is called with the usage every restEvery and reports whether to collect garbage.
func (r *rest) due(u usage) bool {
	r.quiet++
	if u.allocated-r.allocated > restAllowed {
		r.quiet = 0
	}
	r.allocated = u.allocated
	return r.quiet >= restReadings && u.objects > u.live+max(restLeast, u.live/restFraction)
}

// giveBack calls collect whenever a collection is due, until ctx is done.
func giveBack(ctx context.Context, collect func()) {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
	}
	look := time.NewTicker(restEvery)
	defer look.Stop()
	for r := (rest{}); ; {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		metrics.Read(samples)
		if r.due(usage{samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64()}) {
			collect()
		}
	}
}
