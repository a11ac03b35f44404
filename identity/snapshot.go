package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SnapshotConfig is what a [Source] knows at one moment.
type SnapshotConfig struct {
	// Certificate is our own X509-SVID: the leaf, then its intermediates, and
	// the private key as a [crypto.Signer]. Required.
	Certificate tls.Certificate
	// Bundles are the trust domains whose workloads are known here, one bundle
	// each. That of our own trust domain is required.
	Bundles []*x509bundle.Bundle
	// Generation counts the snapshots of a source, from 1. Zero is an error.
	Generation uint64
}

// Snapshot is one consistent set: what we are and whom we trust. It is
// immutable and safe for concurrent use.
type Snapshot struct {
	id          spiffeid.ID
	certificate *tls.Certificate
	notAfter    time.Time
	generation  uint64

	trusted    map[spiffeid.TrustDomain]*trust
	domains    []spiffeid.TrustDomain // the keys of trusted, sorted
	domainList string                 // the same for messages
	clientCAs  *x509.CertPool
	caNames    int // bytes that the names of clientCAs take in a certificate request
}

// trust is the bundle of one trust domain, prepared for verification.
type trust struct {
	domain      spiffeid.TrustDomain
	authorities []*x509.Certificate
	roots       *x509.CertPool
}

// NewSnapshot checks that the certificate is a valid X509-SVID of which we
// hold the key and which our own bundle issued, and that every bundle holds
// nothing but authorities of its trust domain, at least one.
func NewSnapshot(config SnapshotConfig) (*Snapshot, error) {
	if config.Generation == 0 {
		return nil, errors.New("snapshot has no generation; generations count from 1")
	}
	s := &Snapshot{
		generation: config.Generation,
		trusted:    make(map[spiffeid.TrustDomain]*trust, len(config.Bundles)),
		clientCAs:  x509.NewCertPool(),
	}
	for _, bundle := range config.Bundles {
		if err := s.addBundle(bundle); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(s.domains, spiffeid.TrustDomain.Compare)
	s.domainList = list(s.domains)
	if err := s.setCertificate(config.Certificate, time.Now()); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Snapshot) addBundle(bundle *x509bundle.Bundle) error {
	if bundle == nil || bundle.TrustDomain().IsZero() {
		return errors.New("bundle without a trust domain")
	}
	td := bundle.TrustDomain()
	if _, ok := s.trusted[td]; ok {
		return fmt.Errorf("two bundles for trust domain %s", quoted(td.Name()))
	}
	t, err := newTrust(td, bundle.X509Authorities())
	if err != nil {
		return err
	}
	s.trusted[td] = t
	s.domains = append(s.domains, td)
	for _, ca := range t.authorities {
		const lengthPrefix = 2 // RFC 8446 section 4.2.4
		s.clientCAs.AddCert(ca)
		s.caNames += lengthPrefix + len(ca.RawSubject)
	}
	return nil
}

// CheckBundle says why [NewSnapshot] would take no bundle like this one.
func CheckBundle(bundle *x509bundle.Bundle) error {
	if _, err := newTrust(bundle.TrustDomain(), bundle.X509Authorities()); err != nil {
		return fmt.Errorf("bundle of trust domain %s: %w", quoted(bundle.TrustDomain().Name()), err)
	}
	return nil
}

func newTrust(td spiffeid.TrustDomain, authorities []*x509.Certificate) (*trust, error) {
	if len(authorities) == 0 {
		return nil, fmt.Errorf("bundle of trust domain %s is empty; nobody could be verified with it", quoted(td.Name()))
	}
	t := &trust{domain: td, authorities: authorities, roots: x509.NewCertPool()}
	for _, ca := range authorities {
		if err := checkAuthority(td, ca); err != nil {
			return nil, err
		}
		t.roots.AddCert(ca)
	}
	return t, nil
}

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
	t, ok := s.trusted[id.TrustDomain()]
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

// issued returns the earliest end of the chain from chain[0] to an authority.
func (t *trust) issued(chain []*x509.Certificate, now time.Time) (time.Time, error) {
	// Whether we act as a server or a client with it is not decided here.
	found, err := chain[0].Verify(t.options(chain, now, x509.ExtKeyUsageAny))
	if err != nil {
		return time.Time{}, fmt.Errorf("certificate was not issued by any of the %d authorities in the bundle of trust domain %s; load both from the same issuer: %w",
			len(t.authorities), quoted(t.domain.Name()), err)
	}
	_, _, until := lasting(found)
	return until, nil
}

// options are the ones to verify the first of certs with, at one moment.
func (t *trust) options(certs []*x509.Certificate, at time.Time, usage x509.ExtKeyUsage) x509.VerifyOptions {
	intermediates := x509.NewCertPool()
	for _, cert := range certs[1:] {
		intermediates.AddCert(cert)
	}
	return x509.VerifyOptions{
		Roots:         t.roots,
		Intermediates: intermediates,
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
}

// ID returns our own SPIFFE ID.
func (s *Snapshot) ID() spiffeid.ID { return s.id }

// TrustDomain returns our own trust domain.
func (s *Snapshot) TrustDomain() spiffeid.TrustDomain { return s.id.TrustDomain() }

// Certificate returns our own X509-SVID with its key and with Leaf set. It is
// shared and must not be changed.
func (s *Snapshot) Certificate() *tls.Certificate { return s.certificate }

// NotAfter returns when our own certificate, or one that issued it, expires.
func (s *Snapshot) NotAfter() time.Time { return s.notAfter }

// Generation returns the number of this snapshot in its source, from 1.
func (s *Snapshot) Generation() uint64 { return s.generation }

// TrustDomains returns the trusted trust domains, our own included, sorted.
func (s *Snapshot) TrustDomains() []spiffeid.TrustDomain { return slices.Clone(s.domains) }

// Roots returns a copy of the authorities of one trust domain. For a trust
// domain that is not trusted it is empty and never nil, because crypto/x509
// takes nil for the roots of the operating system.
func (s *Snapshot) Roots(td spiffeid.TrustDomain) *x509.CertPool {
	if t, ok := s.trusted[td]; ok {
		return t.roots.Clone()
	}
	return x509.NewCertPool()
}

// callerAuthorities returns a copy of the authorities of all trust domains, whose names
// are sent to clients. It verifies nothing: in it a trust domain could speak
// for another.
func (s *Snapshot) callerAuthorities() *x509.CertPool { return s.clientCAs.Clone() }

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

func keyMatches(leaf *x509.Certificate, key crypto.PrivateKey) bool {
	signer, ok := key.(crypto.Signer)
	if !ok {
		return false
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(leaf.PublicKey)
}

// list names trust domains in a message, the first few of them.
func list(domains []spiffeid.TrustDomain) string {
	const most = 3
	names := make([]string, 0, most)
	for _, td := range domains[:min(most, len(domains))] {
		names = append(names, td.Name())
	}
	text := strings.Join(names, ", ")
	if more := len(domains) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
