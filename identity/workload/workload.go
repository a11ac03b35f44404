// Package workload is an identity that a SPIFFE agent keeps fresh: a
// [identity.Source] over the Workload API.
//
//	source, err := workload.New(ctx, workload.Config{Socket: "/run/spire/agent.sock", Report: report})
//	defer source.Close()
//	verifier, err := identity.NewVerifier(source)
//
// New waits for the first SVID, and says why none has come and what to check. From
// then on every update of the agent that is a sound snapshot (the first SVID,
// the bundle of its trust domain, the federated bundles) replaces the last one
// and is reported.
//
// The package never gives up what it has: an update that makes no sense leaves
// the last snapshot in place, an unsound bundle of another trust domain the last
// one of that trust domain, and so does an agent that went away, for as long
// as it stays away and even when the SVID expires meanwhile. Whoever serves with
// it watches [identity.Snapshot.NotAfter]. The package reads no environment
// variables, asks for no JWT-SVIDs and does not log.
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
	firstRetry = 100 * time.Millisecond // an agent that restarts is back soon
	lastRetry  = 5 * time.Second
)

// Config says where the agent is. It is not changed after New.
type Config struct {
	// Socket is where the agent listens: an absolute path, unix:///path, or
	// tcp://127.0.0.1:port. TCP is for loopback addresses only, since private
	// keys come over it in the clear. Required.
	Socket string
	// StartTimeout bounds the wait for the first SVID. Zero means as long as ctx
	// lasts; negative is an error.
	StartTimeout time.Duration
	// Waiting is told, before the first snapshot, why there is none and what to
	// check: once for each new cause, in one line. It is called from one goroutine.
	// Nil means nobody is told.
	Waiting func(why error)
	// Report is told what happened, one event at a time and in order. The first
	// snapshot is reported before New returns, and before it bundles that are
	// refused at most. While it runs
	// nothing else is received. It must not call Close. Nil means nobody is told.
	Report func(Event)
}

// Source is an identity from the Workload API. It is safe for concurrent use.
type Source struct {
	watcher *watcher
	cancel  context.CancelFunc
	ended   sync.WaitGroup
}

var _ identity.Source = (*Source)(nil)

// New connects to the agent and waits for the first snapshot, until the start
// timeout or the end of ctx; the error is one line that says what to check. The
// source then lives until Close, whatever becomes of ctx: what drains after a
// signal still needs an identity.
func New(ctx context.Context, config Config) (*Source, error) {
	if config.StartTimeout < 0 {
		return nil, fmt.Errorf("start timeout %s of the Workload API source is negative", config.StartTimeout)
	}
	address, err := endpoint(config.Socket)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Source{cancel: cancel, watcher: newWatcher(address, life.Done(), config)}
	retry := &pauses{}
	client, err := workloadapi.New(life,
		workloadapi.WithAddr(address),
		workloadapi.WithBackoffStrategy(retry),
		workloadapi.WithDialOptions(
			grpc.WithNoProxy(), // HTTPS_PROXY may well name ourselves
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

// silence is how long an agent may take to say anything before Waiting is told
// that it does not.
const silence = 2 * time.Second

// awaitFirst returns when there is a first snapshot, or with an error when the
// timeout, unless it is zero, or ctx is over.
func (s *Source) awaitFirst(ctx context.Context, timeout time.Duration) error {
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

// watch follows the agent until ctx ends. A watch of go-spiffe also ends when
// the agent answers Canceled, as one does that is being stopped, or
// InvalidArgument; the next agent may do better.
func (s *Source) watch(ctx context.Context, client *workloadapi.Client, retry *pauses) {
	defer func() { _ = client.Close() }()
	for {
		_ = client.WatchX509Context(ctx, s.watcher) // the watcher was told of the error
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
func (s *Source) Snapshot() *identity.Snapshot { return s.watcher.current.Load() }

// Close disconnects and waits until nothing is reported any more. The last
// snapshot stays. It may be called more than once.
func (s *Source) Close() {
	s.cancel()
	s.ended.Wait()
}

// pauses are those between two attempts. They belong to the one goroutine that
// watches.
type pauses struct{ next time.Duration }

// NewBackoff hands itself out: there is one watch at a time.
func (p *pauses) NewBackoff() workloadapi.Backoff { return p }

// Next returns how long to pause now, twice as long each time up to a limit.
func (p *pauses) Next() time.Duration {
	pause := max(p.next, firstRetry)
	p.next = min(2*pause, lastRetry)
	return pause
}

// Reset begins with short pauses again.
func (p *pauses) Reset() { p.next = 0 }
