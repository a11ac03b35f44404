package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// maxCANames bounds the CA names in a certificate request, in bytes. The
// extension ends at 64 KiB, beyond which no handshake would succeed any more,
// and every handshake carries it.
const maxCANames = 16 << 10

// ServerConfig says how a listener shows itself and asks who is there.
type ServerConfig struct {
	// Source is followed: a new snapshot shows in the next handshake. Required.
	Source Source
	// Verifier verifies clients; it should be over the same source. Required.
	Verifier *Verifier
	// Web is presented instead of the SVID, to clients that check DNS names;
	// see [LoadWebCertificate]. It is followed, too. Nil means the SVID of the
	// source.
	Web *WebCertificate
	// Protocols are offered in ALPN, the preferred one first. Nil offers none:
	// Go clients offer h2 to a proxy and then write HTTP/1.1, so the first
	// bytes decide there.
	Protocols []string
}

// TLS returns the configuration of a server that speaks TLS 1.3, asks for a
// client certificate but never demands one, and gives out no session tickets.
// It must not be changed.
func (c ServerConfig) TLS() (*tls.Config, error) {
	switch {
	case current(c.Source) == nil:
		return nil, fmt.Errorf("TLS listener: %w", errNoSnapshot)
	case c.Verifier.snapshot() == nil:
		return nil, errors.New("TLS listener needs a verifier made by NewVerifier")
	case c.Web != nil && c.Web.Certificate() == nil:
		return nil, errors.New("web certificate of the TLS listener was not loaded")
	}
	c.Protocols = slices.Clone(c.Protocols)
	config := c.at(c.Source.Snapshot())
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
	// Clients pick, or withhold, a certificate by these names. Without names
	// they present what they have, and it is verified all the same.
	if snap.trusted.caNames <= maxCANames {
		config.ClientCAs = snap.trusted.callerAuthorities()
	}
	return config
}

// follower gives every handshake the configuration of the current snapshot,
// built once for each.
type follower struct {
	server ServerConfig
	built  atomic.Pointer[snapshotConfig]
}

type snapshotConfig struct {
	snapshot *Snapshot
	config   *tls.Config
}

func (f *follower) configFor(*tls.ClientHelloInfo) (*tls.Config, error) {
	snap := current(f.server.Source)
	if snap == nil {
		return nil, errNoSnapshot
	}
	if built := f.built.Load(); built != nil && built.snapshot == snap {
		return built.config, nil
	}
	// Two handshakes may build the same one at a time; either will do.
	built := &snapshotConfig{snapshot: snap, config: f.server.at(snap)}
	f.built.Store(built)
	return built.config, nil
}
