// Package identity turns a client certificate into a verified SPIFFE ID.
//
// A [Source] (here: [LoadFiles]; over the Workload API: identity/workload) hands
// out immutable snapshots of what the gateway is and whom it trusts. A
// [Verifier] checks a peer's certificates against the current snapshot and
// answers with a [Peer]: a SPIFFE ID, or the cause why there is none.
// [ServerConfig] puts both into a [crypto/tls.Config]:
//
//	source, err := identity.LoadFiles(identity.FileConfig{Dir: "/run/spiffe"})
//	verifier, err := identity.NewVerifier(source)
//	config, err := identity.ServerConfig{Source: source, Verifier: verifier}.TLS()
//	…
//	peer := verifier.Peer(conn.ConnectionState()) // after the handshake
//
// The package refuses to guess. The SPIFFE ID is read from the one URI SAN of
// the leaf and nowhere else, byte for byte; a certificate is verified only
// against the bundle of its own trust domain; a missing source, bundle or key
// is an error and never means "allow". It never fails a handshake over the
// client's identity, because a refused handshake tells the user nothing: the
// caller answers over HTTP with [Peer.Cause] and [Peer.Detail]. It decides
// nothing about destinations and it does not log.
package identity

import (
	"crypto/x509"
	"errors"
	"math/bits"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Source hands out the current snapshot. Snapshot never returns nil, returns
// the same pointer until something changed, and is safe for concurrent use.
type Source interface {
	Snapshot() *Snapshot
}

var errNoSnapshot = errors.New("identity source has no snapshot")

// current returns the snapshot of a source, or nil for a source that is nil or
// does not keep its word: nothing may follow from a missing identity.
func current(src Source) *Snapshot {
	if src == nil {
		return nil
	}
	if snap := src.Snapshot(); snap != nil && snap.generation > 0 {
		return snap
	}
	return nil
}

// Cause says what the verification of a peer came to. The zero value is
// [Missing], so that a zero [Peer] is nobody.
type Cause uint8

// The causes; only Verified comes with an identity.
const (
	// Missing means that the client presented no certificate.
	Missing Cause = iota
	// Invalid means that the certificate is not an X509-SVID for a client, or
	// is not valid yet.
	Invalid
	// Expired means that the certificate, or one that issued it, was good and
	// has expired.
	Expired
	// Untrusted means that the trust domain is not trusted, or that the
	// certificate was not issued by it.
	Untrusted
	// Verified means that the peer is who its SPIFFE ID says.
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

// Peer is what one verification found out. The zero value is nobody.
type Peer struct {
	// ID is the verified SPIFFE ID, always with a path. It is zero unless
	// Cause is Verified.
	ID spiffeid.ID
	// Cause says whether there is an ID, and if not, why not.
	Cause Cause
	// Detail explains the cause to the caller in one line of printable ASCII of
	// at most 256 bytes. It is empty when Cause is Verified.
	Detail string
	// NotAfter is the earliest end of the verified chain, the authority
	// included. It is zero unless Cause is Verified.
	NotAfter time.Time
	// Excess means that more was presented than is read, and that none of it was.
	// The connection should be closed with the answer.
	Excess bool

	generation uint64 // of the snapshot that answered
	used       mask
}

// Chain returns those of the certificates that the peer presented which lead to
// an authority, the leaf first, and what other authorities have signed in the
// place of one of them. It is nil unless Cause is Verified.
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
