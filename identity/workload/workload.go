// Package workload keeps an identity up to date from a SPIFFE agent: it is an
// [identity.Provider] over the Workload API.
//
//	provider, err := workload.New(ctx, workload.Config{Socket: "/run/spire/agent.sock", Report: report})
//	defer provider.Close()
//	verifier, err := identity.NewVerifier(provider)
//
// New waits for the first SVID, and reports why none has come and what to check. From
// then on every sound update of the agent (the first SVID, the bundle of its trust
// domain, the federated bundles) replaces the last snapshot and is reported.
//
// The package keeps what it has: after an unsound update the last snapshot stays in
// use, and after an unsound bundle of another trust domain the last sound one of that
// trust domain. The last snapshot also stays while the agent is absent, even when the
// SVID expires meanwhile; a server should watch [identity.Snapshot.NotAfter]. The
// package reads no environment variables, requests no JWT-SVIDs and does not log.
package workload

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/exeat-dev/exeat/identity"
)

const (
	firstRetry = 100 * time.Millisecond // short, because an agent that restarts is back soon
	lastRetry  = 5 * time.Second
)

// Config configures a [Provider]. It must not be changed after New.
type Config struct {
	// Socket is the address of the agent: an absolute path, unix:///path, or
	// tcp://127.0.0.1:port. TCP is allowed on loopback addresses only, because it
	// carries private keys in the clear. Required.
	Socket string
	// StartTimeout bounds the wait for the first SVID. Zero means that only ctx bounds
	// it; a negative value is an error.
	StartTimeout time.Duration
	// Waiting is called, before the first snapshot, with the reason why there is none
	// and what to check: once for each new reason, with one line of text, by one
	// goroutine at a time. It may be nil.
	Waiting func(why error)
	// Report is called with one event at a time and in order. The first snapshot is
	// reported before New returns; only refused bundles may be reported before it. No
	// update is received while Report runs. It must not call Close. It may be nil.
	Report func(Event)
}

// Provider is an identity from the Workload API. It is safe for concurrent use.
type Provider struct {
	watcher *watcher
	cancel  context.CancelFunc
	ended   sync.WaitGroup
}

var _ identity.Provider = (*Provider)(nil)

// New connects to the agent and waits for the first snapshot, until the start timeout
// or the end of ctx; the error is one line that says what to check. The provider then
// lives until Close, independent of ctx, because a server that drains after a signal
// still needs an identity.
func New(ctx context.Context, config Config) (*Provider, error) {
	if config.StartTimeout < 0 {
		return nil, fmt.Errorf("start timeout %s of the Workload API provider is negative", config.StartTimeout)
	}
	address, err := endpoint(config.Socket)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Provider{cancel: cancel, watcher: newWatcher(address, life.Done(), config)}
	retry := &pauses{}
	client, err := workloadapi.New(life,
		workloadapi.WithAddr(address),
		workloadapi.WithBackoffStrategy(retry),
		workloadapi.WithDialOptions(
			grpc.WithNoProxy(), // HTTPS_PROXY may name this gateway
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: firstRetry, Multiplier: 2, Jitter: 0.2, MaxDelay: lastRetry},
				MinConnectTimeout: lastRetry,
			}),
		),
	)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("workload API at %s: %w", address, err)
	}
	s.ended.Go(func() { s.watch(life, client, retry) })

	if err := s.awaitFirst(ctx, config.StartTimeout); err != nil {
		s.Close()
		if ctx.Err() == nil {
			err = s.watcher.startError(config.StartTimeout)
		}
		return nil, err
	}
	return s, nil
}

// silence is how long an agent may send nothing before Waiting is called with
// errSilent.
const silence = 2 * time.Second

// awaitFirst waits for the first snapshot. It returns an error when the timeout, unless
// it is zero, or ctx ends.
func (s *Provider) awaitFirst(ctx context.Context, timeout time.Duration) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	if timeout > 0 {
		waiting, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	silent := time.NewTimer(silence)
	defer silent.Stop()
	for {
		select {
		case <-s.watcher.first:
			return nil
		case <-silent.C:
			s.watcher.silent()
		case <-waiting.Done():
			return fmt.Errorf("waiting for the first X509-SVID of the Workload API at %s: %w", s.watcher.address, context.Cause(ctx))
		}
	}
}

// watch follows the agent until ctx ends. A watch of go-spiffe also ends when the agent
// answers Canceled, as one that stops does, or InvalidArgument; after a restart the
// agent may answer otherwise.
func (s *Provider) watch(ctx context.Context, client *workloadapi.Client, retry *pauses) {
	defer func() { _ = client.Close() }()
	for {
		_ = client.WatchX509Context(ctx, s.watcher) // the watcher got the error
		pause := time.NewTimer(retry.Next())
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

// Snapshot returns the last sound snapshot. It never returns nil.
func (s *Provider) Snapshot() *identity.Snapshot { return s.watcher.current.Load() }

// Refused reports whether the agent's last update, or a bundle in it, was refused, so that
// an older one is in use.
func (s *Provider) Refused() bool { return s.watcher.refused.Load() }

// Close disconnects and waits until no event is being reported any more. The last
// snapshot stays available. It may be called more than once.
func (s *Provider) Close() {
	s.cancel()
	s.ended.Wait()
}

// pauses makes the pauses between two attempts. It is used by the goroutine that
// watches.
type pauses struct{ next time.Duration }

// NewBackoff returns p itself, because there is only one watch at a time.
func (p *pauses) NewBackoff() workloadapi.Backoff { return p }

// Next returns the next pause, twice as long each time up to a limit.
func (p *pauses) Next() time.Duration {
	pause := max(p.next, firstRetry)
	p.next = min(2*pause, lastRetry)
	return pause
}

// Reset starts with short pauses again.
func (p *pauses) Reset() { p.next = 0 }
