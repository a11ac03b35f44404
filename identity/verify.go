package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

const maxDetail = 256 // bytes of Peer.Detail

// Verifier verifies the certificates of peers against the current snapshot of a provider.
// It caches verified peers until the snapshot changes or a certificate of their chain
// expires. It is safe for concurrent use. The zero value refuses every peer.
type Verifier struct {
	provider     Provider
	refused      refusals     // peers that were refused a moment ago
	cache        cache        // peers that were verified
	trustAnswers trustAnswers // answers of Trusts
}

// NewVerifier returns a verifier over a provider that has a snapshot.
func NewVerifier(provider Provider) (*Verifier, error) {
	if current(provider) == nil {
		return nil, fmt.Errorf("verifier: %w", errNoSnapshot)
	}
	return &Verifier{provider: provider, cache: cache{half: cacheEntries / 2}}, nil
}

// Verify verifies certificates, the leaf first. It says nothing about whether the peer
// has the key; see [Verifier.Peer].
func (v *Verifier) Verify(certs []*x509.Certificate) Peer {
	peer, _ := v.verify(certs, nil)
	return peer
}

// verify is Verify with a budget, which may be nil. It returns false if the budget is
// used up, so that the peer was not verified.
func (v *Verifier) verify(certs []*x509.Certificate, budget Budget) (Peer, bool) {
	snap := v.snapshot()
	if snap == nil {
		return Peer{Cause: Untrusted, Detail: "no trust bundle is loaded"}, true
	}
	if len(certs) == 0 {
		return snap.refuse(Missing, "no certificate, or none issued by "+snap.trusted.domainList), true
	}
	if slices.Contains(certs, nil) {
		return snap.refuse(Invalid, "certificate cannot be read"), true
	}
	now := time.Now()
	err := tooMuch(certs)
	var key fingerprint
	if err == nil {
		key = fingerprintOf(certs)
		if peer, ok := v.cache.get(snap, key, now); ok {
			return peer, true
		}
		err = bounded(certs)
	}
	if budget != nil && !budget.Left() {
		return snap.refuse(Invalid, "the budget of this source for certificates that do not verify is used up"), false
	}
	var peer Peer
	var cost effort
	if err != nil {
		peer = snap.refuse(Invalid, err.Error())
		peer.Excess = true
	} else if found, ok := v.refused.get(snap, key, now); ok {
		peer = found
	} else if peer, cost = v.find(snap, certs, key, now); peer.Cause == Verified {
		return peer, true
	}
	if budget != nil {
		budget.Spend(cost.time + costOfHandshake(certs))
	}
	return peer, true
}

// tooMuch makes the checks of the bounds that read no certificate.
func tooMuch(certs []*x509.Certificate) error {
	if err := releasedFor(certs); err != nil {
		return err
	}
	return boundedInAll(certs)
}

// find verifies certificates and caches the result.
func (v *Verifier) find(snap *Snapshot, certs []*x509.Certificate, key fingerprint, now time.Time) (Peer, effort) {
	peer, from, cost := snap.verify(certs, now)
	if peer.Cause == Verified {
		v.cache.put(snap, key, verdict{peer: peer, notBefore: from})
	} else {
		v.refused.put(snap, key, peer, now)
	}
	return peer, cost
}

// Peer verifies the other end of a connection against the current snapshot. Before the
// end of the handshake the peer has not proven that it has the key, and the cause is
// [Missing].
func (v *Verifier) Peer(cs tls.ConnectionState) Peer {
	peer, _ := v.PeerWithin(cs, nil)
	return peer
}

// PeerWithin is Peer with a budget for certificates that do not verify. These are
// charged to the budget whether the result was cached or not; certificates that verify
// are not. It returns false, and a peer without an identity, if the budget is used up.
func (v *Verifier) PeerWithin(cs tls.ConnectionState, budget Budget) (Peer, bool) {
	if !cs.HandshakeComplete {
		return Peer{Cause: Missing, Detail: "the TLS handshake is not complete"}, true
	}
	return v.verify(cs.PeerCertificates, budget)
}

// Generation returns the generation of the current snapshot, 0 if there is none. While
// it does not change, the result of Peer for a connection changes only with time.
func (v *Verifier) Generation() uint64 {
	if snap := v.snapshot(); snap != nil {
		return snap.generation
	}
	return 0
}

// snapshot returns the current snapshot, nil if there is none.
func (v *Verifier) snapshot() *Snapshot {
	if v == nil {
		return nil
	}
	return current(v.provider)
}

// verify verifies the certificates of a client. It also returns the time from which the
// result is valid if the peer is verified, and the processor time of the signature checks.
func (s *Snapshot) verify(certs []*x509.Certificate, now time.Time) (Peer, time.Time, effort) {
	return s.verifyFor(x509.ExtKeyUsageClientAuth, certs, now)
}

// verifyFor does what verify does, for certificates with a given extended key usage.
func (s *Snapshot) verifyFor(usage x509.ExtKeyUsage, certs []*x509.Certificate, now time.Time) (Peer, time.Time, effort) {
	leaf := certs[0]
	id, err := leafID(leaf)
	if err == nil {
		err = checkUsage(leaf, usage)
	}
	if err != nil {
		return s.refuse(Invalid, err.Error()), time.Time{}, effort{}
	}
	t, ok := s.trusted.bundles[id.TrustDomain()]
	if !ok {
		return s.refuse(Untrusted, fmt.Sprintf("trust domain %s is not trusted here; trusted: %s",
			quoted(id.TrustDomain().Name()), s.trusted.domainList)), time.Time{}, effort{}
	}
	found := t.chainsFor(usage, certs)
	valid := found.at(now)
	if len(valid) == 0 {
		return s.refuse(t.explain(found.all, now)), time.Time{}, found.cost
	}
	_, from, until := lasting(valid)
	return Peer{ID: id, Cause: Verified, NotAfter: until, generation: s.generation, used: found.used}, from, found.cost
}

// explain returns the cause for which none of the chains of a certificate is valid now.
// If there is no chain to an authority, the dates do not matter: an attacker's
// certificate is untrusted, even if it has expired.
func (t *trust) explain(chains [][]*x509.Certificate, now time.Time) (Cause, string) {
	if len(chains) == 0 {
		return Untrusted, "certificate was not issued by trust domain " + quoted(t.domain.Name()) + " as it is known here"
	}
	chain, from, until := lasting(chains)
	switch leaf := chain[0]; {
	case now.After(leaf.NotAfter):
		return Expired, "certificate expired " + stamp(leaf.NotAfter)
	case now.After(until):
		return Expired, "certificate was issued by one that expired " + stamp(until)
	default:
		return Invalid, fmt.Sprintf("certificate is not valid before %s and it is %s here: check the clocks", stamp(from), stamp(now))
	}
}

// refuse returns a peer without an identity.
func (s *Snapshot) refuse(cause Cause, detail string) Peer {
	return Peer{Cause: cause, Detail: detail[:min(len(detail), maxDetail)], generation: s.generation}
}
