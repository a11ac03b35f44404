package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// How much more a gateway may use than before the load. The slack is for what the runtime
// keeps, such as threads, and for the tables of the limits.
const (
	moreGoroutines  = 10
	moreDescriptors = 5
	moreHeap        = 16 << 20
	enoughLoad      = 0.8 // least share of both cores that the load must use
)

// mixed loads a gateway with everything at once, and checks that nothing is left.
func mixed(ctx context.Context, w *world, o options, out io.Writer) (faults []string, err error) {
	g, err := w.serve(ctx, generous+hasty)
	if err != nil {
		return nil, err
	}
	defer g.Stop()
	quiet := w.caller(g, "quiet", "127.0.0.1")
	warm, cancel := context.WithTimeout(ctx, o.load/10)
	_, err = mix(warm, w, g)
	cancel()
	if err != nil {
		return nil, err
	}
	before, err := g.leastUsage(ctx, quiet)
	if err != nil {
		return nil, err
	}

	busy, err := newBusy(g)
	if err != nil {
		return nil, err
	}
	loading, cancel := context.WithTimeout(ctx, o.load)
	watching := g.watch(loading)
	var machine, exeat float64
	var shareErr error
	shared := make(chan struct{})
	context.AfterFunc(loading, func() { // by then the last workers only wait for timeouts
		machine, exeat, shareErr = busy.share()
		close(shared)
	})
	done, err := mix(loading, w, g)
	cancel()
	most := <-watching
	<-shared
	if err := errors.Join(err, shareErr); err != nil {
		return nil, err
	}
	after, err := g.returns(ctx, before, quiet)
	if err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(out, "mixed load for %s: %d good exchanges, %d attacks; both cores %.0f %% busy, %.0f %% of that time by exeat\n",
		o.load, done.good.Load(), done.hostile.Load(), 100*machine, 100*exeat)
	for _, row := range []struct {
		name string
		u    usage
	}{{"before", before}, {"at most", most}, {"after", after}} {
		_, _ = fmt.Fprintf(out, "  %-11s %5d goroutines  %5d descriptors  %4d tunnels  %6.1f MiB heap\n",
			row.name, row.u.goroutines, row.u.descriptors, row.u.tunnels, float64(row.u.heap)/(1<<20))
	}
	faults = stays(before, after)
	if machine < enoughLoad {
		faults = append(faults, fmt.Sprintf("both cores were only %.0f %% busy, want %.0f %%", 100*machine, 100*enoughLoad))
	}
	return faults, nil
}

// stays describes what a gateway uses more than before.
func stays(before, after usage) (faults []string) {
	if after.goroutines > before.goroutines+moreGoroutines {
		faults = append(faults, fmt.Sprintf("%d goroutines, %d before", after.goroutines, before.goroutines))
	}
	if after.descriptors > before.descriptors+moreDescriptors {
		faults = append(faults, fmt.Sprintf("%d descriptors, %d before", after.descriptors, before.descriptors))
	}
	if after.heap > before.heap+moreHeap {
		faults = append(faults, fmt.Sprintf("%d MiB of heap, %d before", after.heap>>20, before.heap>>20))
	}
	if after.tunnels > 0 {
		faults = append(faults, fmt.Sprintf("%d tunnels are still open", after.tunnels))
	}
	return faults
}

// done counts good exchanges and attacks.
type done struct{ good, hostile atomic.Int64 }

// Workers of the load. A few of the hostile ones wait for timeouts.
const (
	goodWorkers    = 12
	hostileWorkers = 16
)

// mix runs good and hostile callers until ctx ends, and returns the first error.
func mix(ctx context.Context, w *world, g *gateway) (*done, error) {
	working, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	d := &done{}
	var workers sync.WaitGroup
	work := func(count *atomic.Int64, do func(context.Context, int) error) {
		workers.Go(func() {
			for i := 0; ctx.Err() == nil && working.Err() == nil; i++ {
				if err := do(working, i); err != nil {
					stop(err)
					return
				}
				count.Add(1)
			}
		})
	}
	for n := range goodWorkers {
		c := w.caller(g, "good", "127.0.0.2")
		work(&d.good, func(ctx context.Context, i int) error { return c.roundTrip(ctx, 1<<(4+(n+i)%14)) })
	}
	for n := range hostileWorkers {
		c := w.caller(g, "hostile", "127.0.0.3")
		attacks := c.attacks()
		work(&d.hostile, func(ctx context.Context, i int) error { return attacks[(n+i)%len(attacks)](ctx) })
	}
	workers.Wait()
	return d, context.Cause(working)
}

// busy measures the use of the processors from when it was made.
type busy struct {
	gateway     *gateway
	start       time.Time
	cpu         time.Duration // processor time of the gateway
	used, total int64         // ticks of the machine
}

func newBusy(g *gateway) (*busy, error) {
	b := &busy{gateway: g, start: time.Now()}
	var err error
	if b.cpu, err = g.CPU(); err != nil {
		return nil, err
	}
	b.used, b.total, err = ticks()
	return b, err
}

// share returns the share of the machine's processor time that was used, and the share
// that the gateway used.
func (b *busy) share() (machine, exeat float64, err error) {
	used, total, err := ticks()
	if err != nil {
		return 0, 0, err
	}
	cpu, err := b.gateway.CPU()
	if err != nil {
		return 0, 0, err
	}
	machine = float64(used-b.used) / float64(max(total-b.total, 1))
	exeat = (cpu - b.cpu).Seconds() / time.Since(b.start).Seconds() / cores
	return machine, exeat, nil
}

// cores is the number of processors for which the figures are.
const cores = 2

// ticks reads the used and all ticks from /proc/stat, whose fields are user, nice,
// system, idle, iowait, and so on.
func ticks() (used, total int64, err error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	for i, field := range strings.Fields(line)[1:] {
		var n int64
		if _, err := fmt.Sscan(field, &n); err != nil {
			return 0, 0, err
		}
		total += n
		if i != 3 && i != 4 {
			used += n
		}
	}
	return used, total, nil
}
