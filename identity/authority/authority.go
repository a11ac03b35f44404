// Package authority is a small SPIFFE authority: one CA for one trust domain
// that mints X509-SVIDs into memory or into a directory.
//
//	ca, err := authority.New(authority.Config{TrustDomain: td})
//	svid, err := ca.Mint(authority.Options{ID: id, DNS: []string{"localhost"}})
//	err = svid.WriteDir("/tmp/demo/gateway", ca.Bundle())
//
// The room workloadapi below it serves what it mints over the SPIFFE Workload
// API. Its CA changes only when it is told to, in the three steps of a roll, and
// only if it lives in memory:
//
//	err = ca.Prepare()  // a new CA joins the bundle: let it reach everybody
//	err = ca.Activate() // it signs from now on: let everybody get a new SVID
//	err = ca.Retire()   // the old CA leaves the bundle
//
// It is for demonstrations, development and tests, not for production: it keeps
// its key in memory or in a plain file, it attests nobody and gives every
// identity to whoever may call it, and it revokes nothing. Everything it mints
// is well-formed; tests that need bad certificates make them with crypto/x509.
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
	// DefaultCALifetime is that of an authority made by [New].
	DefaultCALifetime = 24 * time.Hour
	// storedCALifetime is that of an authority made by Open.
	storedCALifetime = 365 * 24 * time.Hour

	// backdate is how far before now certificates begin, since the clocks of
	// two machines differ.
	backdate = time.Minute

	// organization stands in the subject of every certificate.
	organization = "exeat authority, not for production"
)

// Config says whose authority it is.
type Config struct {
	// TrustDomain is required.
	TrustDomain spiffeid.TrustDomain
	// CALifetime ends everything that the authority minted. Zero means
	// [DefaultCALifetime]; negative is an error.
	CALifetime time.Duration
}

// Authority is a CA with its key, and the CAs before and after it while they
// are in its bundle. It is safe for concurrent use.
type Authority struct {
	trustDomain spiffeid.TrustDomain
	lifetime    time.Duration // of a CA; zero: stored, and never rolled

	mu      sync.Mutex
	signing issuer
	next    *issuer             // in the bundle; does not sign yet
	old     []*x509.Certificate // in the bundle; sign no more
	changed chan struct{}       // closed at the next change
}

// issuer is what signs. It is immutable.
type issuer struct {
	ca  *x509.Certificate
	key crypto.Signer
}

// New returns an authority with a fresh key that lives in memory only.
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
	// X509-SVID section 4: a CA of a trust domain has the SPIFFE ID of the
	// trust domain, without a path. The subject is the same for every
	// authority of the trust domain: a client that holds a certificate of an
	// older one still presents it, and learns that it is not trusted.
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

// TrustDomain returns whose authority it is.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.trustDomain }

// NotAfter returns when the CA that signs now expires.
func (a *Authority) NotAfter() time.Time { return a.issuer().ca.NotAfter }

// Bundle returns the certificates of the authority as PEM, that of the CA which
// signs now first.
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

// commonName cuts the name of a trust domain to what X.509 allows in a common
// name (64 characters). It is there for people to read.
func commonName(td spiffeid.TrustDomain) string {
	const most = 64
	name := td.Name()
	return name[:min(most, len(name))]
}

// sign makes a certificate with a random serial number. A nil parent means
// that it is signed by itself.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = template
	}
	// Without a serial number in the template crypto/x509 draws one of 159 bits.
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
