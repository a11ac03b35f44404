package tunnels

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
	"github.com/exeat-dev/exeat/e2e/site/load"
)

// bulkEach is how many bytes go each way through every tunnel before its memory is
// measured again: enough for buffers to grow to their full size.
const bulkEach = 256 << 10

// memory is the memory of a peer for each tunnel in KiB, and that of the process.
type memory struct {
	idle, afterBulk float64
	whole           float64 // of the process with its idle tunnels, in MiB
}

// idleTunnels measures the memory of idle tunnels. Each measurement has a new process, so
// that no memory is left from another one.
func (b *bench) idleTunnels(ctx context.Context) error {
	idle := report.Row{Figure: "idle mTLS tunnel, resident", Unit: "KiB", Bar: report.Bar{Ratio: 0.55, Value: 30}}
	bulk := report.Row{Figure: "idle mTLS tunnel after bulk, resident", Unit: "KiB"}
	whole := report.Row{Figure: "the whole process with idle tunnels, resident", Unit: "MiB"}
	b.say(idle.Figure)
	for _, row := range []*report.Row{&idle, &bulk, &whole} {
		row.Others = make([][]float64, len(b.others))
	}
	for range b.pairs {
		floor, err := memoryOf(ctx, b.options, b.callers, b.world.startRelay)
		if err != nil {
			return err
		}
		ours, err := memoryOf(ctx, b.options, b.callers, b.world.startExeat)
		if err != nil {
			return err
		}
		idle.Floor, idle.Ours = append(idle.Floor, floor.idle), append(idle.Ours, ours.idle)
		bulk.Floor, bulk.Ours = append(bulk.Floor, floor.afterBulk), append(bulk.Ours, ours.afterBulk)
		whole.Floor, whole.Ours = append(whole.Floor, floor.whole), append(whole.Ours, ours.whole)
		for i, o := range b.others {
			theirs, err := memoryOf(ctx, b.options, b.callers, o.start)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", idle.Figure, o.name, err)
			}
			idle.Others[i] = append(idle.Others[i], theirs.idle)
			bulk.Others[i] = append(bulk.Others[i], theirs.afterBulk)
			whole.Others[i] = append(whole.Others[i], theirs.whole)
		}
	}
	b.rows = append(b.rows, idle, bulk, whole)
	return nil
}

// memoryOf opens tunnels with different certificates through a new peer, and measures its
// memory when they are idle, and again after each has carried bulkEach bytes.
func memoryOf(ctx context.Context, o options, callers []*caller, start func(context.Context) (*peer, error)) (memory, error) {
	p, err := start(ctx)
	if err != nil {
		return memory{}, err
	}
	defer p.process.Stop()
	// What every process sets up once is part of base.
	if _, err := exchanges(ctx, p, callers, min(100, o.idle)); err != nil {
		return memory{}, err
	}
	base, err := p.stable(ctx, o.still)
	if err != nil {
		return memory{}, err
	}
	conns := make([]net.Conn, o.idle)
	defer func() { closeAll(conns) }()
	err = load.Each(ctx, o.idle, workers, func(ctx context.Context, i int) error {
		conn, err := p.client(callers[i]).Open(ctx, p.secure.echo)
		if err != nil {
			return err
		}
		conns[i] = conn
		return load.Echo(conn, make([]byte, exchangeSize))
	})
	if err != nil {
		return memory{}, err
	}
	p.spans.decided(o.idle)
	defer p.spans.closed(o.idle)
	idle, err := p.stable(ctx, o.still)
	if err != nil {
		return memory{}, err
	}
	if err := load.Each(ctx, o.idle, workers, func(_ context.Context, i int) error { return trickle(conns[i]) }); err != nil {
		return memory{}, err
	}
	bulk, err := p.stable(ctx, o.still)
	each := func(n int64) float64 { return float64(n-base) / 1024 / float64(o.idle) }
	return memory{idle: each(idle), afterBulk: each(bulk), whole: float64(idle) / (1 << 20)}, err
}

// trickle sends bulkEach bytes through a tunnel and back, in parts that fit into every
// buffer on the way.
func trickle(conn net.Conn) error {
	const part = 32 << 10
	for range bulkEach / part {
		if err := load.Echo(conn, make([]byte, part)); err != nil {
			return err
		}
	}
	return nil
}

// The memory of a process is stable when it has changed by at most the share stableBy for
// some time.
const (
	stableBy   = 0.005
	stableWait = 30 * time.Second // after this time it is taken as it is
)

// stable waits until the spans have arrived and the memory is stable, and returns the
// memory in bytes.
func (p *peer) stable(ctx context.Context, still time.Duration) (int64, error) {
	if err := p.spans.wait(ctx); err != nil {
		return 0, err
	}
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	begin := time.Now()
	since, reference := begin, int64(0)
	for {
		now, err := p.process.Resident()
		switch {
		case err != nil:
			return 0, err
		case max(now-reference, reference-now) > int64(stableBy*float64(now)):
			since, reference = time.Now(), now
		case time.Since(since) > still, time.Since(begin) > stableWait:
			return now, nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
