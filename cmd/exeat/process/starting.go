package process

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/admin"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// starting answers probes from the beginning of a start until the gateway does so, because
// the start may wait for a long time. It is safe for concurrent use.
type starting struct {
	serving sync.WaitGroup

	mu      sync.Mutex
	admin   *admin.Server // nil without an address, or before open
	waiting string        // what the start waits for
	metrics http.Handler  // nil before setMetrics
}

// open opens the admin listener, if the configuration names one, and serves it.
func (s *starting) open(ctx context.Context, cfg *gateway.Admin, log *slog.Logger) error {
	if cfg.Address == "" {
		return nil
	}
	server, err := admin.Listen(ctx, admin.Config{
		Address: cfg.Address, Connections: adminConnections(fileLimit()),
		NotReady: s.notReady, Metrics: http.HandlerFunc(s.serveMetrics),
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.admin = server
	s.mu.Unlock()
	s.serving.Go(func() {
		if err := server.Serve(); err != nil {
			log.LogAttrs(ctx, slog.LevelError, "the admin listener stopped", slog.Any("error", err))
		}
	})
	return nil
}

// logAddress logs the address at which probes are answered while the start waits.
func (s *starting) logAddress(ctx context.Context, log *slog.Logger) {
	if server := s.opened(); server != nil {
		log.LogAttrs(ctx, slog.LevelInfo, "answering probes", slog.String("address", server.Addr().String()))
	}
}

// opened returns the admin listener, or nil if there is none.
func (s *starting) opened() *admin.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admin
}

// waitFor sets what the start waits for from now on.
func (s *starting) waitFor(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = what
}

// setMetrics sets the handler of /metrics.
func (s *starting) setMetrics(h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics = h
}

func (s *starting) notReady() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []string{"starting: " + allowlist.Visible(s.waiting)}
}

func (s *starting) serveMetrics(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	metrics := s.metrics
	s.mu.Unlock()
	if metrics == nil {
		http.Error(w, "the process is starting", http.StatusServiceUnavailable)
		return
	}
	metrics.ServeHTTP(w, r)
}

// close closes the admin listener. A second call does nothing.
func (s *starting) close() {
	if server := s.opened(); server != nil {
		_ = server.Close()
	}
	s.serving.Wait()
}

// tryListeners opens every listener and closes it again, so that an address that cannot
// be used is reported before the start waits for anything. The listeners do not stay
// open, because connections to a listener that is not served would hang.
func tryListeners(ctx context.Context, listeners []config.Listener) error {
	for _, l := range listeners {
		try := listen.Try
		if l.Protocol == gateway.DNS {
			try = listen.TryWithUDP
		}
		if err := try(ctx, l.Address); err != nil {
			return fmt.Errorf("listener %s: %w", l.Name, err)
		}
	}
	return nil
}

// abandonAfter bounds the time that a function may take to end by itself after it was
// told to.
const abandonAfter = 250 * time.Millisecond

// Until calls f and returns its result. If ctx is done and f does not return within
// abandonAfter, for example because a file system hangs, Until leaves f running and
// returns the cause of ctx. Call it only if the process is about to end then.
func Until[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	late := time.NewTimer(abandonAfter)
	defer late.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-late.C:
		var none T
		return none, context.Cause(ctx)
	}
}
