package process

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/agent"
)

// AgentConfig says what an agent reads, beside the configuration of package agent, whose
// identity provider and gateways it sets.
type AgentConfig struct {
	agent.Config

	// WorkloadAPI is the address of the Workload API, or IdentityDir a directory with the
	// files of an identity. Exactly one of them is set.
	WorkloadAPI, IdentityDir string
	// GatewayID is the identity of every gateway, or AnyIn the trust domain to which it
	// must belong. Exactly one of them is set.
	GatewayID spiffeid.ID
	AnyIn     spiffeid.TrustDomain
}

// Agent is an agent with the identity that it follows.
type Agent struct {
	*agent.Agent

	closeIdentity func()
}

// OpenAgent reads the identity, if it comes from files, and opens the doors. An identity of the
// Workload API is waited for by Serve; until it has come the agent refuses what it is asked.
func OpenAgent(ctx context.Context, cfg AgentConfig) (*Agent, error) {
	in := &inputs{log: cfg.Log, waitFor: func(string) {}}
	up := &cfg.Uplink
	up.Accept, up.TrustDomain, up.Memory = acceptGateway(cfg.GatewayID, cfg.AnyIn), cfg.AnyIn, newStreamMemory()
	if !cfg.GatewayID.IsZero() {
		up.TrustDomain = cfg.GatewayID.TrustDomain()
	}
	opened := &Agent{}
	if cfg.IdentityDir != "" {
		files, err := openIdentityFiles(identity.FileConfig{Dir: cfg.IdentityDir}, &in.reloads, cfg.Log)
		if err == nil {
			err = files.watching.open()
		}
		if err != nil {
			return nil, err
		}
		up.Provider, opened.closeIdentity = files, files.watching.close
	} else {
		late := &lateIdentity{inputs: in, socket: cfg.WorkloadAPI}
		in.waitFor = late.waitFor
		up.Provider, up.NoIdentity, opened.closeIdentity = late, late.missing, late.close
	}
	var err error
	if opened.Agent, err = agent.New(ctx, cfg.Config); err != nil {
		opened.closeIdentity()
		return nil, err
	}
	return opened, nil
}

// Serve serves until ctx is done; see agent.Agent. A signal on hangup makes it read the
// identity at once.
func (a *Agent) Serve(ctx context.Context, hangup <-chan os.Signal) {
	defer a.closeIdentity()
	var beside sync.WaitGroup
	defer beside.Wait()
	collecting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	beside.Go(func() { collectWhenQuiet(collecting, debug.FreeOSMemory) })
	reread := make(chan struct{}, 1)
	beside.Go(func() {
		for {
			select {
			case <-collecting.Done():
				return
			case <-hangup:
				select {
				case reread <- struct{}{}:
				default: // it is about to be read
				}
			}
		}
	})
	a.Agent.Serve(ctx, reread)
}

// acceptGateway returns the function that accepts the identity of a gateway.
func acceptGateway(id spiffeid.ID, anyIn spiffeid.TrustDomain) func(spiffeid.ID) error {
	return func(peer spiffeid.ID) error {
		switch {
		case !id.IsZero() && peer != id:
			return fmt.Errorf("the server is %s, and the gateway must be %s", peer, id)
		case id.IsZero() && peer.TrustDomain() != anyIn:
			return fmt.Errorf("the server is %s, and the gateway must be in the trust domain %s", peer, anyIn)
		}
		return nil
	}
}

// lateIdentity is an identity of the Workload API that may not be there yet.
type lateIdentity struct {
	inputs *inputs
	socket string
	agent  atomic.Pointer[identityAgent] // nil until the first identity has come
	why    atomic.Pointer[string]        // what is waited for
}

// Snapshot implements identity.Provider.
func (l *lateIdentity) Snapshot() *identity.Snapshot {
	if a := l.agent.Load(); a != nil {
		return a.Snapshot()
	}
	return nil
}

// Follow implements agent.IdentityProvider.
func (l *lateIdentity) Follow(ctx context.Context, reread <-chan struct{}, changed func(context.Context)) {
	a, err := l.inputs.openAgent(ctx, l.socket)
	if err != nil {
		if ctx.Err() == nil { // the address itself is wrong
			l.inputs.log.LogAttrs(ctx, slog.LevelError, "there will be no identity", slog.Any("error", err))
			l.waitFor(err.Error())
		}
		return
	}
	l.agent.Store(a)
	changed(ctx)
	a.Follow(ctx, reread, changed)
}

func (l *lateIdentity) waitFor(what string) { l.why.Store(&what) }

// missing returns why there is no identity yet.
func (l *lateIdentity) missing() string {
	if why := l.why.Load(); why != nil {
		return *why
	}
	return ""
}

func (l *lateIdentity) close() {
	if a := l.agent.Load(); a != nil {
		a.Close()
	}
}
