package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

const maxDetail = 256 // bytes of Peer.Detail

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
	peer, _ := v.verify(certs, nil)
	return peer
}

// verify is Verify within a budget. False means that nothing is left of it, and
// that nothing is known of the peer.
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

// tooMuch says what is too much before anything is looked at.
func tooMuch(certs []*x509.Certificate) error {
	if err := letGoFor(certs); err != nil {
		return err
	}
	return boundedInAll(certs)
}

// find verifies, and remembers what it found.
func (v *Verifier) find(snap *Snapshot, certs []*x509.Certificate, key fingerprint, now time.Time) (Peer, effort) {
	peer, from, cost := snap.verify(certs, now)
	if peer.Cause == Verified {
		v.cache.put(snap, key, verdict{peer: peer, notBefore: from})
	} else {
		v.refused.put(snap, key, peer, now)
	}
	return peer, cost
}

// Peer says who is at the other end of a connection, against the snapshot of
// now. Before the end of the handshake nobody has proven to hold the key, so
// that the answer is [Missing].
func (v *Verifier) Peer(cs tls.ConnectionState) Peer {
	peer, _ := v.PeerWithin(cs, nil)
	return peer
}

// PeerWithin is Peer for a listener where strangers have a budget: what does not
// verify takes from it, remembered or not, and what does verify costs nothing. It
// returns false, and nobody, if nothing is left of the budget to find out with.
func (v *Verifier) PeerWithin(cs tls.ConnectionState, budget Budget) (Peer, bool) {
	if !cs.HandshakeComplete {
		return Peer{Cause: Missing, Detail: "the TLS handshake is not complete"}, true
	}
	return v.verify(cs.PeerCertificates, budget)
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

// verify also returns from when on the success holds, and what it took.
func (s *Snapshot) verify(certs []*x509.Certificate, now time.Time) (Peer, time.Time, effort) {
	leaf := certs[0]
	id, err := leafID(leaf)
	if err == nil {
		err = checkClientUsage(leaf)
	}
	if err != nil {
		return s.refuse(Invalid, err.Error()), time.Time{}, effort{}
	}
	t, ok := s.trusted.bundles[id.TrustDomain()]
	if !ok {
		return s.refuse(Untrusted, fmt.Sprintf("trust domain %s is not trusted here; trusted: %s",
			quoted(id.TrustDomain().Name()), s.trusted.domainList)), time.Time{}, effort{}
	}
	found := t.chains(certs)
	holding := found.at(now)
	if len(holding) == 0 {
		return s.refuse(t.explain(found.all, now)), time.Time{}, found.cost
	}
	_, from, until := lasting(holding)
	return Peer{ID: id, Cause: Verified, NotAfter: until, generation: s.generation, used: found.used}, from, found.cost
}

// explain says why none of the chains of a certificate, whose trust domain is t,
// holds now. Without a chain time is no reason: else an attacker's certificate
// would be called expired.
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

func (s *Snapshot) refuse(cause Cause, detail string) Peer {
	return Peer{Cause: cause, Detail: detail[:min(len(detail), maxDetail)], generation: s.generation}
}
