package identity

import (
	"crypto/x509"
	"maps"
	"slices"
	"sync"
	"time"
)

// Trusts says whether certificates that were verified in their handshake still
// lead to an authority in the present bundle of their trust domain. It is for
// what outlives a handshake, and therefore asks nothing about time: that an SVID
// expired since ends no connection, that its authority left the bundle does.
// Certificates that never were verified must not be given to it.
//
// Answers are remembered until the snapshot changes, since many connections
// show few certificates. It is safe for concurrent use. See also
// [Snapshot.SameTrust], which often spares the question.
func (v *Verifier) Trusts(certs []*x509.Certificate) bool {
	snap := v.snapshot()
	if snap == nil || len(certs) == 0 || slices.Contains(certs, nil) || tooMuch(certs) != nil {
		return false
	}
	key := fingerprintOf(certs)
	answer, ok := v.standing.get(snap, key)
	if !ok {
		answer = bounded(certs) == nil && snap.trusted.leads(certs)
		v.standing.put(snap, key, answer)
	}
	return answer
}

// SameTrust says whether two snapshots trust the same authorities, so that
// [Verifier.Trusts] changed for nobody. Most changes are the rotation of our
// own certificate.
func (s *Snapshot) SameTrust(other *Snapshot) bool {
	if s == nil || other == nil {
		return s == other
	}
	return maps.EqualFunc(s.trusted.bundles, other.trusted.bundles, func(a, b *trust) bool {
		return slices.Equal(a.raw(), b.raw())
	})
}

// raw returns the authorities in an order that does not depend on the file.
func (t *trust) raw() []string {
	out := make([]string, 0, len(t.authorities))
	for _, ca := range t.authorities {
		out = append(out, string(ca.Raw))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// leads verifies certs with all that crypto/x509 checks but the time: neither
// now nor the handshake would do, since an authority may have been issued again
// since, with the same key and a later beginning.
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

// withoutAge returns a copy that is valid at any time. The signature covers
// Raw, which stays.
func withoutAge(cert *x509.Certificate) *x509.Certificate {
	ageless := *cert
	ageless.NotBefore, ageless.NotAfter = time.Time{}, time.Unix(1<<40, 0)
	return &ageless
}

// standing remembers the answers of Trusts for one snapshot.
type standing struct {
	mu       sync.Mutex
	snapshot *Snapshot
	answers  map[fingerprint]bool
}

func (s *standing) get(snapshot *Snapshot, key fingerprint) (answer, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshot != snapshot {
		return false, false
	}
	answer, ok = s.answers[key]
	return answer, ok
}

// put starts afresh when the snapshot changed or the memory is full: then there
// are more certificates than connections, and none of it is worth keeping.
func (s *standing) put(snapshot *Snapshot, key fingerprint, answer bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshot != snapshot || len(s.answers) >= cacheEntries {
		s.snapshot, s.answers = snapshot, make(map[fingerprint]bool)
	}
	s.answers[key] = answer
}
