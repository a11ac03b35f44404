package process

import (
	"context"
	"log/slog"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// LimitMemory makes the collector work harder before the memory of the control
// group ends, which would end the process. GOMEMLIMIT, where it is set, wins.
func LimitMemory(ctx context.Context, log *slog.Logger) {
	if _, err := memlimit.Set(); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "the memory limit of the control group is not known", slog.Any("error", err))
	}
}

// When memory is given back.
const (
	restEvery    = 500 * time.Millisecond // between two looks
	restLooks    = 2                      // in a row that found it quiet
	restAllowed  = 128 << 10              // bytes that a quiet process allocates between two looks
	restLeast    = 4 << 20                // bytes of garbage that are worth a collection
	restFraction = 8                      // of what is live, below which garbage is not worth one either
)

// A rest finds out when the process has become quiet and holds garbage. Idle
// tunnels, most of what a gateway has, allocate nothing, so that the collector
// would let the garbage of their handshakes lie for two minutes.
type rest struct {
	allocated uint64
	quiet     int // looks
}

// usage is of the heap, in bytes.
type usage struct{ allocated, objects, live uint64 }

// due is told the usage every restEvery and reports whether to collect.
func (r *rest) due(u usage) bool {
	r.quiet++
	if u.allocated-r.allocated > restAllowed {
		r.quiet = 0
	}
	r.allocated = u.allocated
	return r.quiet >= restLooks && u.objects > u.live+max(restLeast, u.live/restFraction)
}

// giveBack calls collect whenever that is due, until ctx is done.
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
