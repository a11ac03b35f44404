package identity

import (
	"crypto/x509"
	"maps"
	"slices"
	"sync"
	"time"
)

// Trusts reports whether certificates that were verified in their handshake still lead
// to an authority in the current bundle of their trust domain. It is meant for
// connections that outlast the handshake, and therefore ignores the time: an SVID that
// has expired since ends no connection, but an authority that was removed does. The
// caller must not pass certificates that were never verified.
//
// The verifier caches the answers until the snapshot changes, since many connections
// present the same certificates. Trusts is safe for concurrent use. [Snapshot.SameTrust]
// often makes the call unnecessary.
func (v *Verifier) Trusts(certs []*x509.Certificate) bool {
	snap := v.snapshot()
	if snap == nil || len(certs) == 0 || slices.Contains(certs, nil) || tooMuch(certs) != nil {
		return false
	}
	key := fingerprintOf(certs)
	answer, ok := v.trustAnswers.get(snap, key)
	if !ok {
		answer = bounded(certs) == nil && snap.trusted.leads(certs)
		v.trustAnswers.put(snap, key, answer)
	}
	return answer
}

// SameTrust reports whether two snapshots trust the same authorities, so that no answer
// of [Verifier.Trusts] has changed. Most new snapshots only have another certificate of
// our own.
func (s *Snapshot) SameTrust(other *Snapshot) bool {
	if s == nil || other == nil {
		return s == other
	}
	return maps.EqualFunc(s.trusted.bundles, other.trusted.bundles, func(a, b *trust) bool {
		return slices.Equal(a.raw(), b.raw())
	})
}

// raw returns the encoded authorities, sorted and without duplicates.
func (t *trust) raw() []string {
	out := make([]string, 0, len(t.authorities))
	for _, ca := range t.authorities {
		out = append(out, string(ca.Raw))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// leads reports whether certs lead to an authority, by all checks of crypto/x509 except
// for the time. Neither the current time nor that of the handshake would do, because an
// authority may have been issued again with the same key and a later NotBefore.
func (s *trustSet) leads(certs []*x509.Certificate) bool {
	id, err := leafID(certs[0])
	if err != nil {
		return false
	}
	t, ok := s.bundles[id.TrustDomain()]
	if !ok {
		return false
	}
	found := t.chains(certs)
	return len(found.all) > 0
}

// withoutAge returns a copy of a certificate that is valid at any time. Its signature
// can still be checked, since that is computed from Raw.
func withoutAge(cert *x509.Certificate) *x509.Certificate {
	ageless := *cert
	ageless.NotBefore, ageless.NotAfter = time.Time{}, time.Unix(1<<40, 0)
	return &ageless
}

// trustAnswers caches the answers of Trusts for one snapshot.
type trustAnswers struct {
	mu       sync.Mutex
	snapshot *Snapshot
	answers  map[fingerprint]bool
}

func (s *trustAnswers) get(snapshot *Snapshot, key fingerprint) (answer, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshot != snapshot {
		return false, false
	}
	answer, ok = s.answers[key]
	return answer, ok
}

// put adds an answer. It drops all others before if the snapshot has changed or the cache
// is full; then there are more certificates than connections, and the cache is of no use.
func (s *trustAnswers) put(snapshot *Snapshot, key fingerprint, answer bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshot != snapshot || len(s.answers) >= cacheEntries {
		s.snapshot, s.answers = snapshot, make(map[fingerprint]bool)
	}
	s.answers[key] = answer
}
