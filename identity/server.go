package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// maxCANames bounds the size of the CA names in a certificate request, in bytes. Every
// handshake carries them. The extension can hold 64 KiB; with more, no handshake would
// succeed.
const maxCANames = 16 << 10

// ServerConfig configures the TLS of a listener: the certificate that it presents, and
// the verification of clients.
type ServerConfig struct {
	// Provider has the SVID and the bundles. The next handshake uses a new
	// snapshot. Required.
	Provider Provider
	// Verifier verifies clients. It should use the same provider. Required.
	Verifier *Verifier
	// Web is presented instead of the SVID, for clients that check DNS names; see
	// [LoadWebCertificate]. The next handshake uses a new certificate. Nil means that
	// the SVID of the provider is presented.
	Web *WebCertificate
	// Protocols are accepted in ALPN, the preferred one first. A client that offers none
	// of them gets no answer to that, and can still be served. Go clients offer h2 to a
	// proxy and then write HTTP/1.1; a server must therefore decide by the first bytes.
	Protocols []string
}

// TLS returns the configuration of a server that speaks TLS 1.3, asks for a client
// certificate but never demands one, and issues no session tickets. It must not be
// changed.
func (c ServerConfig) TLS() (*tls.Config, error) {
	switch {
	case current(c.Provider) == nil:
		return nil, fmt.Errorf("TLS listener: %w", errNoSnapshot)
	case c.Verifier.snapshot() == nil:
		return nil, errors.New("TLS listener needs a verifier made by NewVerifier")
	case c.Web != nil && c.Web.Certificate() == nil:
		return nil, errors.New("web certificate of the TLS listener was not loaded")
	}
	c.Protocols = slices.Clone(c.Protocols)
	config := c.at(c.Provider.Snapshot())
	config.GetConfigForClient = (&follower{server: c}).configFor
	return config, nil
}

// at returns the configuration for one snapshot.
func (c ServerConfig) at(snap *Snapshot) *tls.Config {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             c.Protocols,
		ClientAuth:             tls.RequestClientCert,
		VerifyConnection:       c.Verifier.verifyConnection,
		SessionTicketsDisabled: true,
	}
	if c.Web != nil {
		config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.Web.Certificate(), nil }
	} else {
		config.Certificates = []tls.Certificate{*snap.certificate}
	}
	// By these names clients choose the certificate that they present, or present none.
	// Without names they present any that they have, which is verified in the same way.
	if snap.trusted.caNames <= maxCANames {
		config.ClientCAs = snap.trusted.callerAuthorities()
	}
	return config
}

// follower returns the configuration for the current snapshot in every handshake. It
// builds one configuration for each snapshot.
type follower struct {
	server ServerConfig
	built  atomic.Pointer[snapshotConfig]
}

type snapshotConfig struct {
	snapshot *Snapshot
	config   *tls.Config
	silent   *tls.Config // the same without protocols
}

func (f *follower) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	snap := current(f.server.Provider)
	if snap == nil {
		return nil, errNoSnapshot
	}
	built := f.built.Load()
	if built == nil || built.snapshot != snap {
		// Two handshakes may build the same configuration at the same time; either is right.
		built = &snapshotConfig{snapshot: snap, config: f.server.at(snap)}
		built.silent = built.config.Clone()
		built.silent.NextProtos = nil
		f.built.Store(built)
	}
	for _, offered := range hello.SupportedProtos {
		if slices.Contains(f.server.Protocols, offered) {
			return built.config, nil
		}
	}
	return built.silent, nil // crypto/tls would end a handshake in which no protocol is known to both
}
