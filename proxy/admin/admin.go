// Package admin answers the questions of probes and scrapers: /livez, /readyz
// and /metrics, and nothing else. In a pod the workload shares loopback with
// it, so it shows no decision and changes nothing.
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
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// Config says where to listen and what to answer. All fields are required but
// Connections, Notes and Cut.
type Config struct {
	// Address is an IP address and a port.
	Address string
	// Connections is how many may be open; for one more, the one that has been
	// without a request for longest is closed. Zero means DefaultConnections.
	Connections int
	// NotReady returns why the gateway is not ready, a line for each cause;
	// none means ready.
	NotReady func() []string
	// Notes returns what is wrong and no reason to send connections elsewhere, a
	// line each; nil means nothing.
	Notes func() []string
	// Metrics answers /metrics.
	Metrics http.Handler
	// Cut is told of every connection that is closed for another one; nil is nobody.
	Cut func(limit.Cause)
}

// Server serves the admin listener.
type Server struct {
	listener net.Listener
	http     *http.Server
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
	if cfg.Cut == nil {
		cfg.Cut = func(limit.Cause) {}
	}
	if cfg.Notes == nil {
		cfg.Notes = func() []string { return nil }
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, cfg.NotReady(), cfg.Notes()) })
	mux.Handle("GET /metrics", cfg.Metrics)
	return &Server{listener: l, http: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ConnState:         newBound(cmp.Or(cfg.Connections, DefaultConnections), cfg.Cut).changed,
	}}, nil
}

// answer says ok, or what is wrong; notes stand below and change nothing.
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

// Close ends the server and its connections.
func (s *Server) Close() error {
	return errors.Join(s.http.Close(), ignoreClosed(s.listener.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
