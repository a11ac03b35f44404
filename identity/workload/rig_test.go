package workload_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/identity/authority/workloadapi"
	source "github.com/exeat-dev/exeat/identity/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newAuthority(t *testing.T, name string) *authority.Authority {
	t.Helper()
	a, err := authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(name)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl") //nolint:usetesting // shorter than t.TempDir: the path of a unix socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "agent.sock")
}

func newServer(t *testing.T, a *authority.Authority, path string, lifetime time.Duration) *workloadapi.Server {
	t.Helper()
	server, err := workloadapi.New(workloadapi.Config{
		Authority: a,
		SVIDs:     []authority.Options{{ID: spiffeid.RequireFromPath(a.TrustDomain(), path), Lifetime: lifetime}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// serve runs an agent until kill is called, or until the test ends.
func serve(t *testing.T, server *workloadapi.Server, socket string) (kill func()) {
	t.Helper()
	listener, err := workloadapi.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	kill = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(kill)
	return kill
}

// follower is a source with its reported events.
type follower struct {
	*source.Provider
	events chan source.Event
}

func follow(t *testing.T, socket string) follower {
	t.Helper()
	f := follower{events: make(chan source.Event, 64)}
	var err error
	f.Provider, err = source.New(t.Context(), source.Config{Socket: socket, Report: func(e source.Event) { f.events <- e }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	f.next(t, source.Updated)
	return f
}

// next waits for the next event, which must be of a kind.
func (f follower) next(t *testing.T, want source.EventKind) source.Event {
	t.Helper()
	got := <-f.events
	if got.Kind != want {
		t.Fatalf("event %q (%v), want %q", got.Kind, got.Err, want)
	}
	if (got.Snapshot != nil) != (got.Kind == source.Updated) {
		t.Errorf("event %q with snapshot %v", got.Kind, got.Snapshot)
	}
	return got
}

// until skips updates until one satisfies its condition.
func (f follower) until(t *testing.T, good func(*identity.Snapshot) bool) {
	t.Helper()
	for !good(f.Snapshot()) {
		f.next(t, source.Updated)
	}
}

// scripted is an agent that answers each call with the next function of a test.
type scripted struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	calls chan func(send func(*workload.X509SVIDResponse)) error
}

func (s *scripted) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	select {
	case answer := <-s.calls:
		return answer(func(r *workload.X509SVIDResponse) { _ = stream.Send(r) })
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func newScripted(t *testing.T) (*scripted, string) {
	t.Helper()
	s := &scripted{calls: make(chan func(func(*workload.X509SVIDResponse)) error, 16)}
	socket := socketPath(t)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	workload.RegisterSpiffeWorkloadAPIServer(server, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return s, socket
}
