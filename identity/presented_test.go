package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// explosions returns functions which give a certificate n things of one kind each.
func explosions() map[string]func(c *x509.Certificate, n int) {
	names := func(class asn1.RawValue) func(*x509.Certificate, int) {
		return func(c *x509.Certificate, n int) {
			value, err := asn1.Marshal(slices.Repeat([]asn1.RawValue{class}, n))
			if err != nil {
				panic(err)
			}
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value})
		}
	}
	name := func(tag int, bytes string) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(bytes)}
	}
	oid := func(i int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, i} }
	attributes := func(n int) []pkix.AttributeTypeAndValue {
		return slices.Repeat([]pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 11}, Value: "a"}}, n)
	}
	return map[string]func(*x509.Certificate, int){
		"URI names":        names(name(6, "")),
		"DNS names":        names(name(2, "a")),
		"e-mail names":     names(name(1, "a@b")),
		"address names":    names(name(7, "\x01\x02\x03\x04")),
		"names not parsed": names(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true}),
		"extensions": func(c *x509.Certificate, n int) {
			for i := range n {
				c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oid(i)})
			}
		},
		"extended key usages": func(c *x509.Certificate, n int) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, slices.Repeat([]asn1.ObjectIdentifier{oid(1)}, n)
		},
		"policies": func(c *x509.Certificate, n int) {
			for i := range n {
				policy, err := x509.OIDFromInts([]uint64{1, 3, uint64(i)})
				if err != nil {
					panic(err)
				}
				c.Policies = append(c.Policies, policy)
			}
		},
		"CRL distribution points": func(c *x509.Certificate, n int) { c.CRLDistributionPoints = slices.Repeat([]string{"a"}, n) },
		"OCSP servers":            func(c *x509.Certificate, n int) { c.OCSPServer = slices.Repeat([]string{"a"}, n) },
		"issuers' addresses":      func(c *x509.Certificate, n int) { c.IssuingCertificateURL = slices.Repeat([]string{"a"}, n) },
		"attributes":              func(c *x509.Certificate, n int) { c.Subject.ExtraNames = attributes(n) },
		"permitted names":         func(c *x509.Certificate, n int) { c.PermittedDNSDomains = slices.Repeat([]string{"a"}, n) },
		"excluded addresses": func(c *x509.Certificate, n int) {
			c.ExcludedIPRanges = slices.Repeat([]*net.IPNet{{IP: net.IP{1, 2, 3, 4}, Mask: net.CIDRMask(32, 32)}}, n)
		},
		"numbers in an object identifier": func(c *x509.Certificate, n int) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: append(asn1.ObjectIdentifier{1, 3}, make([]int, n)...)})
		},
	}
}

// TestOversizedCertificatesAreInvalidAndNotKept checks that a certificate with too many
// things, as the leaf or beside a good one, makes its peer invalid, and that nothing of
// it is kept with the connection.
func TestOversizedCertificatesAreInvalidAndNotKept(t *testing.T) {
	f := newFixture(t)
	beside := func(der []byte) tls.Certificate {
		good := f.ca.issue(t, callerID)
		good.Certificate = append(good.Certificate, der)
		return good
	}
	cases := map[string]tls.Certificate{}
	for name, explode := range explosions() {
		junk := selfSigned(t, callerID, func(c *x509.Certificate) {
			if !strings.Contains(name, "names") || strings.Contains(name, "permitted") {
				c.URIs = nil
			} else {
				c.ExtraExtensions = nil
			}
			explode(c, maxEach+1)
		})
		cases[name] = junk
		cases[name+" beside an SVID"] = beside(junk.Certificate[0])
	}
	crowd := f.ca.issue(t, callerID)
	for range maxPresented {
		crowd.Certificate = append(crowd.Certificate, selfSigned(t, callerID).Certificate[0])
	}
	cases["nine certificates"] = crowd
	twins := f.ca.issue(t, callerID)
	for range maxTwins + 1 {
		twins.Certificate = append(twins.Certificate, f.ca.cert.Raw)
	}
	cases["three of one subject and key"] = twins
	cases["more bytes than are read"] = f.ca.issue(t, callerID, func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Value: make([]byte, maxBytes)})
	})
	_, keys := publicKeys(t)
	for name, key := range keys {
		cases["an intermediate with "+name] = beside(namesake(t, f.ca.cert, key))
	}
	cases["a leaf with RSA of 8192 bits"] = signedWith(t, f.ca, rsaKey(t, 8192))
	for name, cert := range cases {
		t.Run(name, func(t *testing.T) {
			got := handshake(t, f.server, f.verifier, presenting(cert))
			if got.serverErr != nil || got.clientErr != nil {
				t.Fatalf("handshake: server %v, client %v; want it to succeed", got.serverErr, got.clientErr)
			}
			checkPeer(t, got.peer, Invalid, "presented")
			if !got.peer.Excess || got.peer.Chain(got.server.PeerCertificates) != nil {
				t.Errorf("excess %v, chain %v", got.peer.Excess, got.peer.Chain(got.server.PeerCertificates))
			}
			for _, kept := range got.server.PeerCertificates {
				if len(kept.Raw) > 0 || len(kept.Extensions) > 0 || len(kept.URIs)+len(kept.DNSNames) > 0 {
					t.Errorf("the connection keeps %v", kept)
				}
			}
			checkPeer(t, f.verifier.Verify(parsedAll(t, cert)), Invalid, got.peer.Detail)
			if f.verifier.Trusts(got.server.PeerCertificates) || f.verifier.Trusts(parsedAll(t, cert)) {
				t.Error("it is trusted")
			}
		})
	}
}

// TestCertificatesAtTheBoundsAreRead checks that certificates with as many things as the
// bounds allow are read.
func TestCertificatesAtTheBoundsAreRead(t *testing.T) {
	f := newFixture(t)
	for name, explode := range explosions() {
		n := maxEach
		switch name {
		case "extensions":
			n -= 6 // the extensions of every SVID, and the key identifiers
		case "numbers in an object identifier":
			n -= 2
		case "attributes":
			n -= 1 // the attribute of its issuer
		case "extended key usages":
			continue // one of the usages must be clientAuth
		}
		cert := f.ca.issue(t, callerID)
		junk := selfSigned(t, "", func(c *x509.Certificate) {
			c.ExtraExtensions, c.Subject, c.Issuer = nil, pkix.Name{}, pkix.Name{}
			if name == "attributes" {
				n = maxEach / 2 // a self-signed certificate has its attributes twice, as subject and as issuer
			}
			explode(c, n)
		})
		cert.Certificate = append(cert.Certificate, junk.Certificate[0])
		got := handshake(t, f.server, f.verifier, presenting(cert))
		if checkPeer(t, got.peer, Verified, ""); t.Failed() {
			t.Fatal(name)
		}
		if chain := got.peer.Chain(got.server.PeerCertificates); len(chain) != 1 || chain[0] != got.server.PeerCertificates[0] {
			t.Errorf("%s: a chain of %d", name, len(chain))
		}
	}
	for _, curve := range []elliptic.Curve{elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		checkPeer(t, handshake(t, f.server, f.verifier, presenting(signedWith(t, f.ca, key))).peer, Verified, "")
	}
	checkPeer(t, handshake(t, f.server, f.verifier, presenting(signedWith(t, f.ca, rsaKey(t, 4096)))).peer, Verified, "")
}

// TestTimestampsAreBounded checks the bound on the timestamps that a client presents
// beside its certificates. crypto/tls keeps them with every connection, in nine times as
// many bytes.
func TestTimestampsAreBounded(t *testing.T) {
	f := newFixture(t)
	cert := f.ca.issue(t, callerID)
	cert.SignedCertificateTimestamps = slices.Repeat([][]byte{{1}}, maxEach)
	checkPeer(t, handshake(t, f.server, f.verifier, presenting(cert)).peer, Verified, "")
	cert.SignedCertificateTimestamps = append(cert.SignedCertificateTimestamps, []byte{1})
	if got := handshake(t, f.server, f.verifier, presenting(cert)); !errors.Is(got.serverErr, errTimestamps) || got.clientErr == nil {
		t.Errorf("one more: server %v, client %v; want the handshake to fail", got.serverErr, got.clientErr)
	}
}

// TestConnectionsDoNotShareCertificates checks that crypto/tls gives each connection its
// own slice of certificates, because release changes the slice. It fails if crypto/tls
// ever shares a slice between connections that present the same certificates.
func TestConnectionsDoNotShareCertificates(t *testing.T) {
	f := newFixture(t)
	client := presenting(f.ca.issue(t, callerID))
	first, second := handshake(t, f.server, f.verifier, client).server, handshake(t, f.server, f.verifier, client).server
	release(first.PeerCertificates, x509.ErrUnsupportedAlgorithm)
	if len(second.PeerCertificates[0].Raw) == 0 || f.verifier.Peer(second).Cause != Verified {
		t.Error("two connections share their certificates")
	}
	if f.verifier.Peer(first).Cause != Invalid {
		t.Error("the connection has other certificates than its state")
	}
}

// TestMemoryOfAConnectionsCertificates measures the memory that the certificates of a
// connection keep.
func TestMemoryOfAConnectionsCertificates(t *testing.T) {
	const count, most = 50, 24 << 10
	f := newFixture(t)
	names := func(c *x509.Certificate) { c.ExtraExtensions = nil; explosions()["URI names"](c, 7_500) }
	junk := f.ca.issue(t, callerID)
	junk.Certificate = append(junk.Certificate, selfSigned(t, callerID, names).Certificate[0])
	for name, cert := range map[string]tls.Certificate{
		"a good SVID": f.ca.issue(t, callerID), "7,500 empty names": selfSigned(t, callerID, names), "and the same beside an SVID": junk,
	} {
		states := make([]tls.ConnectionState, 0, count)
		before := heap()
		for range count {
			certs := parsedAll(t, cert)
			state := tls.ConnectionState{PeerCertificates: certs, HandshakeComplete: true}
			if err := f.verifier.verifyConnection(state); err != nil {
				t.Fatal(err)
			}
			states = append(states, state)
		}
		kept := (int64(heap()) - int64(before)) / count
		t.Logf("%s: %d bytes a connection", name, kept)
		if kept > most {
			t.Errorf("%s: %d bytes a connection, at most %d are fine", name, kept, most)
		}
		runtime.KeepAlive(states)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// parsedAll parses presented certificates from copies of their bytes, as a connection
// does.
func parsedAll(t *testing.T, cert tls.Certificate) []*x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	for _, der := range cert.Certificate {
		parsed, err := x509.ParseCertificate(slices.Clone(der))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, parsed)
	}
	return all
}

// signedWith returns an SVID with another kind of key.
func signedWith(t *testing.T, ca testCA, key crypto.Signer) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	withURIs(callerID)(template)
	leaf := create(t, template, ca.cert, key.Public(), ca.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// namesake returns the certificate of a false authority with the name of another one.
// Nobody needs to be able to sign with its key.
func namesake(t *testing.T, of *x509.Certificate, key crypto.PublicKey) []byte {
	t.Helper()
	template := &x509.Certificate{
		Subject: of.Subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	return create(t, template, template, key, newKey(t)).Raw
}

// rsaKey returns a key of many primes, which is made quickly.
func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateMultiPrimeKey(rand.Reader, bits/512, bits) //nolint:staticcheck // a key of two primes would take minutes
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// publicKeys returns public keys that are read, and keys that are refused.
func publicKeys(t *testing.T) (read, refused map[string]crypto.PublicKey) {
	t.Helper()
	curve := func(c elliptic.Curve) crypto.PublicKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key.Public()
	}
	numbers := func(bits uint, e int) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: e}
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	read = map[string]crypto.PublicKey{
		"P-256": curve(elliptic.P256()), "P-384": curve(elliptic.P384()), "P-521": curve(elliptic.P521()), "Ed25519": ed,
		"RSA of 2048 bits": numbers(2048, 65537), "RSA of 4096 bits": numbers(4096, 3),
	}
	refused = map[string]crypto.PublicKey{
		"P-224": curve(elliptic.P224()), "RSA of 4104 bits": numbers(4104, 65537), "RSA of 8192 bits": numbers(8192, 65537),
		"RSA with a long exponent": numbers(2048, 1<<31-1), "RSA with an even exponent": numbers(2048, 4), "RSA with the exponent 1": numbers(2048, 1),
	}
	return read, refused
}

// TestKeysThatAreRead checks which kinds and sizes of public keys are read.
func TestKeysThatAreRead(t *testing.T) {
	read, refused := publicKeys(t)
	for name, key := range read {
		if err := boundedKey(key); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused["none"], refused["one that crypto/x509 does not know"], refused["an empty one"] = nil, struct{}{}, &rsa.PublicKey{}
	for name, key := range refused {
		if boundedKey(key) == nil {
			t.Errorf("%s is read", name)
		}
	}
}
