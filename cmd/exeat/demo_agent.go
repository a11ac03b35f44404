package main

import (
	"context"

	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/identity/authority/workloadapi"
)

// agent is the demo's Workload API.
type agent struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func startAgent(ctx context.Context, a *authority.Authority, socket string, svids ...authority.Options) (*agent, error) {
	server, err := workloadapi.New(workloadapi.Config{Authority: a, SVIDs: svids})
	if err != nil {
		return nil, err
	}
	l, err := workloadapi.Listen(ctx, socket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	started := &agent{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(started.done)
		_ = server.Serve(ctx, l) // it ends when stop cancels it
	}()
	return started, nil
}

func (a *agent) stop() {
	a.cancel()
	<-a.done
}
