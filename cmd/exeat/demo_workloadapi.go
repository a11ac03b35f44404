package main

import (
	"context"

	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/identity/authority/workloadapi"
)

// workloadAPI serves the demo's Workload API.
type workloadAPI struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func startWorkloadAPI(ctx context.Context, a *authority.Authority, socket string, svids ...authority.Options) (*workloadAPI, error) {
	server, err := workloadapi.New(workloadapi.Config{Authority: a, SVIDs: svids})
	if err != nil {
		return nil, err
	}
	l, err := workloadapi.Listen(ctx, socket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	started := &workloadAPI{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(started.done)
		_ = server.Serve(ctx, l) // returns when stop cancels ctx
	}()
	return started, nil
}

func (w *workloadAPI) stop() {
	w.cancel()
	<-w.done
}
