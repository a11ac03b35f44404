// Package admin serves /livez, /readyz and /metrics to probes and scrapers, and nothing
// else. In a pod the workload shares loopback with it, so it shows no decision and
// changes nothing.
package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// Config says where to listen and what to answer. All fields except Connections, Notes
// and Shed are required.
type Config struct {
	// Address is an IP address and a port.
	Address string
	// Connections is how many connections may be open. If there is one more, the one
	// that has been without a request for the longest time is closed. Zero means
	// DefaultConnections.
	Connections int
	// NotReady returns why the gateway is not ready, one line for each cause, or
	// nothing if it is ready.
	NotReady func() []string
	// Notes returns faults that are no reason to send connections elsewhere, one line
	// each. nil means that there are none.
	Notes func() []string
	// Metrics answers /metrics.
	Metrics http.Handler
	// Shed, if not nil, is called for every connection that is closed to make room.
	Shed func(limit.Cause)
}

// Server serves the admin listener.
type Server struct {
	listener net.Listener
	http     *http.Server
	cfg      atomic.Pointer[Config] // the current configuration
}

// Listen opens the listener; Serve serves it.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.NotReady == nil || cfg.Metrics == nil {
		return nil, errors.New("admin: readiness and metrics are required")
	}
	l, err := listen.TCP(ctx, cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	s := &Server{listener: l}
	s.Replace(cfg)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		now := s.cfg.Load()
		answer(w, now.NotReady(), now.Notes())
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) { s.cfg.Load().Metrics.ServeHTTP(w, r) })
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ConnState: newConnSlots(cmp.Or(cfg.Connections, DefaultConnections), func(cause limit.Cause) {
			s.cfg.Load().Shed(cause)
		}).changed,
	}
	return s, nil
}

// Replace makes the functions and the handler of another configuration answer from now
// on. The address and the bound on connections stay as they are.
func (s *Server) Replace(cfg Config) {
	if cfg.Shed == nil {
		cfg.Shed = func(limit.Cause) {}
	}
	if cfg.Notes == nil {
		cfg.Notes = func() []string { return nil }
	}
	s.cfg.Store(&cfg)
}

// answer writes ok, or the causes with status 503. The notes follow and do not change
// the status.
func answer(w http.ResponseWriter, causes, notes []string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	status, lines := http.StatusServiceUnavailable, causes
	if len(causes) == 0 {
		status, lines = http.StatusOK, []string{"ok"}
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(strings.Join(slices.Concat(lines, notes), "\n") + "\n"))
}

// Addr returns the address that the listener has.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve answers until Close.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// Close closes the server and its connections.
func (s *Server) Close() error {
	return errors.Join(s.http.Close(), ignoreClosed(s.listener.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
