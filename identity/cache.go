package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"
)

// cacheEntries bounds the cache of a [Verifier]. An entry takes about 350
// bytes, a full cache 6 MB.
const cacheEntries = 16_384

// fingerprint stands for everything a peer presented, or for one certificate of it.
type fingerprint [sha256.Size]byte

// fingerprintOf covers the intermediates too, so that a peer who forgot to
// send them is refused always, and not only until somebody else sent them.
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

// verdict is a success and the time in which it holds.
type verdict struct {
	peer      Peer
	notBefore time.Time
}

// cache keeps successes of one snapshot. Failures are kept apart: whoever
// invents certificates must not be able to fill it.
//
// It is bounded by two generations of maps: when the young one is full it
// becomes the old one, whose untouched entries are dropped by then.
type cache struct {
	half int // the most entries of one map

	mu       sync.Mutex
	snapshot *Snapshot
	young    map[fingerprint]verdict
	old      map[fingerprint]verdict
}

// get returns a success of the same snapshot that holds now.
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
	// The clock may have been set back, hence notBefore.
	if now.Before(found.notBefore) || !now.Before(found.peer.NotAfter) {
		return Peer{}, false
	}
	return found.peer, true
}

// put remembers a success and forgets those of every older snapshot.
func (c *cache) put(snapshot *Snapshot, key fingerprint, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.snapshot != snapshot {
		if c.snapshot != nil && c.snapshot.generation > snapshot.generation {
			return // a verification that began before the bundle changed
		}
		c.snapshot, c.young, c.old = snapshot, nil, nil
	}
	c.insert(key, v)
}

func (c *cache) insert(key fingerprint, v verdict) {
	if len(c.young) >= c.half {
		c.old, c.young = c.young, nil
	}
	if c.young == nil {
		c.young = make(map[fingerprint]verdict)
	}
	c.young[key] = v
}

// The bounds of what is remembered of failures.
const (
	refusalEntries = 512
	refusalHolds   = 2 * time.Second // the passing of time may end a failure
)

// refusals remembers failures for a moment: a client that tries again thousands of
// times costs no signature.
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
