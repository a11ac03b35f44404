package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ownIdentity is a directory as spiffe-helper writes it, and the provider that reads it.
type ownIdentity struct {
	t     *testing.T
	ca    testCA
	dir   string
	files *Files
}

func newOwnIdentity(t *testing.T) ownIdentity {
	t.Helper()
	l := ownIdentity{t: t, ca: newCA(t, "prod"), dir: t.TempDir()}
	svid := l.ca.issue(t, gatewayID)
	l.put("svid.pem", certPEM(svid))
	l.put("svid_key.pem", keyPEM(t, svid.PrivateKey))
	l.put("bundle.pem", caPEM(l.ca))
	files, err := LoadFiles(FileConfig{Dir: l.dir})
	if err != nil {
		t.Fatal(err)
	}
	l.files = files
	return l
}

func (l ownIdentity) put(name, content string) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, name), []byte(content), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// becomes checks that a reload takes the certificate over.
func (l ownIdentity) becomes(cert tls.Certificate, generation uint64) {
	l.t.Helper()
	changed, err := l.files.Reload()
	snap := l.files.Snapshot()
	if err != nil || !changed || snap.Generation() != generation || !bytes.Equal(snap.Certificate().Certificate[0], cert.Certificate[0]) {
		l.t.Errorf("changed %v, error %v, generation %d; want generation %d and the new certificate", changed, err, snap.Generation(), generation)
	}
}

// stays checks that a reload keeps the snapshot, and that its error contains the given
// texts. Without texts there must be no error.
func (l ownIdentity) stays(wants ...string) {
	l.t.Helper()
	before := l.files.Snapshot()
	changed, err := l.files.Reload()
	if changed || l.files.Snapshot() != before {
		l.t.Errorf("changed %v, want the same snapshot", changed)
	}
	if len(wants) > 0 {
		checkMessage(l.t, err, l.dir, wants)
	} else if err != nil {
		l.t.Error(err)
	}
}

// TestReloadTakesACompleteRotation checks that a reload keeps the old certificate until
// all files of a rotation are written.
func TestReloadTakesACompleteRotation(t *testing.T) {
	l := newOwnIdentity(t)
	l.stays()
	next := l.ca.issue(t, gatewayID)
	l.put("svid.pem", certPEM(next))
	for range 2 { // each reload tries again
		l.stays("key file DIR/svid_key.pem does not belong to the first certificate in DIR/svid.pem")
	}
	l.put("svid_key.pem", keyPEM(t, next.PrivateKey))
	l.becomes(next, 2)
	l.stays()
}

// TestBadBundleOfAnotherTrustDomainDoesNotDelayARenewal checks that an unusable bundle
// file of another trust domain does not prevent the gateway's own SVID from being
// renewed.
func TestBadBundleOfAnotherTrustDomainDoesNotDelayARenewal(t *testing.T) {
	l := newOwnIdentity(t)
	partner, path := newCA(t, "partner"), filepath.Join(t.TempDir(), "partner.pem")
	put := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(caPEM(partner))
	domain := spiffeid.RequireTrustDomainFromString("partner.example")
	var err error
	if l.files, err = LoadFiles(FileConfig{Dir: l.dir, Bundles: map[string]string{"partner.example": path}}); err != nil {
		t.Fatal(err)
	}
	foreign := newCA(t, "foreign", func(c *x509.Certificate) { c.URIs = append(c.URIs, mustURL(t, "spiffe://foreign.example")) })
	for _, row := range []struct {
		name  string
		spoil func()
		want  string
	}{
		{"a CA of another trust domain", func() { put(caPEM(partner, foreign)) }, `belongs to trust domain "foreign.example"`},
		{"a leaf", func() { put(certPEM(partner.issue(t, gatewayID))) }, "is not a CA"},
		{"garbage", func() { put("garbage") }, "is not PEM"},
		{"nothing", func() { put("") }, "is empty"},
		{"no file", func() { _ = os.Remove(path) }, "no such file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := l.files.Snapshot()
			row.spoil()
			wants := []string{row.want, `the last bundle of trust domain "partner.example" stays`}
			for range 2 {
				changed, err := l.files.Reload()
				if changed || l.files.Snapshot() != before {
					t.Error("a snapshot that says nothing new")
				}
				checkMessage(t, err, l.dir, wants)
			}
			next := l.ca.issue(t, gatewayID)
			l.put("svid_key.pem", keyPEM(t, next.PrivateKey))
			l.put("svid.pem", certPEM(next))
			changed, err := l.files.Reload()
			checkMessage(t, err, l.dir, wants)
			snap := l.files.Snapshot()
			if !changed || snap.Generation() != before.Generation()+1 || !bytes.Equal(snap.Certificate().Certificate[0], next.Certificate[0]) {
				t.Errorf("changed %v, generation %d after %d: our own SVID is not renewed", changed, snap.Generation(), before.Generation())
			}
			roots := x509.NewCertPool()
			roots.AddCert(partner.cert)
			if !snap.Roots(domain).Equal(roots) || !snap.SameTrust(before) {
				t.Error("the last bundle of partner.example is gone")
			}
		})
	}
	put(caPEM(newCA(t, "partner")))
	if changed, err := l.files.Reload(); err != nil || !changed || l.files.Snapshot().SameTrust(newSnapshot(t, 1, l.ca.issue(t, gatewayID), bundles{"prod.example": {l.ca}, "partner.example": {partner}})) {
		t.Errorf("a sound bundle is not taken: changed %v, %v", changed, err)
	}
}

func TestReloadOfUnusableFilesKeepsTheSnapshot(t *testing.T) {
	l := newOwnIdentity(t)
	good := map[string]string{}
	for _, name := range []string{"svid.pem", "svid_key.pem", "bundle.pem"} {
		data, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		good[name] = string(data)
	}
	two := caPEM(l.ca, newCA(t, "prod"))
	expired := l.ca.issue(t, gatewayID, valid(-2*time.Hour, -time.Hour))
	foreign := newCA(t, "foreign", func(c *x509.Certificate) { c.URIs = append(c.URIs, mustURL(t, "spiffe://foreign.example")) })
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"an empty certificate", map[string]string{"svid.pem": ""}, "certificate file DIR/svid.pem is empty"},
		{"half a bundle", map[string]string{"bundle.pem": good["bundle.pem"][:100]}, "bundle file DIR/bundle.pem: PEM block 1 is cut short or damaged"},
		{"a bundle without its second half", map[string]string{"bundle.pem": two[:len(two)-100]}, "bundle file DIR/bundle.pem: PEM block 2 is cut short or damaged"},
		{"a bundle that an editor marked as Unicode", map[string]string{"bundle.pem": "\ufeff" + caPEM(newCA(t, "prod"), l.ca)}, "bundle file DIR/bundle.pem: PEM block 1 is cut short or damaged"},
		{"a bundle that is indented", map[string]string{"bundle.pem": caPEM(l.ca) + " " + caPEM(newCA(t, "prod"))}, "bundle file DIR/bundle.pem: PEM block 2 is cut short or damaged"},
		{"two bundles without an end of line between", map[string]string{"bundle.pem": caPEM(l.ca) + strings.TrimSpace(caPEM(newCA(t, "prod"))) + caPEM(newCA(t, "prod"))}, "bundle file DIR/bundle.pem: PEM block 2 is cut short or damaged"},
		{"a bundle with a hole", map[string]string{"bundle.pem": two[:300] + two[400:]}, "bundle file DIR/bundle.pem: PEM block 1 is cut short or damaged"},
		{"a bundle that did not issue it", map[string]string{"bundle.pem": caPEM(newCA(t, "prod"))}, "bundle file DIR/bundle.pem: certificate was not issued"},
		{"a CA of another trust domain", map[string]string{"bundle.pem": caPEM(l.ca, foreign)}, `bundle file DIR/bundle.pem: CA "CN=CA foreign" belongs to trust domain "foreign.example"`},
		{"an expired certificate", map[string]string{"svid.pem": certPEM(expired), "svid_key.pem": keyPEM(t, expired.PrivateKey)}, "certificate file DIR/svid.pem: certificate expired"},
		{"files of two layouts", map[string]string{"tls.crt": "x"}, "directory DIR holds files of two layouts"},
		{"a file that is too large", map[string]string{"bundle.pem": strings.Repeat("x", maxFileBytes+1)}, "bundle file DIR/bundle.pem is larger"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := l
			l.t = t
			for name, content := range test.files {
				l.put(name, content)
			}
			l.stays(test.want)
			for name := range test.files {
				if good[name] == "" {
					if err := os.Remove(filepath.Join(l.dir, name)); err != nil {
						t.Fatal(err)
					}
					continue
				}
				l.put(name, good[name])
			}
			l.stays() // the files of the snapshot are there again
		})
	}
	if err := os.RemoveAll(l.dir); err != nil {
		t.Fatal(err)
	}
	l.stays("identity directory DIR: no such file")
}

// TestReloadFollowsASymlinkSwap checks a directory as a ConfigMap or a CSI driver mounts
// it: with links to ..data, which is a link itself.
func TestReloadFollowsASymlinkSwap(t *testing.T) {
	l := ownIdentity{t: t, ca: newCA(t, "prod"), dir: t.TempDir()}
	issue := func(version string) tls.Certificate {
		t.Helper()
		svid := l.ca.issue(t, gatewayID)
		if err := os.Mkdir(filepath.Join(l.dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		l.put(version+"/tls.crt", certPEM(svid))
		l.put(version+"/tls.key", keyPEM(t, svid.PrivateKey))
		l.put(version+"/ca.crt", caPEM(l.ca))
		next := filepath.Join(l.dir, "..data_tmp")
		if err := os.Symlink(version, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(l.dir, "..data")); err != nil {
			t.Fatal(err)
		}
		return svid
	}
	issue("..1")
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		if err := os.Symlink("..data/"+name, filepath.Join(l.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if l.files, err = LoadFiles(FileConfig{Dir: l.dir}); err != nil {
		t.Fatal(err)
	}
	l.becomes(issue("..2"), 2)
	l.becomes(issue("..3"), 3)
	l.stays()
}

func TestReloadFollowsFederatedBundles(t *testing.T) {
	l := newOwnIdentity(t)
	partner, next := newCA(t, "partner"), newCA(t, "next")
	l.put("partner.crt.pem", caPEM(partner))
	config := FileConfig{Dir: l.dir, Bundles: map[string]string{"partner.example": filepath.Join(l.dir, "partner.crt.pem")}}
	var err error
	if l.files, err = LoadFiles(config); err != nil {
		t.Fatal(err)
	}
	delete(config.Bundles, "partner.example") // the provider has its own copy of the map
	first := l.files.Snapshot()
	v := newVerifier(t, l.files)
	caller := parsed(t, next.issue(t, "spiffe://partner.example/x"))
	checkPeer(t, v.Verify(caller), Untrusted, "not issued by")
	l.put("partner.crt.pem", caPEM(partner, next))
	if changed, err := l.files.Reload(); err != nil || !changed {
		t.Errorf("changed %v, %v", changed, err)
	}
	checkPeer(t, v.Verify(caller), Verified, "")
	if first.SameTrust(l.files.Snapshot()) {
		t.Error("the new CA is not seen as a change of trust")
	}
}

func TestCertificateIsTakenWhenItBecomesValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newOwnIdentity(t)
		next := l.ca.issue(t, gatewayID, valid(time.Minute, time.Hour))
		l.put("svid.pem", certPEM(next))
		l.put("svid_key.pem", keyPEM(t, next.PrivateKey))
		l.stays("certificate file DIR/svid.pem: certificate is not valid before")
		pass(2 * time.Minute)
		l.becomes(next, 2)
		pass(2 * time.Hour) // the certificate has expired, and the files have no other
		l.stays()
	})
}

// TestReloadWhileTheFilesAreWritten checks that no reload mixes the files of two
// rotations while a writer never pauses, and that one reload is enough when the writer
// stops.
func TestReloadWhileTheFilesAreWritten(t *testing.T) {
	l := newOwnIdentity(t)
	other := newCA(t, "other")
	svids := []tls.Certificate{l.ca.issue(t, gatewayID), other.issue(t, gatewayID)}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			svid, ca := svids[i%2], []testCA{l.ca, other}[i%2]
			l.put("bundle.pem", caPEM(ca))
			l.put("svid_key.pem", keyPEM(t, svid.PrivateKey))
			l.put("svid.pem", certPEM(svid))
		}
	})
	wg.Go(func() {
		for last := uint64(0); ; {
			select {
			case <-stop:
				return
			default:
			}
			got := l.files.Snapshot().Generation()
			if got < last {
				t.Errorf("generation %d after %d", got, last)
			}
			last = got
		}
	})
	for range 200 {
		_, _ = l.files.Reload() // most reloads find the directory half written
		snap := l.files.Snapshot()
		if _, err := snap.trusted.bundles[snap.TrustDomain()].issued(parsed(t, *snap.Certificate()), time.Now()); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	if _, err := l.files.Reload(); err != nil {
		t.Error(err)
	}
}

// BenchmarkReloadUnchanged measures what a poll costs.
func BenchmarkReloadUnchanged(b *testing.B) {
	ca := newCA(b, "prod")
	svid := ca.issue(b, gatewayID)
	raw, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for name, content := range map[string]string{"svid.pem": certPEM(svid), "svid_key.pem": block("PRIVATE KEY", raw), "bundle.pem": caPEM(ca)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	files, err := LoadFiles(FileConfig{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if changed, err := files.Reload(); changed || err != nil {
			b.Fatal(changed, err)
		}
	}
}

// TestFileThatChangesDuringAReload checks that a file which changes after the first
// reading of a reload is used in its new form.
func TestFileThatChangesDuringAReload(t *testing.T) {
	l := newOwnIdentity(t)
	first, err := l.files.config.read()
	if err != nil {
		t.Fatal(err)
	}
	l.put("bundle.pem", caPEM(l.ca, newCA(t, "next")))
	settled, err := l.files.config.repeat(first)
	if err != nil || settled.digest == first.digest || string(settled.bundle.data) == string(first.bundle.data) {
		t.Errorf("the first reading was taken: %v", err)
	}
}
