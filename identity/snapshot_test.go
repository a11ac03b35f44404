package identity

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestNewSnapshotRefusesContradictions checks the error of NewSnapshot for each part
// that is missing or contradicts another one, whatever provider it comes from.
func TestNewSnapshotRefusesContradictions(t *testing.T) {
	ca, other := newCA(t, "prod"), newCA(t, "other")
	prod, partner := spiffeid.RequireTrustDomainFromString("prod.example"), spiffeid.RequireTrustDomainFromString("partner.example")
	site := newCA(t, "site", func(c *x509.Certificate) { c.URIs = append(c.URIs, mustURL(t, "https://ca.example/")) })
	bundle := func(td spiffeid.TrustDomain, cas ...testCA) *x509bundle.Bundle {
		b := x509bundle.New(td)
		for _, c := range cas {
			b.AddX509Authority(c.cert)
		}
		return b
	}
	good := func() SnapshotConfig {
		return SnapshotConfig{Certificate: ca.issue(t, gatewayID), Bundles: []*x509bundle.Bundle{bundle(prod, ca), bundle(partner, other, site)}, Generation: 1}
	}
	if _, err := NewSnapshot(good()); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*SnapshotConfig)
		want   string
	}{
		{"nothing", func(c *SnapshotConfig) { *c = SnapshotConfig{} }, "no generation"},
		{"no generation", func(c *SnapshotConfig) { c.Generation = 0 }, "no generation"},
		{"no certificate", func(c *SnapshotConfig) { c.Certificate = tls.Certificate{} }, "no certificate"},
		{"a certificate that is garbage", func(c *SnapshotConfig) { c.Certificate.Certificate = [][]byte{{1}} }, "certificate 1 of the chain"},
		{"no key", func(c *SnapshotConfig) { c.Certificate.PrivateKey = nil }, "private key does not belong"},
		{"another key", func(c *SnapshotConfig) { c.Certificate.PrivateKey = newKey(t) }, "private key does not belong"},
		{"a certificate without an ID", func(c *SnapshotConfig) { c.Certificate = ca.issue(t, "") }, "no URI SAN"},
		{"a certificate that expired", func(c *SnapshotConfig) { c.Certificate = ca.issue(t, gatewayID, valid(-2, -1)) }, "certificate expired"},
		{"a certificate of another issuer", func(c *SnapshotConfig) { c.Certificate = other.issue(t, gatewayID) }, "not issued by any"},
		{"no bundles", func(c *SnapshotConfig) { c.Bundles = nil }, `no bundle for our own trust domain "prod.example"`},
		{"no bundle of ours", func(c *SnapshotConfig) { c.Bundles = c.Bundles[1:] }, `no bundle for our own trust domain "prod.example"`},
		{"two bundles of one trust domain", func(c *SnapshotConfig) { c.Bundles = append(c.Bundles, c.Bundles[0]) }, "two bundles"},
		{"a nil bundle", func(c *SnapshotConfig) { c.Bundles = append(c.Bundles, nil) }, "without a trust domain"},
		{"a bundle without a trust domain", func(c *SnapshotConfig) { c.Bundles[1] = bundle(spiffeid.TrustDomain{}, other) }, "without a trust domain"},
		{"an empty bundle", func(c *SnapshotConfig) { c.Bundles[1] = bundle(partner) }, `"partner.example" is empty`},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := good()
			test.change(&config)
			snap, err := NewSnapshot(config)
			if err == nil || snap != nil {
				t.Fatalf("got %v, no error", snap)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want it to say %q", err, test.want)
			}
		})
	}
}

func TestASnapshotDoesNotChange(t *testing.T) {
	ca, late := newCA(t, "prod"), newCA(t, "late")
	td := spiffeid.RequireTrustDomainFromString("prod.example")
	bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{ca.cert})
	snap, err := NewSnapshot(SnapshotConfig{Certificate: ca.issue(t, gatewayID), Bundles: []*x509bundle.Bundle{bundle}, Generation: 7})
	if err != nil {
		t.Fatal(err)
	}
	bundle.AddX509Authority(late.cert)
	snap.Roots(td).AddCert(late.cert)
	snap.trusted.callerAuthorities().AddCert(late.cert)
	snap.TrustDomains()[0] = spiffeid.TrustDomain{}

	v := newVerifier(t, newSource(snap))
	checkPeer(t, v.Verify(parsed(t, late.issue(t, callerID))), Untrusted, "not issued by")
	if got := snap.TrustDomains()[0]; got != td {
		t.Errorf("trust domain %q", got)
	}
}

// TestManyTrustDomainsFitIntoOneLine checks that the detail of a peer names only the
// first of many trust domains, and the number of the others.
func TestManyTrustDomainsFitIntoOneLine(t *testing.T) {
	ca := newCA(t, "prod")
	trusted := bundles{"prod.example": {ca}}
	for _, c := range "abcdef" {
		trusted[strings.Repeat(string(c), 200)] = []testCA{ca}
	}
	v := newVerifier(t, newSource(newSnapshot(t, 1, ca.issue(t, gatewayID), trusted)))
	checkPeer(t, v.Verify(nil), Missing, "none issued by aaa")
	checkPeer(t, v.Verify(parsed(t, ca.issue(t, "spiffe://"+strings.Repeat("z", 200)+"/x"))), Untrusted, "trusted: aaa")
	if got, want := list(v.snapshot().TrustDomains()), " and 4 more"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want it to end in %q", got, want)
	}
}
