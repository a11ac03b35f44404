// Package workloadapi serves the SPIFFE Workload API of an authority on a unix socket, as
// a SPIFFE agent does, for demonstrations, development and tests.
//
//	server, err := workloadapi.New(workloadapi.Config{
//		Authority: ca,
//		SVIDs:     []authority.Options{{ID: id, Lifetime: time.Minute}},
//	})
//	listener, err := workloadapi.Listen(ctx, "/run/exeat/agent.sock")
//	err = server.Serve(ctx, listener) // until ctx ends
//
// Every caller gets SVIDs for the same IDs, with keys of its own. It gets new ones when
// half of the shortest lifetime is over, after each step of a roll of the CA, and when
// the federated bundles change.
//
// The server attests no caller: whoever may open the socket gets every identity that it
// serves. It is therefore not for production. It implements the X509-SVID profile; the
// other methods of the API return Unimplemented.
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
	maxStreams = 100      // streams of one connection
	maxRequest = 64 << 10 // bytes of a request; the requests of the profile are empty
)

// Config configures a Server. It must not be changed after New.
type Config struct {
	// Authority mints the SVIDs. Required.
	Authority *authority.Authority
	// SVIDs describes the SVIDs that every caller gets, the default one first. Their IDs
	// must differ. A lifetime of zero means [authority.DefaultLifetime]; one below a
	// second is an error, and one that ends after the authority is shortened. An SVID may
	// be valid for up to a second longer than its lifetime. Required.
	SVIDs []authority.Options
	// Federated holds the bundles of other trust domains; see [Server.SetFederated].
	Federated []*x509bundle.Bundle
}

// Server serves the Workload API. It is safe for concurrent use.
type Server struct {
	authority *authority.Authority
	svids     []authority.Options

	// mu guards the fields below.
	mu        sync.Mutex
	federated []*x509bundle.Bundle
	changed   chan struct{} // closed when federated changes
}

// New returns a server. It checks the configuration and mints every SVID once for this.
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

// SetFederated replaces the bundles of other trust domains, and sends them to all
// callers. It returns an error and changes nothing if a bundle is empty, or if two are of
// the same trust domain or one is of the authority's own.
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

// Serve answers calls on a listener until ctx ends, and closes the listener. It returns
// after the last call has ended, and returns nil if ctx has ended. It may be called for
// several listeners.
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
	if err != nil && ctx.Err() == nil { // the listener failed
		return fmt.Errorf("serving the Workload API: %w", err)
	}
	return nil
}
