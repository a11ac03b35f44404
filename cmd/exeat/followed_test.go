package main

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
)

// TestAWebCertificateIsRenewed renames a new certificate and its key into place,
// as an ACME client does, and connects until the new one is presented.
func TestAWebCertificateIsRenewed(t *testing.T) {
	const patience = 20 * time.Second
	ca, dir := newTestAuthority(t), t.TempDir()
	mint := func(into, name string) {
		svid, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromString("spiffe://td.example/gateway"), DNS: []string{name}})
		if err != nil {
			t.Fatal(err)
		}
		if err := svid.WriteDir(filepath.Join(dir, into), ca.Bundle()); err != nil {
			t.Fatal(err)
		}
	}
	mint("own", "own.example")
	mint("web", "first.example")
	mint("next", "second.example")
	cfg := config.Defaults()
	cfg.Policy, cfg.DrainDelay = []string{write(t, "policy.yaml", goodPolicy)}, 0
	cfg.Identity = &identity.FileConfig{Dir: filepath.Join(dir, "own")}
	cfg.Listeners = []config.Listener{{
		Name: "web", Address: "127.0.0.1:0", Identity: config.MTLS,
		WebCertificate: filepath.Join(dir, "web", "svid.pem"), WebKey: filepath.Join(dir, "web", "svid_key.pem"),
	}}
	g, err := newGateway(t.Context(), cfg, io.Discard, func(string) string { return "" }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := g.serve(ctx, nil); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		serving.Wait()
	})
	presented := func() string {
		conn, err := tls.Dial("tcp", g.listeners[0].Addr().String(), &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
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
	held, ok := g.webs[0].files.(*identity.WebCertificate)
	if !ok {
		t.Fatal("what is followed is no web certificate")
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); held.Certificate().Leaf.DNSNames[0] != "second.example"; <-tick.C {
		if time.Since(begin) > patience {
			t.Fatal("the new certificate is not taken")
		}
	}
	if got := presented(); got != "second.example" {
		t.Errorf("presents %s, want second.example", got)
	}
}
