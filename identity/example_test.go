package identity_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
)

// A gateway reads its own SVID and its trust bundles from a directory, and identifies
// its callers by their certificates. A caller without a certificate does not fail in the
// handshake, so that the gateway can answer it with the reason.
func Example() {
	dir, err := os.MkdirTemp("", "identity")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	builder, err := mintBoth(dir)
	if err != nil {
		fmt.Println(err)
		return
	}

	source, err := identity.LoadFiles(identity.FileConfig{Dir: dir})
	if err != nil {
		fmt.Println(err)
		return
	}
	verifier, err := identity.NewVerifier(source)
	if err != nil {
		fmt.Println(err)
		return
	}
	config, err := identity.ServerConfig{Provider: source, Verifier: verifier}.TLS()
	if err != nil {
		fmt.Println(err)
		return
	}

	for _, certificates := range [][]tls.Certificate{{builder}, nil} {
		peer, err := handshake(config, verifier, certificates)
		switch {
		case err != nil:
			fmt.Println(err)
		case peer.Cause == identity.Verified:
			fmt.Println("the caller is", peer.ID)
		default:
			fmt.Println("the caller is nobody:", peer.Cause)
		}
	}

	// Output:
	// the caller is spiffe://prod.example/ns/ci/sa/builder
	// the caller is nobody: missing
}

// mintBoth puts a gateway's SVID and bundle into a directory, and returns the SVID of a
// caller. In production SPIRE or another implementation does so.
func mintBoth(dir string) (tls.Certificate, error) {
	ca, err := authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("prod.example")})
	if err != nil {
		return tls.Certificate{}, err
	}
	gateway, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromString("spiffe://prod.example/gateway")})
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := gateway.WriteDir(dir, ca.Bundle()); err != nil {
		return tls.Certificate{}, err
	}
	builder, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder")})
	if err != nil {
		return tls.Certificate{}, err
	}
	return builder.TLS(), nil
}

// handshake connects a client with these certificates to a server with the
// configuration, and returns who the server says that the client is.
func handshake(config *tls.Config, verifier *identity.Verifier, certificates []tls.Certificate) (identity.Peer, error) {
	clientEnd, serverEnd := net.Pipe()
	client := tls.Client(clientEnd, &tls.Config{
		Certificates: certificates, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, // what the client thinks of the server is not shown here
	})
	server := tls.Server(serverEnd, config)
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	if err := server.Handshake(); err != nil {
		return identity.Peer{}, err
	}
	if err := <-shaken; err != nil {
		return identity.Peer{}, err
	}
	peer := verifier.Peer(server.ConnectionState())
	_, _ = clientEnd.Close(), serverEnd.Close()
	return peer, nil
}
