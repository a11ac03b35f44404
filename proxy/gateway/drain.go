package gateway

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// drain continues to serve for the drain delay, then refuses new requests, and returns
// when everything has ended or was told to end.
func drain(ctx context.Context, g *Gateway) {
	g.probes.stopping.Store(true)
	g.proxy.BeginDrain()
	if g.dns != nil {
		g.dns.BeginDrain()
	}
	g.cfg.Log.InfoContext(ctx, "draining", slog.Int("tunnels", g.Registry().Tunnels()))
	time.Sleep(g.cfg.DrainDelay) //nolint:forbidigo // only a second signal ends the delay early, and it ends the process
	g.proxy.Drain()
	if g.dns != nil {
		g.dns.Drain()
	}
	g.doors.close()
	g.Registry().Drain(g.cfg.DrainTimeout)
}

// LastAnswers bounds how long Serve waits, after the drain timeout, for answers that
// are being written: those to requests that were just ended, and refusals, which are
// not in the registry.
const LastAnswers = time.Second

// awaitLastAnswers waits until every connection has ended, at most for LastAnswers.
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
