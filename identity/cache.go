package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"
)

// cacheEntries bounds the cache of a [Verifier]. An entry takes about 350 bytes, a full
// cache 6 MB.
const cacheEntries = 16_384

// fingerprint is a hash of all certificates that a peer presented, or of one of them.
type fingerprint [sha256.Size]byte

// fingerprintOf hashes the intermediates as well. So a peer that does not send them is
// always refused, and does not profit from another one that has sent them.
func fingerprintOf(certs []*x509.Certificate) fingerprint {
	sum := fingerprint(sha256.Sum256(certs[0].Raw))
	for _, cert := range certs[1:] {
		var both [2 * sha256.Size]byte
		next := sha256.Sum256(cert.Raw)
		copy(both[:], sum[:])
		copy(both[sha256.Size:], next[:])
		sum = sha256.Sum256(both[:])
	}
	return sum
}

// verdict is a verified peer and the time from which the result is valid. It is valid
// until peer.NotAfter.
type verdict struct {
	peer      Peer
	notBefore time.Time
}

// cache holds verified peers of one snapshot. Failures are in refusals, so that a peer
// cannot fill the cache with certificates that it made up.
//
// Two maps bound it. When the young map is full it replaces the old map, and those
// entries of the old map are dropped which were not used since the last time.
type cache struct {
	half int // the largest number of entries in one map

	mu       sync.Mutex
	snapshot *Snapshot
	young    map[fingerprint]verdict
	old      map[fingerprint]verdict
}

// get returns a peer that was verified against the same snapshot and whose result is
// valid now.
func (c *cache) get(snapshot *Snapshot, key fingerprint, now time.Time) (Peer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.snapshot != snapshot {
		return Peer{}, false
	}
	found, ok := c.young[key]
	if !ok {
		if found, ok = c.old[key]; !ok {
			return Peer{}, false
		}
		delete(c.old, key)
		c.insert(key, found)
	}
	// notBefore matters if the clock was set back.
	if now.Before(found.notBefore) || !now.Before(found.peer.NotAfter) {
		return Peer{}, false
	}
	return found.peer, true
}

// put adds a verified peer, and drops those of every older snapshot.
func (c *cache) put(snapshot *Snapshot, key fingerprint, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.snapshot != snapshot {
		if c.snapshot != nil && c.snapshot.generation > snapshot.generation {
			return // this verification began before the snapshot changed
		}
		c.snapshot, c.young, c.old = snapshot, nil, nil
	}
	c.insert(key, v)
}

// insert adds an entry to the young map. The caller holds mu.
func (c *cache) insert(key fingerprint, v verdict) {
	if len(c.young) >= c.half {
		c.old, c.young = c.young, nil
	}
	if c.young == nil {
		c.young = make(map[fingerprint]verdict)
	}
	c.young[key] = v
}

// The bounds of refusals.
const (
	refusalEntries = 512
	refusalHolds   = 2 * time.Second // short, because a certificate may become valid with time
)

// refusals holds recent failures for a moment, so that a client which repeats a failing
// handshake thousands of times costs no further signature check.
type refusals struct {
	mu       sync.Mutex
	snapshot *Snapshot
	recent   map[fingerprint]refusal
}

type refusal struct {
	peer Peer
	at   time.Time
}

func (r *refusals) get(snapshot *Snapshot, key fingerprint, now time.Time) (Peer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, ok := r.recent[key]
	if !ok || r.snapshot != snapshot || now.Sub(found.at).Abs() > refusalHolds {
		return Peer{}, false
	}
	return found.peer, true
}

func (r *refusals) put(snapshot *Snapshot, key fingerprint, peer Peer, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.snapshot != snapshot || len(r.recent) >= refusalEntries {
		r.snapshot, r.recent = snapshot, make(map[fingerprint]refusal)
	}
	r.recent[key] = refusal{peer, now}
}
