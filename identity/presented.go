package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"iter"
)

// Bounds of the certificates that a peer presents. A peer that exceeds one of them has
// no identity, and none of its signatures is checked. Parsed certificates may take a
// hundred times as much memory as their bytes, and crypto/tls keeps them for as long as
// the connection lasts.
const (
	maxPresented = 8         // number of certificates; real chains have one to four
	maxTwins     = 2         // certificates with one subject and key, as when two authorities have signed an intermediate
	maxBytes     = 16 << 10  // bytes of all certificates together
	maxEach      = 64        // elements of one kind in a certificate (see kindsOf), numbers in an OID, certificate timestamps
	maxRSABits   = 4096      // bits of an RSA key
	maxExponent  = 1<<16 + 1 // exponent of an RSA key; a check with a longer one costs twice as much
)

// bounded returns an error that says which bound the certificates of a peer exceed, or
// nil. It does not read further than the bounds.
func bounded(certs []*x509.Certificate) error {
	if err := boundedInAll(certs); err != nil {
		return err
	}
	for i, cert := range certs {
		if err := boundedOne(cert); err != nil {
			return fmt.Errorf("certificate %d of those presented has %w", i+1, err)
		}
		twins := 1
		for _, other := range certs[:i] {
			if isTwin(cert, other) {
				twins++
			}
		}
		if twins > maxTwins {
			return fmt.Errorf("more than %d certificates of one subject and key presented", maxTwins)
		}
	}
	return nil
}

// boundedInAll checks the number and the size of the certificates.
func boundedInAll(certs []*x509.Certificate) error {
	if len(certs) > maxPresented {
		return fmt.Errorf("%d certificates presented, at most %d are read", len(certs), maxPresented)
	}
	size := 0
	for _, cert := range certs {
		size += len(cert.Raw)
	}
	if size > maxBytes {
		return fmt.Errorf("%d bytes of certificates presented, at most %d are read", size, maxBytes)
	}
	return nil
}

// isTwin reports whether two certificates have the same subject and key.
func isTwin(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// boundedOne checks one certificate. Its error is worded to follow "has".
func boundedOne(cert *x509.Certificate) error {
	for _, kind := range kindsOf(cert) {
		if kind.n > maxEach {
			return fmt.Errorf("more than %d %s", maxEach, kind.what)
		}
	}
	for oid := range oidsOf(cert) {
		if len(oid) > maxEach {
			return fmt.Errorf("an object identifier of more than %d numbers", maxEach)
		}
	}
	return boundedKey(cert.PublicKey)
}

// oidsOf returns the object identifiers that crypto/x509 keeps as a list of numbers,
// which takes eight times as many bytes as their encoding.
func oidsOf(c *x509.Certificate) iter.Seq[asn1.ObjectIdentifier] {
	return func(yield func(asn1.ObjectIdentifier) bool) {
		for i := range c.Extensions {
			if !yield(c.Extensions[i].Id) {
				return
			}
		}
		for _, oids := range [...][]asn1.ObjectIdentifier{c.UnknownExtKeyUsage, c.PolicyIdentifiers} {
			for _, oid := range oids {
				if !yield(oid) {
					return
				}
			}
		}
		for _, names := range [...][]pkix.AttributeTypeAndValue{c.Subject.Names, c.Issuer.Names} {
			for i := range names {
				if !yield(names[i].Type) {
					return
				}
			}
		}
	}
}

// kind is the number of elements of one kind in a certificate.
type kind struct {
	what string
	n    int
}

// kindsOf counts the elements of a certificate, by kind, of which there may be many.
func kindsOf(c *x509.Certificate) [6]kind {
	constraints := len(c.PermittedDNSDomains) + len(c.ExcludedDNSDomains) + len(c.PermittedIPRanges) + len(c.ExcludedIPRanges) +
		len(c.PermittedEmailAddresses) + len(c.ExcludedEmailAddresses) + len(c.PermittedURIDomains) + len(c.ExcludedURIDomains)
	parsed := len(c.DNSNames) + len(c.EmailAddresses) + len(c.IPAddresses) + len(c.URIs)
	names := max(parsed, min(subjectNames(c.Extensions), maxEach+1)) + constraints
	return [...]kind{
		{"extensions", len(c.Extensions)},
		{"names", names},
		{"extended key usages", len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage)},
		{"policies", max(len(c.Policies), len(c.PolicyIdentifiers)) + len(c.PolicyMappings)},
		{"addresses of its issuer", len(c.CRLDistributionPoints) + len(c.OCSPServer) + len(c.IssuingCertificateURL)},
		{"attributes of subject and issuer", len(c.Subject.Names) + len(c.Issuer.Names)},
	}
}

// subjectNames counts the names in a subjectAltName, including kinds that crypto/x509
// does not parse. It stops when it has counted more than maxEach.
func subjectNames(extensions []pkix.Extension) int {
	n := 0
	for i := range extensions[:min(len(extensions), maxEach+1)] {
		if !isSubjectAltName(extensions[i].Id) {
			continue
		}
		var all, name asn1.RawValue
		if _, err := asn1.Unmarshal(extensions[i].Value, &all); err != nil {
			continue // leafID refuses it
		}
		for rest := all.Bytes; len(rest) > 0 && n <= maxEach; n++ {
			var err error
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				break
			}
		}
	}
	return n
}

var errKey = fmt.Errorf("a key that is not read; RSA up to %d bits with an odd exponent up to %d, P-256, P-384, P-521 and Ed25519 are", maxRSABits, maxExponent)

// boundedKey refuses keys with which a signature check is expensive, and keys that TLS
// 1.3 does not know.
func boundedKey(public any) error {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if key.N != nil && key.N.BitLen() <= maxRSABits && 3 <= key.E && key.E <= maxExponent && key.E%2 == 1 {
			return nil
		}
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
	case ed25519.PublicKey:
		return nil
	}
	return errKey
}

var errTimestamps = fmt.Errorf("more than %d signed certificate timestamps presented", maxEach)

// verifyConnection is the [tls.Config.VerifyConnection] of a server. It never fails the
// handshake because of an identity; the gateway answers such failures later. It verifies
// no signature either: the peer has not proven yet that it has the key, and the budget
// for that is known to the caller of [Verifier.PeerWithin] only. It releases certificates
// that exceed the bounds, before the rest of the handshake is waited for.
//
// It fails a handshake with too many signed certificate timestamps, for which crypto/tls
// asks. An SVID has none, and other certificates have two or three. Each timestamp of 3
// bytes takes 24 more, and crypto/tls gives no way to release them.
func (v *Verifier) verifyConnection(cs tls.ConnectionState) error {
	if len(cs.SignedCertificateTimestamps) > maxEach {
		return errTimestamps
	}
	if err := bounded(cs.PeerCertificates); err != nil {
		release(cs.PeerCertificates, err)
	}
	return nil
}

// release replaces the certificates that a peer presents by empty ones, so that
// crypto/tls does not keep them for as long as the connection lasts. The first one keeps
// the key, with which the handshake goes on, and holds the cause.
//
// The slice belongs to this connection only (see TestConnectionsDoNotShareCertificates).
// The certificates themselves are not changed.
func release(certs []*x509.Certificate, why error) {
	first := &x509.Certificate{
		PublicKey: certs[0].PublicKey, PublicKeyAlgorithm: certs[0].PublicKeyAlgorithm,
		ExtraExtensions: []pkix.Extension{{Value: []byte(why.Error())}}, // the field is empty in parsed certificates
	}
	empty := new(x509.Certificate)
	for i := range certs {
		certs[i] = empty
	}
	certs[0] = first
}

// releasedFor returns the cause for which the certificates of a peer were released, or
// nil.
func releasedFor(certs []*x509.Certificate) error {
	if len(certs) == 0 || certs[0] == nil || len(certs[0].Raw) > 0 || len(certs[0].ExtraExtensions) == 0 {
		return nil
	}
	return errors.New(string(certs[0].ExtraExtensions[0].Value))
}
