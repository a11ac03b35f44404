package identity

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxIDBytes          = 2048 // SPIFFE-ID section 2.3
	maxTrustDomainBytes = 255  // SPIFFE-ID section 2.1
	maxQuotedBytes      = 64   // bytes of an untrusted string in a message
)

// leafID returns the SPIFFE ID of the leaf of an X509-SVID. It makes all checks that
// need neither a bundle nor a clock. The error is printable and bounded.
func leafID(leaf *x509.Certificate) (spiffeid.ID, error) {
	uris, err := uriSANs(leaf)
	switch {
	case err != nil:
		return spiffeid.ID{}, err
	case len(uris) == 0:
		return spiffeid.ID{}, errors.New("certificate has no URI SAN and so no SPIFFE ID")
	case len(uris) > 1:
		return spiffeid.ID{}, fmt.Errorf("certificate has %d URI SANs, an X509-SVID has exactly one", len(uris))
	}
	id, err := parseID(uris[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("certificate has the URI SAN %s: %w", quoted(uris[0]), err)
	}
	if err := checkLeaf(leaf); err != nil {
		return spiffeid.ID{}, err
	}
	return id, nil
}

// checkLeaf applies the rules of X509-SVID section 4 to the leaf.
func checkLeaf(leaf *x509.Certificate) error {
	const authority = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	switch {
	case leaf.IsCA:
		return errors.New("certificate is a CA (CA:TRUE), not the leaf of a workload")
	case leaf.KeyUsage&authority != 0:
		return errors.New("certificate may sign certificates (keyCertSign or cRLSign), not the leaf of a workload")
	case leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("certificate has a key usage without digitalSignature")
	case len(leaf.UnhandledCriticalExtensions) > 0:
		return errors.New("certificate has a critical extension that is not understood")
	}
	return nil
}

// checkUsage refuses a leaf whose extended key usages lack the given one, which is
// clientAuth or serverAuth. A leaf without the extension is valid for every use.
func checkUsage(leaf *x509.Certificate, usage x509.ExtKeyUsage) error {
	switch {
	case len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0, slices.Contains(leaf.ExtKeyUsage, usage):
		return nil
	case usage == x509.ExtKeyUsageServerAuth:
		return errors.New("certificate is not for servers: its extended key usage has no serverAuth")
	}
	return errors.New("certificate is not for clients: its extended key usage has no clientAuth")
}

// uriSANs returns the URI SANs of a certificate byte for byte. Certificate.URIs is not
// exact enough: net/url drops an empty fragment and the case of the scheme, so that two
// spellings would become one identity.
func uriSANs(cert *x509.Certificate) ([]string, error) {
	const uriTag = 6 // RFC 5280 section 4.2.1.6, GeneralName
	var uris []string
	for _, ext := range cert.Extensions {
		if !isSubjectAltName(ext.Id) {
			continue
		}
		var names []asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &names)
		if err != nil || len(rest) > 0 {
			return nil, errors.New("certificate has a subjectAltName that cannot be read")
		}
		for _, name := range names {
			if name.Class == asn1.ClassContextSpecific && name.Tag == uriTag {
				uris = append(uris, string(name.Bytes))
			}
		}
	}
	if len(uris) != len(cert.URIs) {
		return nil, errors.New("certificate has a subjectAltName that can be read in two ways")
	}
	return uris, nil
}

func isSubjectAltName(id asn1.ObjectIdentifier) bool {
	return id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) // RFC 5280 section 4.2.1.6
}

// parseID parses the SPIFFE ID of a workload. The String of the result equals raw, so
// that two identities are equal only if their bytes are.
func parseID(raw string) (spiffeid.ID, error) {
	if len(raw) > maxIDBytes {
		return spiffeid.ID{}, fmt.Errorf("a SPIFFE ID has at most %d bytes, this one has %d", maxIDBytes, len(raw))
	}
	id, err := spiffeid.FromString(raw)
	switch {
	case err != nil:
		return spiffeid.ID{}, fmt.Errorf("not a SPIFFE ID: %w", err)
	case len(id.TrustDomain().Name()) > maxTrustDomainBytes:
		return spiffeid.ID{}, fmt.Errorf("a trust domain has at most %d bytes", maxTrustDomainBytes)
	case id.Path() == "":
		return spiffeid.ID{}, errors.New("it names a trust domain, not a workload in it")
	}
	return id, nil
}

// checkAuthority checks a CA of the bundle of a trust domain. A CA needs no SPIFFE ID,
// but one with the ID of another trust domain is in the wrong bundle.
func checkAuthority(td spiffeid.TrustDomain, ca *x509.Certificate) error {
	name := quoted(ca.Subject.String())
	if !ca.BasicConstraintsValid || !ca.IsCA {
		return fmt.Errorf("certificate %s is not a CA; a bundle holds only the authorities of its trust domain", name)
	}
	for _, uri := range ca.URIs {
		if uri.Scheme != "spiffe" {
			continue
		}
		id, err := spiffeid.FromURI(uri)
		if err != nil {
			return fmt.Errorf("CA %s has the URI SAN %s: %w", name, quoted(uri.String()), err)
		}
		if id.TrustDomain() != td {
			return fmt.Errorf("CA %s belongs to trust domain %s, not to %s; put it into the bundle of its own trust domain",
				name, quoted(id.TrustDomain().Name()), quoted(td.Name()))
		}
	}
	return nil
}

// checkValidity returns an error if cert is not valid at the time now.
func checkValidity(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("certificate expired %s (%s ago); renew it, or see whether what renews it still runs",
			stamp(cert.NotAfter), now.Sub(cert.NotAfter).Round(time.Second))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("certificate is not valid before %s (in %s); check the clocks",
			stamp(cert.NotBefore), cert.NotBefore.Sub(now).Round(time.Second))
	}
	return nil
}

// window returns the period in which all certificates of a chain are valid.
func window(chain []*x509.Certificate) (from, until time.Time) {
	from, until = chain[0].NotBefore, chain[0].NotAfter
	for _, cert := range chain[1:] {
		if cert.NotBefore.After(from) {
			from = cert.NotBefore
		}
		if cert.NotAfter.Before(until) {
			until = cert.NotAfter
		}
	}
	return from, until
}

// lasting returns the chain that stays valid for the longest time, and its window.
func lasting(chains [][]*x509.Certificate) (best []*x509.Certificate, from, until time.Time) {
	for _, chain := range chains {
		if f, u := window(chain); best == nil || u.After(until) {
			best, from, until = chain, f, u
		}
	}
	return best, from, until
}

// quoted returns an untrusted string quoted, printable and bounded.
func quoted(s string) string {
	if len(s) > maxQuotedBytes {
		return strconv.QuoteToASCII(s[:maxQuotedBytes]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// stamp formats a time for messages.
func stamp(t time.Time) string {
	return t.UTC().Format(time.RFC3339)
}
