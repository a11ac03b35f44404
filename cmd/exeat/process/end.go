package process

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// The times of the end, once the time to drain is over. The whole of it and the
// defaults of drain_delay and drain_timeout are less than the 30 s that Kubernetes
// gives a pod.
const (
	endTimeout   = 5 * time.Second        // all of it
	flushTimeout = 3 * time.Second        // what records, spans, metrics and the log have of it at least
	metricsFlush = 500 * time.Millisecond // what metrics have of that, behind records and spans, which they count
	logReserve   = 500 * time.Millisecond // what the log has of that, last
)

// Serve serves until ctx is done, drains, and then flushes records and spans; see
// gateway.Gateway. A signal on hangup, which may be nil, reads everything again.
// From the end of ctx it takes drain delay, drain timeout and endTimeout at most,
// whatever hangs: what has not ended then is left behind. The process cannot be used
// any more afterwards.
func (p *Process) Serve(ctx context.Context, hangup <-chan os.Signal) {
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveAll(ctx, p, hangup)
	}()
	<-ctx.Done()
	end := time.Now().Add(p.cfg.Gateway.DrainDelay + p.cfg.Gateway.DrainTimeout + endTimeout)
	if !isClosedBy(served, end.Add(-flushTimeout)) {
		p.opts.Log.ErrorContext(ctx, "something does not end, such as the reading of a file, and is left behind")
	}
	if latest := time.Now().Add(endTimeout); latest.Before(end) {
		end = latest
	}
	flush(context.WithoutCancel(ctx), p, end)
	stats := p.sinks.recorder.Stats()
	p.opts.Log.InfoContext(ctx, "stopped", slog.Uint64("records", stats.Made),
		slog.Uint64("records_lost", stats.Lost()), slog.Uint64("panics", p.gateway.Stats().Panics))
}

// serveAll serves the gateway of a process and follows what that reads until ctx is
// done and it has drained.
func serveAll(ctx context.Context, p *Process, hangup <-chan os.Signal) {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var following sync.WaitGroup
	following.Go(func() { giveBack(background, debug.FreeOSMemory) })
	following.Go(func() { p.sources.followWebs(background) })
	following.Go(func() { p.reloadOn(background, hangup) })
	following.Go(func() { p.followFiles(background, &p.bounds, fileLimit) })
	p.gateway.Serve(ctx)
	stop()
	following.Wait()
	p.starting.close()
	closeSources(p)
}

// isClosedBy reports whether a channel is closed, for which it waits until a time.
func isClosedBy(c <-chan struct{}, end time.Time) bool {
	late := time.NewTimer(time.Until(end))
	defer late.Stop()
	select {
	case <-c:
		return true
	case <-late.C:
		return false
	}
}

// closeSources ends what a process began to read.
func closeSources(p *Process) {
	if p.resolver != nil {
		p.resolver.Close()
	}
	p.sources.close()
}

// flush ends what a process began to write, by a time: records and spans together, so
// that a sink that is dead takes nothing from the spans, and metrics behind them,
// which count what became of both. What hangs is left behind.
func flush(ctx context.Context, p *Process, end time.Time) {
	end = end.Add(-logReserve - leaveBehind)
	var told sync.WaitGroup
	within := func(end time.Time, what string, flush func(context.Context) error) {
		told.Go(func() {
			ctx, cancel := context.WithDeadline(ctx, end)
			defer cancel()
			if _, err := Until(ctx, func() (struct{}, error) { return struct{}{}, flush(ctx) }); err != nil {
				p.opts.Log.ErrorContext(ctx, "not everything was written before the end", slog.String("lost", what), slog.Any("error", err))
			}
		})
	}
	before := end.Add(-metricsFlush - leaveBehind)
	within(before, "records", p.sinks.close)
	if p.telemetry != nil {
		within(before, "spans", p.telemetry.ShutdownTraces)
		told.Wait()
		within(end, "metrics", p.telemetry.Shutdown)
	}
	told.Wait()
}
