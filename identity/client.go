package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ClientConfig configures the TLS of a client: the SVID that it presents, and the
// verification of the server by its SPIFFE ID. DNS names are not looked at.
type ClientConfig struct {
	// Snapshot has the SVID and the bundles. Required.
	Snapshot *Snapshot
	// Accept returns an error for a server with a valid SVID that is not the one which is
	// wanted. Required.
	Accept func(server spiffeid.ID) error
	// Protocols are offered in ALPN.
	Protocols []string
}

// TLS returns the configuration of a client that speaks TLS 1.3.
func (c ClientConfig) TLS() (*tls.Config, error) {
	switch {
	case c.Snapshot == nil:
		return nil, fmt.Errorf("TLS client: %w", errNoSnapshot)
	case c.Accept == nil:
		return nil, errors.New("a TLS client needs to know which server it accepts")
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         c.Protocols,
		InsecureSkipVerify: true, //nolint:gosec // G402: the server has an SVID, which VerifyConnection verifies
		VerifyConnection:   func(cs tls.ConnectionState) error { return c.Verify(cs.PeerCertificates) },
		// Whatever authorities the server names: if it accepts no certificate, its answer
		// says why.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Snapshot.certificate, nil },
	}, nil
}

// Verify verifies the certificates of a server, the leaf first. It says nothing about
// whether the server has the key.
func (c ClientConfig) Verify(certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return errors.New("the server shows no certificate")
	}
	if err := bounded(certs); err != nil {
		return fmt.Errorf("the server's %w", err)
	}
	peer, _, _ := c.Snapshot.verifyFor(x509.ExtKeyUsageServerAuth, certs, time.Now())
	if peer.Cause != Verified {
		return fmt.Errorf("the server's %s", peer.Detail)
	}
	return c.Accept(peer.ID)
}
