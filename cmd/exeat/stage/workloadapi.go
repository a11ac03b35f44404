package stage

import (
	"context"

	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/identity/authority/workloadapi"
)

// WorkloadAPI serves the Workload API.
type WorkloadAPI struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// StartWorkloadAPI starts the Workload API on a socket, with some SVIDs.
func StartWorkloadAPI(ctx context.Context, a *authority.Authority, socket string, svids ...authority.Options) (*WorkloadAPI, error) {
	server, err := workloadapi.New(workloadapi.Config{Authority: a, SVIDs: svids})
	if err != nil {
		return nil, err
	}
	l, err := workloadapi.Listen(ctx, socket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	started := &WorkloadAPI{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(started.done)
		_ = server.Serve(ctx, l) // returns when Stop cancels ctx
	}()
	return started, nil
}

// Stop ends it, and waits for that.
func (w *WorkloadAPI) Stop() {
	w.cancel()
	<-w.done
}
