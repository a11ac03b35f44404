// Package workloadapi serves the SPIFFE Workload API of an authority on a unix
// socket: what an agent does, for demonstrations, development and tests.
//
//	server, err := workloadapi.New(workloadapi.Config{
//		Authority: ca,
//		SVIDs:     []authority.Options{{ID: id, Lifetime: time.Minute}},
//	})
//	listener, err := workloadapi.Listen(ctx, "/run/exeat/agent.sock")
//	err = server.Serve(ctx, listener) // until ctx ends
//
// Every caller gets the same SVIDs, each its own key, and a new one when half
// of its time is over, when a step of a roll of the CA was taken, and when the
// federated bundles changed.
//
// It attests nobody: whoever may open the socket is every workload it serves.
// It is therefore not for production. It offers the X509-SVID profile; the
// other methods of the API answer Unimplemented.
package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/exeat-dev/exeat/identity/authority"
)

// minLifetime is the shortest lifetime of an SVID: X.509 counts seconds.
const minLifetime = time.Second

const (
	maxStreams = 100      // of one connection
	maxRequest = 64 << 10 // bytes; the requests of the profile are empty
)

// Config says what is served. It is not changed after New.
type Config struct {
	// Authority mints. Required.
	Authority *authority.Authority
	// SVIDs are what every caller gets, the default one first. Their IDs differ.
	// A lifetime of zero means [authority.DefaultLifetime]; one below
	// a second is an error, and one beyond the authority's is cut. An SVID
	// may live up to a second longer than it says. Required.
	SVIDs []authority.Options
	// Federated are the bundles of other trust domains; see
	// [Server.SetFederated].
	Federated []*x509bundle.Bundle
}

// Server serves the Workload API. It is safe for concurrent use.
type Server struct {
	authority *authority.Authority
	svids     []authority.Options

	mu        sync.Mutex
	federated []*x509bundle.Bundle
	changed   chan struct{} // closed when federated changes
}

// New checks the configuration; it mints every SVID once for that.
func New(config Config) (*Server, error) {
	switch {
	case config.Authority == nil:
		return nil, errors.New("workload API needs an authority")
	case len(config.SVIDs) == 0:
		return nil, errors.New("workload API needs an SVID to serve")
	}
	s := &Server{authority: config.Authority, svids: slices.Clone(config.SVIDs), changed: make(chan struct{})}
	seen := make(map[spiffeid.ID]bool)
	for i := range s.svids {
		options := &s.svids[i]
		switch {
		case options.Lifetime == 0:
			options.Lifetime = authority.DefaultLifetime
		case options.Lifetime < minLifetime:
			return nil, fmt.Errorf("lifetime %s of %s is below %s", options.Lifetime, options.ID, minLifetime)
		}
		if seen[options.ID] {
			return nil, fmt.Errorf("%s is to be served twice", options.ID)
		}
		seen[options.ID] = true
	}
	if err := s.SetFederated(config.Federated...); err != nil {
		return nil, err
	}
	if _, _, err := s.mint(); err != nil {
		return nil, err
	}
	return s, nil
}

// SetFederated replaces the bundles of other trust domains, and sends them to
// everybody who listens. An empty one, a second one of the same trust domain or
// one of the authority's own is an error that changes nothing.
func (s *Server) SetFederated(bundles ...*x509bundle.Bundle) error {
	next := make([]*x509bundle.Bundle, 0, len(bundles))
	seen := map[spiffeid.TrustDomain]bool{s.authority.TrustDomain(): true}
	for _, bundle := range bundles {
		switch {
		case bundle == nil || bundle.TrustDomain().IsZero() || bundle.Empty():
			return errors.New("federated bundle is empty or has no trust domain")
		case seen[bundle.TrustDomain()]:
			return fmt.Errorf("federated bundle of trust domain %s: it has one already", bundle.TrustDomain())
		}
		seen[bundle.TrustDomain()] = true
		next = append(next, bundle.Clone())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.federated = next
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// Serve answers on a listener until ctx ends, and closes it. It returns after
// the last call has ended, with nil when ctx did. It may be called for several
// listeners.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer(
		grpc.WaitForHandlers(true),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.UnaryInterceptor(checkUnary),
		grpc.StreamInterceptor(checkStream),
	)
	workload.RegisterSpiffeWorkloadAPIServer(server, &service{server: s})
	var (
		stopping sync.WaitGroup
		ended    = make(chan struct{})
	)
	stopping.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		server.Stop()
	})
	err := server.Serve(listener)
	close(ended)
	stopping.Wait()
	if err != nil && ctx.Err() == nil { // else it was asked for
		return fmt.Errorf("serving the Workload API: %w", err)
	}
	return nil
}
