package identity_test

import (
	"crypto/x509"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
)

// TestTheAuthorityMintsWhatIsLoadedAndVerified checks that an SVID of the development
// authority is loaded as the gateway's identity and verified as a caller's, and that its
// DNS names make a web certificate of it.
func TestTheAuthorityMintsWhatIsLoadedAndVerified(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("demo.example")
	ca, err := authority.New(authority.Config{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	gateway := mint(t, ca, "/gateway", "localhost", "127.0.0.1")
	caller := mint(t, ca, "/ns/ci/sa/builder")
	dir := t.TempDir()
	if err := gateway.WriteDir(dir, ca.Bundle()); err != nil {
		t.Fatal(err)
	}

	source, err := identity.LoadFiles(identity.FileConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if got := source.Snapshot().ID(); got != gateway.ID {
		t.Errorf("we are %s, want %s", got, gateway.ID)
	}
	verifier, err := identity.NewVerifier(source)
	if err != nil {
		t.Fatal(err)
	}
	if got := verifier.Verify([]*x509.Certificate{caller.TLS().Leaf}); got.Cause != identity.Verified || got.ID != caller.ID {
		t.Errorf("got %+v, want %s", got, caller.ID)
	}
	if _, err := identity.LoadWebCertificate(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem")); err != nil {
		t.Error(err)
	}
}

func mint(t *testing.T, ca *authority.Authority, path string, dns ...string) *authority.SVID {
	t.Helper()
	svid, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromPath(ca.TrustDomain(), path), DNS: dns})
	if err != nil {
		t.Fatal(err)
	}
	return svid
}
