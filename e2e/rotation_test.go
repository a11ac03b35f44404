package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestAuthorityRemoved removes one of two authorities from the bundle file.
func TestAuthorityRemoved(t *testing.T) {
	t.Parallel()
	s := newReloadSite(t)
	second := newAuthority(t, "prod.example")
	second.mint(t, "builder", time.Hour, "URI:"+builder)
	pem := func(a authority) string {
		data, err := os.ReadFile(filepath.Join(a.dir, "ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	both := pem(s.authority) + pem(second)
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	putFile(t, bundle, both)
	write(t, s.dir, map[string]string{"policy.yaml": s.allowing("allowed.example")})
	p := s.serveConfig(t, strings.Replace(siteConfig, "bundle: ca.pem", "bundle: "+bundle, 1))
	client := s.client(t, "builder")
	client.Certificates = second.pair(t, "builder")
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	conn, err := tls.Dial("tcp", p.listening(t, "mtls").String(), client)
	if err != nil {
		t.Fatal(err)
	}
	goes, stays := s.openOn(t, conn, "allowed.example"), s.open(t, p, "builder", "allowed.example")
	goes.works(t)
	if status, _ := s.statusBy(t, p, client, "allowed.example"); status != http.StatusOK {
		t.Fatalf("before: %d", status)
	}
	p.closed(t, 0)

	if leases(bundle) { // writes half of the file, and stays open for longer than the gateway waits for quiet
		f, err := os.Create(bundle)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(f, pem(s.authority))
		p.stderr.until(t, "the note of a writer", func(text string) bool { return strings.Contains(text, "bundle.pem is open for writing") })
		_, _ = io.WriteString(f, pem(second))
		_ = f.Close()
		goes.works(t)
	}
	replaceFile(t, bundle, pem(s.authority))
	goes.ends(t)
	if r := p.closed(t, 1); r.CloseReason != "revoked" || r.Reason != "identity-untrusted" {
		t.Errorf("the tunnel ended with %+v", r)
	}
	stays.works(t)
	for _, name := range []string{"a stored TLS session", "another connection"} {
		status, resumed := s.statusBy(t, p, client, "allowed.example")
		if status != http.StatusProxyAuthRequired || resumed {
			t.Errorf("%s: %d, resumed %v", name, status, resumed)
		}
	}
	p.recorded(t, "the reason", 1, func(r record) bool { return r.Reason == "identity-untrusted" && r.Status == 407 })
	_ = stays.Close()
	p.stop(t, 2)
	if n := strings.Count(p.stdout.String(), `"event":"identity.rotate"`); n != 1 {
		t.Errorf("%d rotations are recorded, want 1", n)
	}
}

// TestExpiredSVID keeps a tunnel open until the SVID of its caller has expired.
func TestExpiredSVID(t *testing.T) {
	for _, closes := range []bool{false, true} {
		t.Run(fmt.Sprintf("close_at_svid_expiry %v", closes), func(t *testing.T) {
			t.Parallel()
			r := newRotation(t, time.Hour, fmt.Sprintf("close_at_svid_expiry: %v", closes))
			client := r.client(t, 1500*time.Millisecond)
			conn, err := tls.Dial("tcp", r.process.listening(t, "mtls").String(), client)
			if err != nil {
				t.Fatal(err)
			}
			tunnel := r.openOn(t, conn, "allowed.example")
			tunnel.works(t)
			<-time.After(time.Until(client.Certificates[0].Leaf.NotAfter))
			if closes {
				tunnel.ends(t)
				if c := r.process.closed(t, 0); c.CloseReason != "revoked" || c.Reason != "identity-expired" {
					t.Errorf("the tunnel ended with %+v", c)
				}
			}
			eventually(t, "407", func() bool {
				status, _ := r.statusBy(t, r.process, client, "allowed.example")
				return status == http.StatusProxyAuthRequired
			})
			r.process.recorded(t, "the reason", 0, func(rec record) bool {
				return rec.Reason == "identity-expired" && rec.Status == 407
			})
			if !closes {
				tunnel.works(t)
			}
		})
	}
}

// TestWorkloadAPIGone stops the Workload API for longer than the gateway's SVID is valid.
func TestWorkloadAPIGone(t *testing.T) {
	t.Parallel() // it mostly waits
	r := newRotation(t, time.Second, "")
	client := r.client(t, time.Hour)
	kept := r.openOn(t, r.dialTLS(t, client), "allowed.example")
	if code, text := r.admin(t, "readyz"); code != http.StatusOK {
		t.Fatalf("not ready at first: %s", text)
	}
	if left := r.secondsLeft(t); left <= 0 || left > 2 {
		t.Errorf("%f seconds left at first", left)
	}
	r.kill()
	r.process.stderr.line(t, regexp.MustCompile(`the Workload API is gone`))
	eventually(t, "not ready", func() bool {
		code, text := r.admin(t, "readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(text, "identity: expired ")
	})
	if code, _ := r.admin(t, "livez"); code != http.StatusOK {
		t.Errorf("not alive: %d", code)
	}
	if left := r.secondsLeft(t); left >= 0 {
		t.Errorf("%f seconds left after it expired", left)
	}
	if _, err := tls.Dial("tcp", r.process.listening(t, "mtls").String(), client); !isExpired(err) {
		t.Errorf("a client that verifies the certificate gets %v, want an expired certificate", err)
	}
	kept.works(t)

	r.startAgent(t)
	r.process.stderr.line(t, regexp.MustCompile(`the Workload API is back`))
	eventually(t, "ready", func() bool {
		code, _ := r.admin(t, "readyz")
		return code == http.StatusOK
	})
	if status, _ := r.statusBy(t, r.process, client, "allowed.example"); status != http.StatusOK {
		t.Errorf("afterwards: %d", status)
	}
	kept.works(t)
}

func isExpired(err error) bool {
	return err != nil && strings.Contains(err.Error(), "expired")
}

// TestRotation opens 200 tunnels a second, each on a new connection, while the SVIDs of
// the gateway and the clients rotate and their authority is rolled. The flag -rotations
// is the number of rotations of the gateway's SVID:
//
//	go test ./e2e -run TestRotation -rotations 10 -lifetime 3s
func TestRotation(t *testing.T) {
	r := newRotation(t, *rotationLifetime, "")
	first := r.client(t, time.Hour) // signed by the authority that is removed later
	first.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	kept := r.openOn(t, r.dialTLS(t, first), "allowed.example")
	if status, _ := r.statusBy(t, r.process, first, "allowed.example"); status != http.StatusOK {
		t.Fatalf("before: %d", status)
	}
	load := r.load(t, 200)
	load.serials(t, 1+*rotations/2)

	r.step(t, r.ca.Prepare)
	r.process.generation(t, 2) // the gateway trusts both authorities
	r.step(t, r.ca.Activate)
	load.renew(t)
	load.signedBy(t, r.ca.X509Bundle().X509Authorities()[0])
	kept.works(t)
	r.step(t, r.ca.Retire)
	kept.ends(t)
	r.process.generation(t, 3)
	status, resumed := r.statusBy(t, r.process, r.trusting(first), "allowed.example")
	if status != http.StatusProxyAuthRequired || resumed {
		t.Errorf("a client of the authority that has gone: %d, resumed %v", status, resumed)
	}
	load.serials(t, 1+*rotations+3) // each step of the roll made a new SVID, too
	sum := load.stop()
	t.Logf("%d requests in %s, %.0f a second, %d serials", sum.requests, sum.took.Round(time.Millisecond), float64(sum.requests)/sum.took.Seconds(), sum.serials)
	if sum.failed != nil {
		t.Errorf("%d failed, the first with %v", sum.failures, sum.failed)
	}
}

// trusting returns a copy of a client's configuration that trusts the current
// authorities.
func (r *rotation) trusting(client *tls.Config) *tls.Config {
	client = client.Clone()
	client.RootCAs = x509.NewCertPool()
	for _, ca := range r.ca.X509Bundle().X509Authorities() {
		client.RootCAs.AddCert(ca)
	}
	return client
}
