package gateway

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// drain serves on for the drain delay, refuses what comes then, and returns when
// nothing is open or everything was told to end.
func drain(ctx context.Context, g *Gateway) {
	g.probes.stopping.Store(true)
	g.proxy.BeginDrain()
	if g.dns != nil {
		g.dns.BeginDrain()
	}
	g.cfg.Log.InfoContext(ctx, "draining", slog.Int("tunnels", g.Registry().Tunnels()))
	time.Sleep(g.cfg.DrainDelay) //nolint:forbidigo // nothing may cut the delay short but a second signal, which ends the process
	g.proxy.Drain()
	if g.dns != nil {
		g.dns.Drain()
	}
	g.doors.close()
	g.Registry().Drain(g.cfg.DrainTimeout)
}

// LastAnswers bounds how long Serve waits, once the time to drain is over, for
// answers that are being written: that to a request which it has just ended, and
// refusals, which the registry does not know.
const LastAnswers = time.Second

// awaitLastAnswers returns when every connection has ended, or the time for that
// is over.
func awaitLastAnswers(serving *sync.WaitGroup) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		serving.Wait()
	}()
	late := time.NewTimer(LastAnswers)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
	}
}
