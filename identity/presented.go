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

// What is read of the certificates that a peer presents. A peer with more has no
// identity, and none of its signatures is checked: the bytes of one certificate
// may stand for a hundred times as much memory, and crypto/tls keeps what it has
// parsed for as long as the connection lasts.
const (
	maxPresented = 8        // certificates; real chains have one to four
	maxTwins     = 2        // certificates of one subject and key: an intermediate that two authorities have signed
	maxBytes     = 16 << 10 // in all
	maxEach      = 64       // things of one kind in a certificate: names, extensions and the rest of kindsOf; numbers in an OID; timestamps beside it
	maxRSABits   = 4096
	maxExponent  = 1<<16 + 1 // of an RSA key: with a longer one, a check costs twice as much
)

// bounded says what is too much about the certificates that a peer presents. It
// reads none of them further than the bounds.
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

// boundedInAll is the part of bounded that looks into no certificate.
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

// isTwin reports whether two certificates are for one subject and key.
func isTwin(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// boundedOne says what is too much about one certificate, in words that follow "has".
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

// oidsOf are the object identifiers that crypto/x509 keeps number by number, in
// eight times as many bytes as they came in.
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

// kind is how many things of one kind a certificate has.
type kind struct {
	what string
	n    int
}

// kindsOf counts everything in a certificate of which there may be many.
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

// subjectNames counts the names of every kind in a subjectAltName, those too that
// crypto/x509 does not parse, and stops beyond maxEach.
func subjectNames(extensions []pkix.Extension) int {
	n := 0
	for i := range extensions[:min(len(extensions), maxEach+1)] {
		if !isSubjectAltName(extensions[i].Id) {
			continue
		}
		var all, name asn1.RawValue
		if _, err := asn1.Unmarshal(extensions[i].Value, &all); err != nil {
			continue // and refused where it is read
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

// boundedKey refuses the keys with which a check of a signature is dear, or which
// TLS 1.3 does not know.
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

// verifyConnection is for [tls.Config.VerifyConnection] of a server. It never
// fails the handshake over an identity: such failures are answered over HTTP. It
// verifies nothing either, since the peer has not proven to hold the key yet, and
// since what a stranger may cost is for the caller of [Verifier.PeerWithin] to say.
// It lets go of what is over the bounds, before the rest of the handshake is waited
// for.
//
// It fails a handshake that has too many signed certificate timestamps, which
// crypto/tls asks for. An SVID has none, and others have two or three. They come
// beside the certificates, each of 3 bytes is kept in 24 more, and nobody can let
// go of them.
func (v *Verifier) verifyConnection(cs tls.ConnectionState) error {
	if len(cs.SignedCertificateTimestamps) > maxEach {
		return errTimestamps
	}
	if err := bounded(cs.PeerCertificates); err != nil {
		letGo(cs.PeerCertificates, err)
	}
	return nil
}

// letGo puts other certificates into the place of those that a peer presents, so
// that crypto/tls does not keep them for as long as the connection lasts. The
// first one has the key, with which the handshake goes on, and says why.
//
// The slice is that of the connection, and of no other (see TestTheSliceIsOurs);
// the certificates themselves are not changed.
func letGo(certs []*x509.Certificate, why error) {
	first := &x509.Certificate{
		PublicKey: certs[0].PublicKey, PublicKeyAlgorithm: certs[0].PublicKeyAlgorithm,
		ExtraExtensions: []pkix.Extension{{Value: []byte(why.Error())}}, // which no parsed certificate has
	}
	empty := new(x509.Certificate)
	for i := range certs {
		certs[i] = empty
	}
	certs[0] = first
}

// letGoFor says why the certificates of a peer were let go, or nil.
func letGoFor(certs []*x509.Certificate) error {
	if len(certs) == 0 || certs[0] == nil || len(certs[0].Raw) > 0 || len(certs[0].ExtraExtensions) == 0 {
		return nil
	}
	return errors.New(string(certs[0].ExtraExtensions[0].Value))
}
