package workload_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
)

func optionsOf(a *authority.Authority, path string) authority.Options {
	return authority.Options{ID: spiffeid.RequireFromPath(a.TrustDomain(), path)}
}

// gateway answers handshakes as the data plane does.
type gateway struct {
	config   *tls.Config
	verifier *identity.Verifier
}

func newGateway(t *testing.T, src identity.Provider) gateway {
	t.Helper()
	verifier, err := identity.NewVerifier(src)
	if err != nil {
		t.Fatal(err)
	}
	config, err := identity.ServerConfig{Provider: src, Verifier: verifier}.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return gateway{config: config, verifier: verifier}
}

// handshake connects a caller. Each side verifies the other with the bundles of its own
// agent. It returns the peer that the gateway saw, with its certificates.
func (g gateway) handshake(t *testing.T, caller identity.Provider) (identity.Peer, []*x509.Certificate, error) {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	done := make(chan error, 1)
	server := tls.Server(far, g.config)
	go func() {
		defer far.Close()
		done <- server.HandshakeContext(t.Context())
	}()
	snap := caller.Snapshot()
	client := tls.Client(near, &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does it, because an SVID has no host name
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return snap.Certificate(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, td := range snap.TrustDomains() {
				leaf := cs.PeerCertificates[0]
				if id, err := x509svid.IDFromCert(leaf); err == nil && id.TrustDomain() == td {
					_, err := leaf.Verify(x509.VerifyOptions{Roots: snap.Roots(td)})
					return err
				}
			}
			return errors.New("gateway of a trust domain that is not trusted")
		},
	})
	err := errors.Join(client.HandshakeContext(t.Context()), <-done)
	state := server.ConnectionState()
	return g.verifier.Peer(state), state.PeerCertificates, err
}

// TestACARollInterruptsNobody checks that no handshake fails while the CA is replaced.
// Gateway and caller have an agent each, and the agents learn of each step at different
// times.
func TestACARollInterruptsNobody(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "prod.example")
	var followers [2]follower
	for i, path := range []string{"/gateway", "/caller"} {
		socket := socketPath(t)
		serve(t, newServer(t, a, path, 0), socket)
		followers[i] = follow(t, socket)
	}
	g, caller := newGateway(t, followers[0]), followers[1]
	peer, live, err := g.handshake(t, caller)
	if err != nil || peer.Cause != identity.Verified {
		t.Fatalf("%+v, %v", peer, err)
	}

	succeeded := make(chan struct{})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			if peer, _, err := g.handshake(t, caller); err != nil || peer.Cause != identity.Verified {
				t.Errorf("%+v, %v", peer, err)
			}
			select {
			case succeeded <- struct{}{}:
			case <-stop:
				return
			}
		}
	}()
	step := func(take func() error) {
		t.Helper()
		if err := take(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			<-succeeded // a handshake has succeeded during the step
		}
		want := poolOf(a.X509Bundle())
		signing := a.X509Bundle().X509Authorities()[0]
		for _, f := range followers {
			f.until(t, func(snap *identity.Snapshot) bool {
				return snap.Roots(a.TrustDomain()).Equal(want) && snap.Certificate().Leaf.CheckSignatureFrom(signing) == nil
			})
		}
		for range 3 {
			<-succeeded
		}
	}
	step(a.Prepare)
	step(a.Activate)
	if !g.verifier.Trusts(live) {
		t.Error("a live tunnel of the old CA lost its trust while the CA was in the bundle")
	}
	step(a.Retire)
	if g.verifier.Trusts(live) {
		t.Error("a live tunnel of a CA that left the bundle is still trusted")
	}
	if peer := g.verifier.Verify(live); peer.Cause != identity.Untrusted {
		t.Errorf("a certificate of the old CA is %v", peer.Cause)
	}
	close(stop)
	<-stopped
}

func poolOf(bundle *x509bundle.Bundle) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range bundle.X509Authorities() {
		pool.AddCert(ca)
	}
	return pool
}

func TestTwoTrustDomainsFederateBothWays(t *testing.T) {
	t.Parallel()
	prod, partner := newAuthority(t, "prod.example"), newAuthority(t, "partner.example")
	prodSocket, partnerSocket := socketPath(t), socketPath(t)
	prodServer, partnerServer := newServer(t, prod, "/gateway", 0), newServer(t, partner, "/caller", 0)
	serve(t, prodServer, prodSocket)
	serve(t, partnerServer, partnerSocket)
	ours, theirs := follow(t, prodSocket), follow(t, partnerSocket)
	g, back := newGateway(t, ours), newGateway(t, theirs)

	stranger := []*x509.Certificate{theirs.Snapshot().Certificate().Leaf}
	if peer := g.verifier.Verify(stranger); peer.Cause != identity.Untrusted {
		t.Errorf("before the federation: %+v", peer)
	}
	exchange := func() {
		t.Helper()
		if err := errors.Join(prodServer.SetFederated(partner.X509Bundle()), partnerServer.SetFederated(prod.X509Bundle())); err != nil {
			t.Fatal(err)
		}
		for f, td := range map[*follower]*authority.Authority{&ours: partner, &theirs: prod} {
			want := poolOf(td.X509Bundle())
			f.until(t, func(s *identity.Snapshot) bool { return s.Roots(td.TrustDomain()).Equal(want) })
		}
	}
	exchange()
	check := func() (live []*x509.Certificate) {
		t.Helper()
		for _, row := range []struct {
			gateway gateway
			caller  follower
		}{{g, theirs}, {back, ours}} {
			peer, certs, err := row.gateway.handshake(t, row.caller)
			if err != nil || peer.ID != row.caller.Snapshot().ID() {
				t.Errorf("%s: %+v, %v", row.caller.Snapshot().ID(), peer, err)
			}
			if live == nil {
				live = certs
			}
		}
		return live
	}
	live := check()

	// The partner replaces its CA, and the gateway's agent learns of each step.
	for _, take := range []func() error{partner.Prepare, partner.Activate} {
		if err := take(); err != nil {
			t.Fatal(err)
		}
		exchange()
	}
	theirs.until(t, func(s *identity.Snapshot) bool {
		return s.Certificate().Leaf.CheckSignatureFrom(partner.X509Bundle().X509Authorities()[0]) == nil
	})
	check()
	if !g.verifier.Trusts(live) {
		t.Error("a live tunnel lost its trust in the middle of a roll")
	}
	if err := partner.Retire(); err != nil {
		t.Fatal(err)
	}
	exchange()
	check()
	if g.verifier.Trusts(live) {
		t.Error("a live tunnel of a retired CA of the partner is still trusted")
	}
}
