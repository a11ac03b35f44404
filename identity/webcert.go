package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// LoadWebCertificate reads a certificate with DNS names, for listeners whose
// clients check the name of the proxy; see [ServerConfig.Web]. It is an error
// when the certificate names no host, is for other uses than a server's, or is
// not valid now.
func LoadWebCertificate(certificate, key string) (*tls.Certificate, error) {
	if certificate == "" || key == "" {
		return nil, errors.New("web certificate needs both a certificate file and a key file")
	}
	certificateFile, err := readFile("certificate", certificate)
	if err != nil {
		return nil, err
	}
	keyFile, err := readFile("key", key)
	if err != nil {
		return nil, err
	}
	chain, signer, err := parsePair(certificateFile, keyFile)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	if err := checkValidity(leaf, time.Now()); err != nil {
		return nil, fmt.Errorf("certificate file %s: %w", certificate, err)
	}
	if len(leaf.DNSNames) == 0 && len(leaf.IPAddresses) == 0 {
		return nil, fmt.Errorf("certificate file %s has no DNS name or IP address that clients could check; issue it with the names under which clients reach the listener", certificate)
	}
	usages := leaf.ExtKeyUsage
	if len(usages)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.Contains(usages, x509.ExtKeyUsageServerAuth) && !slices.Contains(usages, x509.ExtKeyUsageAny) {
		return nil, fmt.Errorf("certificate file %s is not for servers: its extended key usage has no serverAuth; issue it for a server", certificate)
	}
	out := pair(chain, signer)
	return &out, nil
}
