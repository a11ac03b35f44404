package authority

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func trustDomain() spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("demo.example") }

func workload() spiffeid.ID { return spiffeid.RequireFromPath(trustDomain(), "/ns/ci/sa/builder") }

func newAuthority(t *testing.T, lifetime time.Duration) *Authority {
	t.Helper()
	a, err := New(Config{TrustDomain: trustDomain(), CALifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTheAuthorityFollowsTheStandard(t *testing.T) {
	a := newAuthority(t, 0)
	ca := a.X509Bundle().X509Authorities()[0]
	if !ca.IsCA || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || len(ca.ExtKeyUsage) != 0 {
		t.Errorf("CA %v, key usage %b, extended %v", ca.IsCA, ca.KeyUsage, ca.ExtKeyUsage)
	}
	if len(ca.URIs) != 1 || ca.URIs[0].String() != "spiffe://demo.example" {
		t.Errorf("URI SANs %v", ca.URIs)
	}
	if got := time.Until(ca.NotAfter).Round(time.Minute); got != DefaultCALifetime {
		t.Errorf("lifetime %s, want %s", got, DefaultCALifetime)
	}
	if block, _ := pem.Decode(a.Bundle()); block == nil || !slices.Equal(block.Bytes, ca.Raw) {
		t.Error("Bundle is not the certificate of the authority")
	}
}

func TestMintedSVIDFollowsTheStandard(t *testing.T) {
	a := newAuthority(t, 0)
	svid, err := a.Mint(Options{ID: workload(), DNS: []string{"localhost", "*.proxy.example", "127.0.0.1", "::1"}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(svid.Certificate, svid.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := pair.Leaf
	id, _, err := x509svid.Verify([]*x509.Certificate{leaf}, a.X509Bundle())
	if err != nil || id != workload() || svid.ID != workload() {
		t.Errorf("go-spiffe reads %v, %v", id, err)
	}
	if got := leaf.Subject.String(); got != `O=exeat authority\, not for production` || got == leaf.Issuer.String() {
		t.Errorf("subject %q, issuer %q", got, leaf.Issuer)
	}
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("CA %v, key usage %b", leaf.IsCA, leaf.KeyUsage)
	}
	if diff := cmp.Diff(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"localhost", "a.proxy.example", "127.0.0.1", "::1"} {
		if err := leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if key, ok := svid.TLS().PrivateKey.(*ecdsa.PrivateKey); !ok || key.Curve.Params().BitSize != 256 || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("TLS does not hold the P-256 key of the certificate")
	}
	if block, _ := pem.Decode(svid.Key); block.Type != "PRIVATE KEY" {
		t.Errorf("key is a %s, want PKCS #8", block.Type)
	}
	if got := time.Until(svid.NotAfter).Round(time.Minute); got != DefaultLifetime {
		t.Errorf("lifetime %s, want %s", got, DefaultLifetime)
	}
	if !leaf.NotBefore.Before(time.Now().Add(-backdate / 2)) {
		t.Errorf("begins %s, want it backdated", leaf.NotBefore)
	}
}

func TestSerialNumbersAreLongAndDiffer(t *testing.T) {
	a := newAuthority(t, 0)
	seen := map[string]bool{}
	longest := 0
	for range 20 {
		svid, err := a.Mint(Options{ID: workload()})
		if err != nil {
			t.Fatal(err)
		}
		serial := svid.TLS().Leaf.SerialNumber
		seen[serial.String()] = true
		longest = max(longest, serial.BitLen())
	}
	if len(seen) != 20 || longest < 127 {
		t.Errorf("%d of 20 serial numbers are different, the longest has %d bits", len(seen), longest)
	}
}

func TestMintRefuses(t *testing.T) {
	a := newAuthority(t, time.Hour)
	id := workload()
	dns := func(names ...string) Options { return Options{ID: id, DNS: names} }
	for _, test := range []struct {
		name    string
		options Options
		want    string
	}{
		{"no ID", Options{}, "needs a SPIFFE ID"},
		{"the ID of another trust domain", Options{ID: spiffeid.RequireFromString("spiffe://demo.example.evil/x")}, "not in trust domain demo.example"},
		{"the ID of the trust domain", Options{ID: trustDomain().ID()}, "is a trust domain"},
		{"a lifetime beyond the CA's", Options{ID: id, Lifetime: 2 * time.Hour}, "ends after the authority"},
		{"a negative lifetime", Options{ID: id, Lifetime: -1}, "is negative"},
		{"an empty name", dns("ok.example", ""), "DNS name"},
		{"an empty label", dns("a..example"), "DNS name"},
		{"a final dot", dns("a.example."), "DNS name"},
		{"a label of 64", dns(strings.Repeat("a", 64) + ".example"), "DNS name"},
		{"a name of 254", dns(strings.Repeat("a.", 127)), "DNS name"},
		{"a hyphen at the edge", dns("-a.example"), "DNS name"},
		{"a wildcard inside", dns("a.*.example"), "DNS name"},
		{"a wildcard over everything", dns("*"), "DNS name"},
		{"a wildcard over a top level", dns("*.example"), "DNS name"},
		{"a port", dns("a.example:443"), "DNS name"},
		{"a URL", dns("https://a.example"), "DNS name"},
		{"non-ASCII", dns("ä.example"), "DNS name"},
		{"a newline", dns("a\nb.example"), "DNS name"},
		{"an address that is none", dns("127.0.0.256"), "no IP address"},
		{"an address with a zone", dns("fe80::1%eth0"), "DNS name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			svid, err := a.Mint(test.options)
			if err == nil || svid != nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want an error with %q", err, test.want)
			}
		})
	}
	for _, config := range []Config{{}, {TrustDomain: trustDomain(), CALifetime: -1}} {
		if _, err := New(config); err == nil {
			t.Errorf("no error for %+v", config)
		}
	}
}

func TestNoSVIDOutlivesTheAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, 90*time.Minute)
		<-time.After(time.Hour)
		svid, err := a.Mint(Options{ID: workload()})
		if err != nil {
			t.Fatal(err)
		}
		if !svid.NotAfter.Equal(a.NotAfter()) {
			t.Errorf("the SVID expires %s, want %s like the authority", svid.NotAfter, a.NotAfter())
		}
		<-time.After(time.Hour)
		if _, err := a.Mint(Options{ID: workload()}); err == nil || !strings.Contains(err.Error(), "the authority expired") {
			t.Errorf("got %v, want an error", err)
		}
	})
}

// usualUmask sets the umask to 022 until the test ends.
func usualUmask(t *testing.T) {
	t.Helper()
	before := syscall.Umask(0o022)
	t.Cleanup(func() { syscall.Umask(before) })
}

func TestOpenMakesAnAuthorityOnceAndKeepsIt(t *testing.T) {
	usualUmask(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	first, err := Open(dir, trustDomain())
	if err != nil {
		t.Fatal(err)
	}
	second, err := Open(dir, trustDomain())
	if err != nil {
		t.Fatal(err)
	}
	if string(first.Bundle()) != string(second.Bundle()) || second.TrustDomain() != trustDomain() {
		t.Error("the second Open got another authority")
	}
	svid, err := second.Mint(Options{ID: workload()})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify([]*x509.Certificate{svid.TLS().Leaf}, first.X509Bundle()); err != nil {
		t.Error(err)
	}
	checkMode(t, dir, 0o755)
	checkMode(t, filepath.Join(dir, caFile), 0o644)
	checkMode(t, filepath.Join(dir, caKeyFile), 0o600)
	checkNames(t, dir, caFile, caKeyFile)
}

func TestConcurrentOpensMakeOneAuthority(t *testing.T) {
	const many = 16
	dir := t.TempDir()
	var opening sync.WaitGroup
	bundles := make([]string, many)
	for i := range many {
		opening.Go(func() {
			a, err := Open(dir, trustDomain())
			if err != nil {
				t.Error(err)
				return
			}
			bundles[i] = string(a.Bundle())
		})
	}
	opening.Wait()
	stored, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		t.Fatal(err)
	}
	for i, bundle := range bundles {
		if bundle != string(stored) {
			t.Errorf("caller %d has another authority than the directory", i)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	foreign := func(t *testing.T, dir, name string) {
		t.Helper()
		other := t.TempDir()
		if _, err := Open(other, trustDomain()); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(other, name))
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir, name, string(data))
	}
	for _, test := range []struct {
		name   string
		spoil  func(t *testing.T, dir string)
		domain string
		want   string
	}{
		{"an authority of another trust domain", func(*testing.T, string) {}, "other.example", `it is for "spiffe://demo.example", not for spiffe://other.example`},
		{"an authority without its key", func(t *testing.T, dir string) { t.Helper(); remove(t, dir, caKeyFile) }, "demo.example", "ca.pem without ca_key.pem"},
		{"an authority without its certificate", func(t *testing.T, dir string) { t.Helper(); remove(t, dir, caFile) }, "demo.example", "ca_key.pem without ca.pem"},
		{"an authority with another key", func(t *testing.T, dir string) { t.Helper(); foreign(t, dir, caKeyFile) }, "demo.example", "key does not belong"},
		{"an empty certificate", func(t *testing.T, dir string) { t.Helper(); put(t, dir, caFile, "") }, "demo.example", "not PEM"},
		{"a broken certificate", func(t *testing.T, dir string) {
			t.Helper()
			put(t, dir, caFile, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
		}, "demo.example", "parsing its certificate"},
		{"a broken key", func(t *testing.T, dir string) {
			t.Helper()
			put(t, dir, caKeyFile, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
		}, "demo.example", "parsing its key"},
		{"a workload's certificate", func(t *testing.T, dir string) {
			t.Helper()
			svid, err := newAuthority(t, 0).Mint(Options{ID: workload()})
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, caFile, string(svid.Certificate))
			put(t, dir, caKeyFile, string(svid.Key))
		}, "demo.example", "not that of a SPIFFE authority"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := Open(dir, trustDomain()); err != nil {
				t.Fatal(err)
			}
			test.spoil(t, dir)
			a, err := Open(dir, spiffeid.RequireTrustDomainFromString(test.domain))
			if err == nil || a != nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, %v; want an error with %q", a, err, test.want)
			}
		})
	}
	if _, err := Open("", trustDomain()); err == nil {
		t.Error("no error without a directory")
	}
	if _, err := Open(t.TempDir(), spiffeid.TrustDomain{}); err == nil {
		t.Error("no error without a trust domain")
	}
}

func TestOpenRefusesAnExpiredAuthority(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		if _, err := Open(dir, trustDomain()); err != nil {
			t.Fatal(err)
		}
		<-time.After(storedCALifetime + time.Hour)
		if _, err := Open(dir, trustDomain()); err == nil || !strings.Contains(err.Error(), "it expired") {
			t.Errorf("got %v, want an error", err)
		}
	})
}

func TestWriteDirReplacesTheFiles(t *testing.T) {
	usualUmask(t)
	a := newAuthority(t, 0)
	dir := filepath.Join(t.TempDir(), "gateway")
	for range 2 {
		svid, err := a.Mint(Options{ID: workload()})
		if err != nil {
			t.Fatal(err)
		}
		if err := svid.WriteDir(dir, a.Bundle()); err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem"))
		if err != nil || !pair.Leaf.Equal(svid.TLS().Leaf) {
			t.Errorf("read back %v, %v", pair.Leaf, err)
		}
		bundle, err := os.ReadFile(filepath.Join(dir, "bundle.pem"))
		if err != nil || string(bundle) != string(a.Bundle()) {
			t.Errorf("read back %q, %v", bundle, err)
		}
		if err := svid.WriteDir(dir, nil); err == nil {
			t.Error("no error without a bundle")
		}
	}
	checkMode(t, dir, 0o755)
	checkMode(t, filepath.Join(dir, "bundle.pem"), 0o644)
	checkMode(t, filepath.Join(dir, "svid.pem"), 0o644)
	checkMode(t, filepath.Join(dir, "svid_key.pem"), 0o600)
	checkNames(t, dir, "bundle.pem", "svid.pem", "svid_key.pem")
}

func TestWriteDirLeavesNothingBehindWhenItCannotWrite(t *testing.T) {
	a := newAuthority(t, 0)
	svid, err := a.Mint(Options{ID: workload()})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bundle.pem"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := svid.WriteDir(dir, a.Bundle()); err == nil {
		t.Error("no error over a directory named bundle.pem")
	}
	checkNames(t, dir, "bundle.pem")
	if err := svid.WriteDir(filepath.Join(os.DevNull, "x"), a.Bundle()); err == nil {
		t.Error("no error below a device")
	}
}

// TestMintedSVIDsWorkOverTLS checks a handshake in which both sides present a minted
// SVID and verify the other with the bundle.
func TestMintedSVIDsWorkOverTLS(t *testing.T) {
	a := newAuthority(t, 0)
	server, err := a.Mint(Options{ID: workload(), DNS: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Bundle())
	left, right := net.Pipe()
	defer left.Close()
	done := make(chan error, 1)
	go func() {
		defer right.Close()
		done <- tls.Server(right, &tls.Config{
			Certificates: []tls.Certificate{server.TLS()}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
			SessionTicketsDisabled: true, // the client does not read a ticket from the pipe
		}).HandshakeContext(t.Context())
	}()
	client := tls.Client(left, &tls.Config{Certificates: []tls.Certificate{server.TLS()}, RootCAs: roots, ServerName: "localhost"})
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func checkMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != want {
		t.Errorf("%s has mode %o, want %o", filepath.Base(path), got, want)
	}
}

func checkNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
}
