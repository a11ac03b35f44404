package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// trustSet holds the bundles of all trusted trust domains.
type trustSet struct {
	bundles    map[spiffeid.TrustDomain]*trust
	domains    []spiffeid.TrustDomain // the keys of bundles, sorted
	domainList string                 // domains as text for messages
	callerCAs  *x509.CertPool         // the authorities of all bundles together
	caNames    int                    // size in bytes of the names of callerCAs in a certificate request
}

func newTrustSet(bundles []*x509bundle.Bundle) (trustSet, error) {
	s := trustSet{
		bundles:   make(map[spiffeid.TrustDomain]*trust, len(bundles)),
		callerCAs: x509.NewCertPool(),
	}
	for _, bundle := range bundles {
		if err := s.add(bundle); err != nil {
			return trustSet{}, err
		}
	}
	slices.SortFunc(s.domains, spiffeid.TrustDomain.Compare)
	s.domainList = list(s.domains)
	return s, nil
}

// add checks and adds a bundle.
func (s *trustSet) add(bundle *x509bundle.Bundle) error {
	if bundle == nil || bundle.TrustDomain().IsZero() {
		return errors.New("bundle without a trust domain")
	}
	td := bundle.TrustDomain()
	if _, ok := s.bundles[td]; ok {
		return fmt.Errorf("two bundles for trust domain %s", quoted(td.Name()))
	}
	t, err := newTrust(td, bundle.X509Authorities())
	if err != nil {
		return err
	}
	s.bundles[td] = t
	s.domains = append(s.domains, td)
	for _, ca := range t.authorities {
		const lengthPrefix = 2 // RFC 8446 section 4.2.4
		s.callerCAs.AddCert(ca)
		s.caNames += lengthPrefix + len(ca.RawSubject)
	}
	return nil
}

// callerAuthorities returns a copy of the authorities of all trust domains, whose names
// are sent to clients. It must not be used to verify a certificate, because with it one
// trust domain could issue identities of another.
func (s *trustSet) callerAuthorities() *x509.CertPool { return s.callerCAs.Clone() }

// trust is the bundle of one trust domain, prepared for verification.
type trust struct {
	domain      spiffeid.TrustDomain
	authorities []*x509.Certificate
	roots       *x509.CertPool

	// The following fields are used by chains. ageless and byName hold copies of the
	// authorities that are valid at any time.

	ageless *x509.CertPool
	byName  map[string][]*x509.Certificate          // copies by their encoded subject
	aged    map[*x509.Certificate]*x509.Certificate // the authority of which the key is a copy
	crowded bool                                    // more than maxNamesakes authorities have one subject
	known   fingerprints                            // intermediates that were found genuine before
}

// CheckBundle returns the error with which [NewSnapshot] would refuse a bundle, or nil.
func CheckBundle(bundle *x509bundle.Bundle) error {
	if _, err := newTrust(bundle.TrustDomain(), bundle.X509Authorities()); err != nil {
		return fmt.Errorf("bundle of trust domain %s: %w", quoted(bundle.TrustDomain().Name()), err)
	}
	return nil
}

// newTrust checks the authorities of a trust domain and prepares them for verification.
func newTrust(td spiffeid.TrustDomain, authorities []*x509.Certificate) (*trust, error) {
	if len(authorities) == 0 {
		return nil, fmt.Errorf("bundle of trust domain %s is empty; nobody could be verified with it", quoted(td.Name()))
	}
	t := &trust{
		domain: td, authorities: authorities, roots: x509.NewCertPool(), ageless: x509.NewCertPool(),
		byName: make(map[string][]*x509.Certificate), aged: make(map[*x509.Certificate]*x509.Certificate),
	}
	for _, ca := range authorities {
		if err := checkAuthority(td, ca); err != nil {
			return nil, err
		}
		t.roots.AddCert(ca)
		ageless, name := withoutAge(ca), string(ca.RawSubject)
		t.ageless.AddCert(ageless)
		t.byName[name], t.aged[ageless] = append(t.byName[name], ageless), ca
		t.crowded = t.crowded || len(t.byName[name]) > maxNamesakes
	}
	return t, nil
}

// issued verifies that chain[0] was issued by an authority, and returns the earliest
// expiry in that chain.
func (t *trust) issued(chain []*x509.Certificate, now time.Time) (time.Time, error) {
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	found, err := chain[0].Verify(x509.VerifyOptions{
		Roots: t.roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // the certificate may be for servers or for clients
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("certificate was not issued by any of the %d authorities in the bundle of trust domain %s; load both from the same issuer: %w",
			len(t.authorities), quoted(t.domain.Name()), err)
	}
	_, _, until := lasting(found)
	return until, nil
}

// list returns the first few trust domains as text for messages.
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
