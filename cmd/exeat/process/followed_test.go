package process

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/gateway"
)

// TestAWebCertificateIsRenewed renames a new certificate and its key into place, as an
// ACME client does, and connects until the new certificate is presented.
func TestAWebCertificateIsRenewed(t *testing.T) {
	ca, dir := newTestAuthority(t), t.TempDir()
	mint(t, ca, filepath.Join(dir, "own"), "own.example")
	mint(t, ca, filepath.Join(dir, "web"), "first.example")
	mint(t, ca, filepath.Join(dir, "next"), "second.example")
	cfg := configured(t, write(t, "policy.yaml", goodPolicy))
	cfg.Identity = &identity.FileConfig{Dir: filepath.Join(dir, "own")}
	cfg.Listeners = []config.Listener{{
		Listener:       gateway.Listener{Name: "web", Address: "127.0.0.1:0", Identity: gateway.MTLS},
		WebCertificate: filepath.Join(dir, "web", "svid.pem"), WebKey: filepath.Join(dir, "web", "svid_key.pem"),
	}}
	p, err := Open(t.Context(), cfg, options())
	if err != nil {
		t.Fatal(err)
	}
	serve(t, p, nil)
	presented := func() string {
		conn, err := tls.Dial("tcp", p.Listening()[0].Addr.String(), &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if got := presented(); got != "first.example" {
		t.Fatalf("presents %s, want first.example", got)
	}
	for _, name := range []string{"svid_key.pem", "svid.pem"} {
		if err := os.Rename(filepath.Join(dir, "next", name), filepath.Join(dir, "web", name)); err != nil {
			t.Fatal(err)
		}
	}
	held := p.inputs.webs[0]
	eventually(t, "the new certificate is taken", func() bool { return held.Certificate().Leaf.DNSNames[0] == "second.example" })
	if got := presented(); got != "second.example" {
		t.Errorf("presents %s, want second.example", got)
	}
	if got := p.inputs.reloads.loaded.Load(); got != 3 {
		t.Errorf("%d identities and certificates are loaded, want the own one and two of the listener", got)
	}
}
