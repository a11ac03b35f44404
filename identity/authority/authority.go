// Package authority is a small SPIFFE authority: one CA for one trust domain that mints
// X509-SVIDs into memory or into a directory.
//
//	ca, err := authority.New(authority.Config{TrustDomain: td})
//	svid, err := ca.Mint(authority.Options{ID: id, DNS: []string{"localhost"}})
//	err = svid.WriteDir("/tmp/demo/gateway", ca.Bundle())
//
// Package workloadapi serves SVIDs of an authority over the SPIFFE Workload API. The CA
// is replaced only by the three steps of a roll, which an authority in a directory does
// not have:
//
//	err = ca.Prepare()  // adds a new CA to the bundle; wait until everybody has the bundle
//	err = ca.Activate() // signs with the new CA; wait until everybody has a new SVID
//	err = ca.Retire()   // removes the old CA from the bundle
//
// The package is for demonstrations, development and tests, not for production: it keeps
// its key in memory or in a plain file, it attests no caller and gives every identity to
// every caller, and it revokes nothing. Everything that it mints is well-formed; tests
// that need bad certificates make them with crypto/x509.
package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// DefaultCALifetime is the lifetime of a CA that [New] makes.
	DefaultCALifetime = 24 * time.Hour
	// storedCALifetime is the lifetime of a CA that Open makes.
	storedCALifetime = 365 * 24 * time.Hour

	// backdate is how long before the current time certificates begin to be valid, since
	// the clocks of two machines differ.
	backdate = time.Minute

	// organization is the organization in the subject of every certificate.
	organization = "exeat authority, not for production"
)

// Config configures an authority in memory.
type Config struct {
	// TrustDomain is the trust domain of the authority. Required.
	TrustDomain spiffeid.TrustDomain
	// CALifetime is the lifetime of each CA; nothing that the CA signs is valid for
	// longer. Zero means [DefaultCALifetime]; negative is an error.
	CALifetime time.Duration
}

// Authority is a CA with its key, and the CAs before and after it while they are in its
// bundle. It is safe for concurrent use.
type Authority struct {
	trustDomain spiffeid.TrustDomain
	lifetime    time.Duration // lifetime of a new CA; zero if the CA is in a directory and cannot be rolled

	// mu guards the fields below.
	mu      sync.Mutex
	signing issuer
	next    *issuer             // the CA that Prepare has made; nil if none
	old     []*x509.Certificate // CAs that no longer sign and are still in the bundle
	changed chan struct{}       // closed at the next change
}

// issuer is a CA with its key. It is immutable.
type issuer struct {
	ca  *x509.Certificate
	key crypto.Signer
}

// New returns an authority with a new key that is kept in memory only.
func New(config Config) (*Authority, error) {
	switch {
	case config.TrustDomain.IsZero():
		return nil, errors.New("authority needs a trust domain")
	case config.CALifetime < 0:
		return nil, fmt.Errorf("lifetime %s of the authority is negative", config.CALifetime)
	case config.CALifetime == 0:
		config.CALifetime = DefaultCALifetime
	}
	signing, err := newIssuer(config.TrustDomain, config.CALifetime)
	if err != nil {
		return nil, err
	}
	return &Authority{trustDomain: config.TrustDomain, lifetime: config.CALifetime, signing: signing, changed: make(chan struct{})}, nil
}

func newIssuer(td spiffeid.TrustDomain, lifetime time.Duration) (issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issuer{}, fmt.Errorf("generating the key of the authority: %w", err)
	}
	now := time.Now()
	// X509-SVID section 4: a CA of a trust domain has the SPIFFE ID of the trust domain,
	// without a path. The subject is the same for every authority of the trust domain, so
	// that a client with a certificate of an older authority still presents it and learns
	// that it is not trusted.
	ca, err := sign(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: commonName(td)},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil, key.Public(), key)
	if err != nil {
		return issuer{}, fmt.Errorf("making the certificate of the authority: %w", err)
	}
	return issuer{ca: ca, key: key}, nil
}

// TrustDomain returns the trust domain of the authority.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.trustDomain }

// NotAfter returns the time at which the CA that signs expires.
func (a *Authority) NotAfter() time.Time { return a.issuer().ca.NotAfter }

// Bundle returns the certificates of the authority as PEM. The CA that signs is first.
func (a *Authority) Bundle() []byte {
	var out []byte
	for _, ca := range a.authorities() {
		out = append(out, encodeCertificate(ca)...)
	}
	return out
}

// X509Bundle returns the certificates of the authority as a new bundle.
func (a *Authority) X509Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.trustDomain, a.authorities())
}

func (a *Authority) issuer() issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.signing
}

// commonName returns the name of a trust domain, cut to the 64 characters that X.509
// allows in a common name. It is for people only.
func commonName(td spiffeid.TrustDomain) string {
	const most = 64
	name := td.Name()
	return name[:min(most, len(name))]
}

// sign makes a certificate with a random serial number. A nil parent makes it
// self-signed.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = template
	}
	// Without a serial number in the template crypto/x509 makes a random one of 159 bits.
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("reading back what was signed: %w", err)
	}
	return cert, nil
}
