package workloadapi

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/exeat-dev/exeat/identity/authority"
)

// service is the X509-SVID profile of the API. The embedded type answers Unimplemented to
// all other calls.
type service struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	server *Server
}

// FetchX509SVID sends SVIDs and bundles, and sends new ones whenever they change.
func (s *service) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		changes := s.server.changes()
		response, renew, err := s.server.mint()
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		if err := stream.Send(response); err != nil {
			return err
		}
		if err := changes.wait(stream.Context(), renew); err != nil {
			return err
		}
	}
}

// FetchX509Bundles sends the bundles, and sends them again whenever they change.
func (s *service) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	const never = 1<<63 - 1
	for {
		changes := s.server.changes()
		own := s.server.authority.X509Bundle()
		bundles := s.server.federatedBundles()
		bundles[own.TrustDomain().IDString()] = concat(own)
		if err := stream.Send(&workload.X509BundlesResponse{Bundles: bundles}); err != nil {
			return err
		}
		if err := changes.wait(stream.Context(), never); err != nil {
			return err
		}
	}
}

// mint returns a response with new SVIDs, and the time after which it must be renewed.
func (s *Server) mint() (*workload.X509SVIDResponse, time.Duration, error) {
	bundle := concat(s.authority.X509Bundle())
	response := &workload.X509SVIDResponse{FederatedBundles: s.federatedBundles()}
	var first time.Time // the earliest end of an SVID
	for _, options := range s.svids {
		options.Lifetime = lasting(options.Lifetime, time.Now(), s.authority.NotAfter())
		svid, err := s.authority.Mint(options)
		if err != nil {
			return nil, 0, err
		}
		message, err := messageOf(svid)
		if err != nil {
			return nil, 0, err
		}
		message.Bundle = bundle
		response.Svids = append(response.Svids, message)
		if first.IsZero() || svid.NotAfter.Before(first) {
			first = svid.NotAfter
		}
	}
	// The minimum matters if the authority is about to expire.
	return response, max(time.Until(first)/2, minLifetime/4), nil
}

// lasting rounds a lifetime up so that it ends at a full second. X.509 drops fractions,
// and nothing might be left of a lifetime of one second. A lifetime that ends after last,
// the end of the authority, is shortened; zero then makes Mint use all that is left of
// it.
func lasting(lifetime time.Duration, now, last time.Time) time.Duration {
	end := now.Add(lifetime).Truncate(time.Second).Add(time.Second)
	if end.Before(last) {
		return end.Sub(now)
	}
	return max(0, last.Sub(now)-time.Second)
}

func messageOf(svid *authority.SVID) (*workload.X509SVID, error) {
	pair := svid.TLS()
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of %s: %w", svid.ID, err)
	}
	return &workload.X509SVID{
		SpiffeId:    svid.ID.String(),
		X509Svid:    slices.Concat(pair.Certificate...),
		X509SvidKey: key,
	}, nil
}

// federatedBundles returns the federated bundles in a new map, in the form of the API.
func (s *Server) federatedBundles() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string][]byte, len(s.federated)+1)
	for _, bundle := range s.federated {
		out[bundle.TrustDomain().IDString()] = concat(bundle)
	}
	return out
}

// concat returns the certificates of a bundle in the form of the API.
func concat(bundle *x509bundle.Bundle) []byte {
	var out []byte
	for _, ca := range bundle.X509Authorities() {
		out = append(out, ca.Raw...)
	}
	return out
}

// changes holds channels of which one is closed when a response is out of date.
// Server.changes must be called before the response is made.
type changes struct{ authority, federated <-chan struct{} }

func (s *Server) changes() changes {
	s.mu.Lock()
	defer s.mu.Unlock()
	return changes{authority: s.authority.Changed(), federated: s.changed}
}

// wait waits until a new response is due, and returns an error if ctx ends first.
func (c changes) wait(ctx context.Context, renew time.Duration) error {
	timer := time.NewTimer(renew)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-c.authority:
	case <-c.federated:
	case <-timer.C:
	}
	return nil
}

// checkHeader returns an error if the call lacks the metadata that browsers and confused
// proxies do not send (SPIFFE Workload Endpoint section 3).
func checkHeader(ctx context.Context) error {
	const name = "workload.spiffe.io"
	incoming, _ := metadata.FromIncomingContext(ctx)
	if got := incoming.Get(name); len(got) != 1 || got[0] != "true" {
		return status.Errorf(codes.InvalidArgument, "the metadata of the call lacks %s: true", name)
	}
	return nil
}

func checkUnary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	return handle(ctx, request)
}

func checkStream(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if err := checkHeader(stream.Context()); err != nil {
		return err
	}
	return handle(service, stream)
}
