package hostile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity"
)

const trustDomain = "test.example"

// id returns the SPIFFE ID of a workload.
func id(name string) string { return "spiffe://" + trustDomain + "/" + name }

// authority is a CA that signs any certificate that a test needs.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer

	mu     sync.Mutex
	issued map[string]tls.Certificate // SVIDs by the name of the workload
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	ca := &authority{key: newKey(tb), issued: map[string]tls.Certificate{}}
	ca.cert = ca.sign(tb, &x509.Certificate{
		Subject:   pkix.Name{CommonName: "an authority"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}, ca.key.Public())
	return ca
}

func newKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// sign signs a certificate for a public key. An authority without a certificate signs its
// own.
func (ca *authority) sign(tb testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	tb.Helper()
	parent := ca.cert
	if parent == nil {
		parent = template
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil { // a test may want to send a certificate that cannot be parsed
		return &x509.Certificate{Raw: raw}
	}
	return cert
}

// svid returns a valid SVID of a workload. It issues one for each name.
func (ca *authority) svid(tb testing.TB, name string) tls.Certificate {
	tb.Helper()
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if _, ok := ca.issued[name]; !ok {
		ca.issued[name] = ca.issue(tb, withURIs(id(name)))
	}
	return ca.issued[name]
}

// issue returns a new leaf that is valid but for what change does to it.
func (ca *authority) issue(tb testing.TB, change ...func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		NotBefore: time.Now().Add(-12 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, f := range change {
		f(template)
	}
	leaf := ca.sign(tb, template, key.Public())
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// selfSigned returns a self-signed leaf.
func selfSigned(tb testing.TB, change ...func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	self := &authority{key: newKey(tb)}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "self"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	for _, f := range change {
		f(template)
	}
	leaf := self.sign(tb, template, self.key.Public())
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: self.key, Leaf: leaf}
}

// Tags of the kinds of names in a subject alternative name.
const (
	sanDNS = 2
	sanURI = 6
)

// withURIs adds the URIs byte for byte, which the template's URIs field would not do.
func withURIs(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, san(sanURI, uris...)) }
}

func withDNS(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, san(sanDNS, names...)) }
}

func san(kind int, names ...string) pkix.Extension {
	var values []asn1.RawValue
	for _, name := range names {
		values = append(values, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: kind, Bytes: []byte(name)})
	}
	value, err := asn1.Marshal(values)
	if err != nil {
		panic(err) // the names are constants of a test
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
}

func valid(from, until time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(until)
	}
}

// snapshot returns an identity of the gateway that this authority has signed. The gateway
// trusts no other authority.
func (ca *authority) snapshot(tb testing.TB, generation uint64) *identity.Snapshot {
	tb.Helper()
	bundle := x509bundle.New(spiffeid.RequireTrustDomainFromString(trustDomain))
	bundle.AddX509Authority(ca.cert)
	snapshot, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: ca.svid(tb, "gateway"), Bundles: []*x509bundle.Bundle{bundle}, Generation: generation,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return snapshot
}
