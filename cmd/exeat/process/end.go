package process

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// The times of the end, after the drain timeout. Together with the defaults of
// drain_delay and drain_timeout they are less than the 30 s that Kubernetes gives a
// pod.
const (
	endTimeout   = 5 * time.Second        // for everything
	flushTimeout = 3 * time.Second        // part of endTimeout that is reserved for records, spans, metrics and the log
	metricsFlush = 500 * time.Millisecond // part of flushTimeout for metrics, which come after records and spans because they count them
	logReserve   = 500 * time.Millisecond // part of flushTimeout for the log, which comes last
)

// Serve serves until ctx is done, drains, and then flushes records and spans; see
// gateway.Gateway. A signal on hangup, which may be nil, makes it read everything
// again. It returns at most drain delay, drain timeout and endTimeout after the end of
// ctx; anything that still hangs then is left running. The process cannot be used
// afterwards.
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

// serveAll serves the gateway, and follows the files that it uses, until ctx is done
// and the gateway has drained.
func serveAll(ctx context.Context, p *Process, hangup <-chan os.Signal) {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var following sync.WaitGroup
	following.Go(func() { collectWhenQuiet(background, debug.FreeOSMemory) })
	following.Go(func() { p.inputs.followWebs(background) })
	following.Go(func() { p.reloadOn(background, hangup) })
	following.Go(func() { p.followFiles(background, &p.bounds, fileLimit) })
	p.gateway.Serve(ctx)
	stop()
	following.Wait()
	p.starting.close()
	closeInputs(p)
}

// isClosedBy waits until a channel is closed or a time, and reports whether it is
// closed.
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

// closeInputs closes the resolver and everything that the process reads and follows.
func closeInputs(p *Process) {
	if p.resolver != nil {
		p.resolver.Close()
	}
	p.inputs.close()
}

// flush writes the remaining records, spans and metrics, and returns at the given time at
// the latest. Records and spans are flushed at the same time, so that a sink that hangs
// takes no time from the spans. Metrics follow, because they count the results of both.
// Anything that hangs is left running.
func flush(ctx context.Context, p *Process, end time.Time) {
	end = end.Add(-logReserve - abandonAfter)
	var flushing sync.WaitGroup
	within := func(end time.Time, what string, flush func(context.Context) error) {
		flushing.Go(func() {
			ctx, cancel := context.WithDeadline(ctx, end)
			defer cancel()
			if _, err := Until(ctx, func() (struct{}, error) { return struct{}{}, flush(ctx) }); err != nil {
				p.opts.Log.ErrorContext(ctx, "not everything was written before the end", slog.String("lost", what), slog.Any("error", err))
			}
		})
	}
	before := end.Add(-metricsFlush - abandonAfter)
	within(before, "records", p.sinks.close)
	if p.telemetry != nil {
		within(before, "spans", p.telemetry.ShutdownTraces)
		flushing.Wait()
		within(end, "metrics", p.telemetry.Shutdown)
	}
	flushing.Wait()
}
