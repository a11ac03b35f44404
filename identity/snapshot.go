package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SnapshotConfig holds the parts of a Snapshot.
type SnapshotConfig struct {
	// Certificate is our own X509-SVID: the leaf, then its intermediates, and
	// the private key as a [crypto.Signer]. Required.
	Certificate tls.Certificate
	// Bundles are the bundles of the trusted trust domains, one for each. The bundle of
	// our own trust domain is required.
	Bundles []*x509bundle.Bundle
	// Generation counts the snapshots of a provider, from 1. Zero is an error.
	Generation uint64
}

// Snapshot is our own SVID together with the trust bundles of the same moment. It is
// immutable and safe for concurrent use.
type Snapshot struct {
	id          spiffeid.ID
	certificate *tls.Certificate
	notAfter    time.Time
	generation  uint64
	trusted     trustSet
}

// NewSnapshot returns a snapshot. It checks that the certificate is a valid X509-SVID,
// that the key belongs to it, that an authority of our own bundle issued it, and that
// every bundle holds at least one authority, and only authorities of its trust domain.
func NewSnapshot(config SnapshotConfig) (*Snapshot, error) {
	if config.Generation == 0 {
		return nil, errors.New("snapshot has no generation; generations count from 1")
	}
	trusted, err := newTrustSet(config.Bundles)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{generation: config.Generation, trusted: trusted}
	if err := s.setCertificate(config.Certificate, time.Now()); err != nil {
		return nil, err
	}
	return s, nil
}

// setCertificate checks and sets our own certificate.
func (s *Snapshot) setCertificate(own tls.Certificate, now time.Time) error {
	chain, err := parseChain(own.Certificate)
	if err != nil {
		return err
	}
	id, err := leafID(chain[0])
	if err != nil {
		return err
	}
	if err := checkValidity(chain[0], now); err != nil {
		return err
	}
	if !keyMatches(chain[0], own.PrivateKey) {
		return errors.New("private key does not belong to the certificate; load both from the same issue")
	}
	t, ok := s.trusted.bundles[id.TrustDomain()]
	if !ok {
		return fmt.Errorf("no bundle for our own trust domain %s", quoted(id.TrustDomain().Name()))
	}
	until, err := t.issued(chain, now)
	if err != nil {
		return err
	}
	own.Leaf = chain[0]
	s.id, s.certificate, s.notAfter = id, &own, until
	return nil
}

// ID returns our own SPIFFE ID.
func (s *Snapshot) ID() spiffeid.ID { return s.id }

// TrustDomain returns our own trust domain.
func (s *Snapshot) TrustDomain() spiffeid.TrustDomain { return s.id.TrustDomain() }

// Certificate returns our own X509-SVID with its key and with Leaf set. It is
// shared and must not be changed.
func (s *Snapshot) Certificate() *tls.Certificate { return s.certificate }

// NotAfter returns when our own certificate, or one of its issuers, expires.
func (s *Snapshot) NotAfter() time.Time { return s.notAfter }

// Generation returns the number of this snapshot among those of its provider, from 1.
func (s *Snapshot) Generation() uint64 { return s.generation }

// TrustDomains returns the trusted trust domains, including our own, sorted.
func (s *Snapshot) TrustDomains() []spiffeid.TrustDomain { return slices.Clone(s.trusted.domains) }

// Roots returns a copy of the authorities of one trust domain. For a trust domain that
// is not trusted the pool is empty. It is never nil, because crypto/x509 uses the roots
// of the operating system for nil.
func (s *Snapshot) Roots(td spiffeid.TrustDomain) *x509.CertPool {
	if t, ok := s.trusted.bundles[td]; ok {
		return t.roots.Clone()
	}
	return x509.NewCertPool()
}

// parseChain parses the certificates of a chain.
func parseChain(der [][]byte) ([]*x509.Certificate, error) {
	if len(der) == 0 {
		return nil, errors.New("no certificate")
	}
	chain := make([]*x509.Certificate, len(der))
	for i, raw := range der {
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i+1, err)
		}
		chain[i] = cert
	}
	return chain, nil
}

// keyMatches reports whether a private key belongs to a certificate.
func keyMatches(leaf *x509.Certificate, key crypto.PrivateKey) bool {
	signer, ok := key.(crypto.Signer)
	if !ok {
		return false
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(leaf.PublicKey)
}
