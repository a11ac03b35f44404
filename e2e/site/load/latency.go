package load

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

// Ping sends round trips of size bytes to an echo on every connection for a
// time, and returns how long each took, sorted. Each connection begins one
// every interval, evenly spread over them, or, with an interval of zero, as
// soon as the last has ended.
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
		// One that came late is not made up for: the rate may only be lower.
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

// Quantile returns the value below which that part (0 to 1) of sorted values
// lies; zero if there are none.
func Quantile(sorted []time.Duration, part float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}
