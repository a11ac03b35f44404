package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// testCA is a CA that signs whatever a test needs.
type testCA struct {
	cert  *x509.Certificate
	key   crypto.Signer
	chain [][]byte // intermediates to present
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// newCA returns a root CA of a trust domain. It ends later than what it signs.
func newCA(tb testing.TB, name string, change ...func(*x509.Certificate)) testCA {
	tb.Helper()
	return testCA{}.newCA(tb, name, change...)
}

// newCA makes an intermediate under ca, or a root under nothing.
func (ca testCA) newCA(tb testing.TB, name string, change ...func(*x509.Certificate)) testCA {
	tb.Helper()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "CA " + name},
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	for _, f := range change {
		f(template)
	}
	key := newKey(tb)
	out := testCA{key: key}
	if ca.cert == nil {
		out.cert = create(tb, template, template, key.Public(), key)
		return out
	}
	out.cert = create(tb, template, ca.cert, key.Public(), ca.key)
	out.chain = append([][]byte{out.cert.Raw}, ca.chain...)
	return out
}

// issue returns a good leaf for an ID, with the changes of a test.
func (ca testCA) issue(tb testing.TB, id string, change ...func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	template := &x509.Certificate{
		NotBefore:             time.Now().Add(-2 * time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if id != "" {
		withURIs(id)(template)
	}
	for _, f := range change {
		f(template)
	}
	key := newKey(tb)
	leaf := create(tb, template, ca.cert, key.Public(), ca.key)
	return tls.Certificate{Certificate: append([][]byte{leaf.Raw}, ca.chain...), PrivateKey: key, Leaf: leaf}
}

// selfSigned returns a leaf that is signed with its own key.
func selfSigned(tb testing.TB, id string, change ...func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "self"},
		NotBefore: time.Now().Add(-time.Hour),
		NotAfter:  time.Now().Add(time.Hour),
		KeyUsage:  x509.KeyUsageDigitalSignature,
	}
	withURIs(id)(template)
	for _, f := range change {
		f(template)
	}
	leaf := create(tb, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func create(tb testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	tb.Helper()
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// withURIs sets the URI SANs byte for byte, which Certificate.URIs cannot do.
func withURIs(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.URIs = nil
		c.ExtraExtensions = append(c.ExtraExtensions, sanExtension(uris...))
	}
}

func sanExtension(uris ...string) pkix.Extension {
	var names []asn1.RawValue
	for _, uri := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)})
	}
	value, err := asn1.Marshal(names)
	if err != nil {
		panic(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
}

func valid(from, until time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(until)
	}
}

// bundles maps trust domains to the authorities that a snapshot trusts.
type bundles map[string][]testCA

func newSnapshot(tb testing.TB, generation uint64, own tls.Certificate, trusted bundles) *Snapshot {
	tb.Helper()
	config := SnapshotConfig{Certificate: own, Generation: generation}
	for name, cas := range trusted {
		bundle := x509bundle.New(spiffeid.RequireTrustDomainFromString(name))
		for _, ca := range cas {
			bundle.AddX509Authority(ca.cert)
		}
		config.Bundles = append(config.Bundles, bundle)
	}
	snap, err := NewSnapshot(config)
	if err != nil {
		tb.Fatal(err)
	}
	return snap
}

// testSource is a provider whose snapshot a test replaces.
type testSource struct{ atomic.Pointer[Snapshot] }

func (s *testSource) Snapshot() *Snapshot { return s.Load() }

func newSource(snap *Snapshot) *testSource {
	s := &testSource{}
	s.Store(snap)
	return s
}

func newVerifier(tb testing.TB, src Provider) *Verifier {
	tb.Helper()
	v, err := NewVerifier(src)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

func parsed(tb testing.TB, cert tls.Certificate) []*x509.Certificate {
	tb.Helper()
	chain, err := parseChain(cert.Certificate)
	if err != nil {
		tb.Fatal(err)
	}
	return chain
}

func mustURL(tb testing.TB, s string) *url.URL {
	tb.Helper()
	u, err := url.Parse(s)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}
