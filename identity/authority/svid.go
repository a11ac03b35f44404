package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// DefaultLifetime is the default lifetime of an X509-SVID.
const DefaultLifetime = time.Hour

// Options describes the X509-SVID to mint.
type Options struct {
	// ID is a SPIFFE ID of the trust domain, with a path. Required.
	ID spiffeid.ID
	// DNS holds host names and IP addresses for the certificate, beside the SPIFFE ID,
	// for clients that check the name of a server. A name has letters, digits, hyphens
	// and dots, and its leftmost label may be "*". Empty means none.
	DNS []string
	// Lifetime is how long the SVID is valid from now on. Zero means [DefaultLifetime],
	// or until the authority expires if that is sooner. It is an error if Lifetime is
	// negative or ends after the authority.
	Lifetime time.Duration
}

// SVID is a minted X509-SVID with its private key.
type SVID struct {
	// ID is the SPIFFE ID.
	ID spiffeid.ID
	// Certificate is the certificate as PEM. There are no intermediates.
	Certificate []byte
	// Key is the private key in PKCS #8 as PEM.
	Key []byte
	// NotAfter is the time at which the certificate expires.
	NotAfter time.Time

	leaf *x509.Certificate
	key  crypto.Signer
}

// TLS returns the certificate with its key for a [tls.Config].
func (s *SVID) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{s.leaf.Raw}, PrivateKey: s.key, Leaf: s.leaf}
}

// Mint makes a P-256 key and a certificate for it, for clients and servers.
func (a *Authority) Mint(options Options) (*SVID, error) {
	switch {
	case options.ID.IsZero():
		return nil, errors.New("minting needs a SPIFFE ID")
	case options.ID.TrustDomain() != a.trustDomain:
		return nil, fmt.Errorf("%s is not in trust domain %s of this authority", options.ID, a.trustDomain)
	case options.ID.Path() == "":
		return nil, fmt.Errorf("%s is a trust domain; a workload has a path in it", options.ID)
	}
	now, signing := time.Now(), a.issuer()
	until, err := signing.end(now, options.Lifetime)
	if err != nil {
		return nil, err
	}
	names, addresses, err := hosts(options.DNS)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	// The identity is the URI SAN only. The certificate has a subject because programs
	// that use GnuTLS refuse one without. The subject differs from that of the CA;
	// otherwise the certificate would look self-signed.
	leaf, err := sign(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}},
		URIs:                  []*url.URL{options.ID.URL()},
		DNSNames:              names,
		IPAddresses:           addresses,
		NotBefore:             now.Add(-backdate),
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, signing.ca, key.Public(), signing.key)
	if err != nil {
		return nil, fmt.Errorf("minting %s: %w", options.ID, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &SVID{ID: options.ID, Certificate: encodeCertificate(leaf), Key: keyPEM, NotAfter: leaf.NotAfter, leaf: leaf, key: key}, nil
}

// end returns the time at which a certificate with the given lifetime expires.
func (i issuer) end(now time.Time, lifetime time.Duration) (time.Time, error) {
	left := i.ca.NotAfter.Sub(now)
	switch {
	case left <= 0:
		return time.Time{}, fmt.Errorf("the authority expired %s", i.ca.NotAfter.UTC().Format(time.RFC3339))
	case lifetime < 0:
		return time.Time{}, fmt.Errorf("lifetime %s is negative: write a duration such as 1h", lifetime)
	case lifetime == 0:
		lifetime = min(DefaultLifetime, left)
	case lifetime > left:
		return time.Time{}, fmt.Errorf("lifetime %s ends after the authority, which expires %s", lifetime, i.ca.NotAfter.UTC().Format(time.RFC3339))
	}
	return now.Add(lifetime), nil
}

// hosts separates host names from IP addresses, and checks the names.
func hosts(all []string) (names []string, addresses []net.IP, err error) {
	for _, host := range all {
		if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
			addresses = append(addresses, addr.AsSlice())
			continue
		}
		if err := checkName(host); err != nil {
			return nil, nil, err
		}
		names = append(names, host)
	}
	return names, addresses, nil
}

// checkName returns nil if clients match name as a DNS name (RFC 1123 section 2.1, RFC
// 9525 section 6.3), and an error otherwise.
func checkName(name string) error {
	const maxName, maxLabel = 253, 63
	if name == "" || len(name) > maxName {
		return fmt.Errorf("DNS name %.64q: a name has 1 to %d characters", name, maxName)
	}
	labels := strings.Split(name, ".")
	if labels[0] == "*" && len(labels) > 2 {
		labels = labels[1:]
	}
	for _, label := range labels {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInName) {
			return fmt.Errorf("DNS name %.64q: labels have 1 to %d letters, digits and inner hyphens; write other scripts as xn-- labels", name, maxLabel)
		}
	}
	if last := labels[len(labels)-1]; !strings.ContainsFunc(last, notDigit) {
		return fmt.Errorf("DNS name %.64q ends in a number but is no IP address", name)
	}
	return nil
}

func notInName(r rune) bool {
	return r != '-' && notDigit(r) && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

func notDigit(r rune) bool { return r < '0' || r > '9' }
