package load

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

// Ping sends messages of size bytes to an echo on every connection for the duration, and
// returns the times of the round trips, sorted. Each connection begins a round trip every
// interval, and the connections' starts are spread evenly over the interval. If the
// interval is zero, each begins the next one when the last has ended.
func Ping(ctx context.Context, conns []net.Conn, size int, interval, duration time.Duration) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	err := Each(ctx, len(conns), len(conns), func(ctx context.Context, i int) error {
		if err := wait(ctx, interval*time.Duration(i)/time.Duration(len(conns))); err != nil {
			return err
		}
		took, err := ping(ctx, conns[i], size, interval, duration)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, took...)
		return err
	})
	slices.Sort(all)
	return all, err
}

func ping(ctx context.Context, conn net.Conn, size int, interval, duration time.Duration) ([]time.Duration, error) {
	var took []time.Duration
	message := make([]byte, size)
	begin := time.Now()
	for next := begin; next.Sub(begin) < duration; {
		start := time.Now()
		if err := Echo(conn, message); err != nil {
			return nil, err
		}
		now := time.Now()
		took = append(took, now.Sub(start))
		// The time of a late round trip is not made up for: the rate may only be lower.
		next = now
		if interval > 0 {
			next = start.Add(max(interval, now.Sub(start)))
		}
		if err := wait(ctx, next.Sub(now)); err != nil {
			return nil, err
		}
	}
	return took, nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Quantile returns the value below which a part (0 to 1) of the sorted values lies, or
// zero if there are none.
func Quantile(sorted []time.Duration, part float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}
