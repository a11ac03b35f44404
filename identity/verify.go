package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	maxPresented = 5        // certificates of one peer; real chains have one to four
	maxDetail    = 256      // bytes of Peer.Detail
	maxBytes     = 32 << 10 // of what a peer presents: the connection keeps it
	maxMoments   = 2        // at which a refused chain is tried again, since its owner chooses how dear a try is
)

// Verifier checks the certificates of peers against the current snapshot of a
// source, and remembers successes until the snapshot changes or a certificate
// of the chain expires. It is safe for concurrent use. The zero value refuses
// everybody.
type Verifier struct {
	refused  refusals
	source   Source
	cache    cache
	standing standing
}

// NewVerifier returns a verifier over a source that has a snapshot.
func NewVerifier(src Source) (*Verifier, error) {
	if current(src) == nil {
		return nil, fmt.Errorf("verifier: %w", errNoSnapshot)
	}
	return &Verifier{source: src, cache: cache{half: cacheEntries / 2}}, nil
}

// Verify says whose certificates these are: the leaf first, then what the peer
// sent with it. It proves nothing about who holds the key, see [Verifier.Peer].
func (v *Verifier) Verify(certs []*x509.Certificate) Peer {
	snap := v.snapshot()
	if snap == nil {
		return Peer{Cause: Untrusted, Detail: "no trust bundle is loaded"}
	}
	switch {
	case len(certs) == 0:
		return snap.refuse(Missing, "no certificate, or none issued by "+snap.trusted.domainList)
	case slices.Contains(certs, nil):
		return snap.refuse(Invalid, "certificate cannot be read")
	}
	if err := bounded(certs); err != nil {
		return snap.refuse(Invalid, err.Error())
	}
	now := time.Now()
	key := fingerprintOf(certs)
	if peer, ok := v.cache.get(snap, key, now); ok {
		return peer
	}
	if peer, ok := v.refused.get(snap, key, now); ok {
		return peer
	}
	peer, from := snap.verify(certs, now)
	if peer.Cause == Verified {
		v.cache.put(snap, key, verdict{peer: peer, notBefore: from})
	} else {
		v.refused.put(snap, key, peer, now)
	}
	return peer
}

// verifyConnection is for [tls.Config.VerifyConnection] of a server. It
// verifies while the handshake runs, on resumed sessions too, so that
// [Verifier.Peer] only looks up. Identity failures are answered over HTTP and
// do not fail the handshake; more certificates than anybody has do, since the
// connection would keep them for as long as it lasts.
func (v *Verifier) verifyConnection(cs tls.ConnectionState) error {
	if err := bounded(cs.PeerCertificates); err != nil {
		return err
	}
	v.Verify(cs.PeerCertificates)
	return nil
}

// bounded refuses what is dear to keep or to verify: many certificates, long
// ones, and several of one subject and key, of which crypto/x509 would try
// every order.
func bounded(certs []*x509.Certificate) error {
	if len(certs) > maxPresented {
		return fmt.Errorf("%d certificates presented, at most %d are read", len(certs), maxPresented)
	}
	size := 0
	for i, cert := range certs {
		size += len(cert.Raw)
		for _, other := range certs[:i] {
			if bytes.Equal(cert.RawSubject, other.RawSubject) && bytes.Equal(cert.RawSubjectPublicKeyInfo, other.RawSubjectPublicKeyInfo) {
				return errors.New("two certificates of one subject and key presented")
			}
		}
	}
	if size > maxBytes {
		return fmt.Errorf("%d bytes of certificates presented, at most %d are read", size, maxBytes)
	}
	return nil
}

// Peer says who is at the other end of a connection, against the snapshot of
// now. Before the end of the handshake nobody has proven to hold the key, so
// that the answer is [Missing].
func (v *Verifier) Peer(cs tls.ConnectionState) Peer {
	if !cs.HandshakeComplete {
		return Peer{Cause: Missing, Detail: "the TLS handshake is not complete"}
	}
	return v.Verify(cs.PeerCertificates)
}

// Generation returns that of the snapshot in force, 0 if there is none: while it
// does not change, no answer of Peer does, but by the passing of time.
func (v *Verifier) Generation() uint64 {
	if snap := v.snapshot(); snap != nil {
		return snap.generation
	}
	return 0
}

func (v *Verifier) snapshot() *Snapshot {
	if v == nil {
		return nil
	}
	return current(v.source)
}

// verify also returns from when on the success holds.
func (s *Snapshot) verify(certs []*x509.Certificate, now time.Time) (Peer, time.Time) {
	leaf := certs[0]
	id, err := leafID(leaf)
	if err == nil {
		err = checkClientUsage(leaf)
	}
	if err != nil {
		return s.refuse(Invalid, err.Error()), time.Time{}
	}
	t, ok := s.trusted.bundles[id.TrustDomain()]
	if !ok {
		return s.refuse(Untrusted, fmt.Sprintf("trust domain %s is not trusted here; trusted: %s",
			quoted(id.TrustDomain().Name()), s.trusted.domainList)), time.Time{}
	}
	chains, err := leaf.Verify(t.options(certs, now, x509.ExtKeyUsageClientAuth))
	if err != nil {
		return s.refuse(t.explain(certs, now)), time.Time{}
	}
	_, from, until := lasting(chains)
	return Peer{ID: id, Cause: Verified, NotAfter: until, generation: s.generation}, from
}

// explain says why certs, whose trust domain is t, do not verify now. Time is
// the reason only if they would have verified at another time: else an
// attacker's certificate would be called expired.
func (t *trust) explain(certs []*x509.Certificate, now time.Time) (Cause, string) {
	chain := t.chainAtAnotherTime(certs, now)
	if chain == nil {
		return Untrusted, "certificate was not issued by trust domain " + quoted(t.domain.Name()) + " as it is known here"
	}
	from, until := window(chain)
	switch leaf := chain[0]; {
	case now.After(leaf.NotAfter):
		return Expired, "certificate expired " + stamp(leaf.NotAfter)
	case now.After(until):
		return Expired, "certificate was issued by one that expired " + stamp(until)
	default:
		return Invalid, fmt.Sprintf("certificate is not valid before %s and it is %s here: check the clocks", stamp(from), stamp(now))
	}
}

// chainAtAnotherTime returns a chain that holds at some time, or nil. When a
// chain holds at all, it does at the latest NotBefore in it, so that these are
// the only moments to look at.
func (t *trust) chainAtAnotherTime(certs []*x509.Certificate, now time.Time) []*x509.Certificate {
	all := slices.Concat(certs, t.authorities)
	if !slices.ContainsFunc(all, func(c *x509.Certificate) bool { return now.Before(c.NotBefore) || now.After(c.NotAfter) }) {
		return nil
	}
	var tried []time.Time
	for _, cert := range all {
		at := cert.NotBefore
		if at.Before(certs[0].NotBefore) || at.After(certs[0].NotAfter) || slices.ContainsFunc(tried, at.Equal) {
			continue
		}
		if len(tried) == maxMoments {
			return nil
		}
		tried = append(tried, at)
		chains, err := certs[0].Verify(t.options(certs, at, x509.ExtKeyUsageClientAuth))
		if err == nil {
			chain, _, _ := lasting(chains)
			return chain
		}
	}
	return nil
}

func (s *Snapshot) refuse(cause Cause, detail string) Peer {
	return Peer{Cause: cause, Detail: detail[:min(len(detail), maxDetail)], generation: s.generation}
}
