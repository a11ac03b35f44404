// Package identity turns a client certificate into a verified SPIFFE ID.
//
// A [Provider] ([LoadFiles] of this package, or identity/workload for the Workload
// API) returns immutable snapshots of the gateway's own SVID and of the trust
// bundles. A [Verifier] checks a peer's certificates against the current snapshot
// and returns a [Peer]: a SPIFFE ID, or the cause why there is none.
// [ServerConfig] puts both into a [crypto/tls.Config]:
//
//	provider, err := identity.LoadFiles(identity.FileConfig{Dir: "/run/spiffe"})
//	verifier, err := identity.NewVerifier(provider)
//	config, err := identity.ServerConfig{Provider: provider, Verifier: verifier}.TLS()
//	…
//	peer := verifier.Peer(conn.ConnectionState()) // after the handshake
//
// The package does not guess. It reads the SPIFFE ID from the only URI SAN of the
// leaf, byte for byte, and verifies a certificate only against the bundle of its own
// trust domain. A missing provider, bundle or key is an error and never means "allow".
// It never fails a handshake because of the client's identity, since a failed
// handshake tells the user nothing: the gateway answers later with [Peer.Cause] and
// [Peer.Detail]. The package knows nothing of destinations, and it does not log.
package identity

import (
	"crypto/x509"
	"errors"
	"math/bits"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Provider returns the current snapshot. Snapshot never returns nil, returns the same
// pointer until something has changed, and is safe for concurrent use.
type Provider interface {
	Snapshot() *Snapshot
}

var errNoSnapshot = errors.New("identity provider has no snapshot")

// current returns the snapshot of a provider. It is nil if the provider is nil, or returns
// a snapshot that NewSnapshot did not make, so that nobody is trusted then.
func current(provider Provider) *Snapshot {
	if provider == nil {
		return nil
	}
	if snap := provider.Snapshot(); snap != nil && snap.generation > 0 {
		return snap
	}
	return nil
}

// Cause is the result of the verification of a peer. The zero value is [Missing], so
// that a zero [Peer] has no identity.
type Cause uint8

// The causes. Only with Verified a peer has an identity.
const (
	// Missing means that the client presented no certificate.
	Missing Cause = iota
	// Invalid means that the certificate is not an X509-SVID for a client, or
	// is not valid yet.
	Invalid
	// Expired means that the certificate was valid, and that it or one of its issuers
	// has expired.
	Expired
	// Untrusted means that the trust domain is not trusted, or that the
	// certificate was not issued by it.
	Untrusted
	// Verified means that the peer has proven its SPIFFE ID.
	Verified
)

// String returns the cause in lower case, or "unknown".
func (c Cause) String() string {
	switch c {
	case Missing:
		return "missing"
	case Invalid:
		return "invalid"
	case Expired:
		return "expired"
	case Untrusted:
		return "untrusted"
	case Verified:
		return "verified"
	}
	return "unknown"
}

// Peer is the result of one verification. The zero value has no identity.
type Peer struct {
	// ID is the verified SPIFFE ID, always with a path. It is zero unless
	// Cause is Verified.
	ID spiffeid.ID
	// Cause says whether there is an ID, and if not, why not.
	Cause Cause
	// Detail explains the cause to the caller in one line of printable ASCII of
	// at most 256 bytes. It is empty when Cause is Verified.
	Detail string
	// NotAfter is the earliest expiry in the verified chain, including the authority.
	// It is zero unless Cause is Verified.
	NotAfter time.Time
	// Excess means that the peer presented more than the package reads, so that none
	// of it was read. The connection should be closed after the answer.
	Excess bool

	generation uint64 // generation of the snapshot that the peer was verified against
	used       mask   // presented certificates that Chain returns
}

// Chain returns the presented certificates that lead to an authority, the leaf first,
// and those by which another authority has signed the same key as one of them. It is
// nil unless Cause is Verified.
func (p Peer) Chain(presented []*x509.Certificate) []*x509.Certificate {
	if p.Cause != Verified || len(presented) > maxPresented {
		return nil
	}
	if p.used == 1<<len(presented)-1 {
		return presented
	}
	chain := make([]*x509.Certificate, 0, bits.OnesCount8(uint8(p.used)))
	for i, cert := range presented {
		if p.used&(1<<i) != 0 {
			chain = append(chain, cert)
		}
	}
	return chain
}
