package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) { <-time.After(d) }

// TestACachedSuccessEndsWithTheChain checks that a caller whose certificate, or whose
// intermediate, has expired is refused although its success is cached.
func TestACachedSuccessEndsWithTheChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "prod")
		short := ca.newCA(t, "short", valid(-time.Hour, time.Minute))
		v := newVerifier(t, newSource(newSnapshot(t, 1, ca.issue(t, gatewayID), bundles{"prod.example": {ca}})))
		byLeaf := parsed(t, ca.issue(t, callerID, valid(-time.Hour, 2*time.Minute)))
		byIssuer := parsed(t, short.issue(t, callerID))

		for range 2 {
			checkPeer(t, v.Verify(byLeaf), Verified, "")
			checkPeer(t, v.Verify(byIssuer), Verified, "")
		}
		if got, want := v.Verify(byIssuer).NotAfter, byIssuer[1].NotAfter; !got.Equal(want) {
			t.Errorf("NotAfter %v, want that of the intermediate, %v", got, want)
		}
		pass(61 * time.Second)
		checkPeer(t, v.Verify(byLeaf), Verified, "")
		checkPeer(t, v.Verify(byIssuer), Expired, "issued by one that expired")
		pass(60 * time.Second)
		checkPeer(t, v.Verify(byLeaf), Expired, "certificate expired")
	})
}

// TestCachedSuccessHoldsOnlyInItsTimeAndSnapshot checks that a cached success counts
// only until its end, for its snapshot, and while the clock is not set back.
func TestCachedSuccessHoldsOnlyInItsTimeAndSnapshot(t *testing.T) {
	var (
		c        = cache{half: 2}
		one, two = &Snapshot{generation: 1}, &Snapshot{generation: 2}
		now      = time.Now()
		key      = fingerprint{1}
		v        = verdict{peer: Peer{Cause: Verified, NotAfter: now.Add(time.Minute)}, notBefore: now.Add(-time.Minute)}
	)
	hit := func(s *Snapshot, at time.Time) bool {
		_, ok := c.get(s, key, at)
		return ok
	}
	c.put(one, key, v)
	for name, row := range map[string]struct {
		snapshot *Snapshot
		at       time.Time
		want     bool
	}{
		"now":                              {one, now, true},
		"at the end":                       {one, now.Add(time.Minute), false},
		"the clock was set back":           {one, now.Add(-time.Hour), false},
		"another snapshot":                 {two, now, false},
		"another with the same generation": {&Snapshot{generation: 1}, now, false},
	} {
		if got := hit(row.snapshot, row.at); got != row.want {
			t.Errorf("%s: hit is %v", name, got)
		}
	}
	c.put(two, key, v)
	c.put(one, key, v) // the success of a slow verification, whose snapshot is no longer current
	if !hit(two, now) || hit(one, now) {
		t.Error("a late verification brought an old snapshot back")
	}
}

// TestTheCacheIsBoundedAndKeepsWhatIsUsed checks the bound of the cache, and that used
// entries stay in it.
func TestTheCacheIsBoundedAndKeepsWhatIsUsed(t *testing.T) {
	const half = 8
	var (
		c    = cache{half: half}
		snap = &Snapshot{generation: 1}
		now  = time.Now()
		used = fingerprint{31: 1}
		v    = verdict{peer: Peer{Cause: Verified, NotAfter: now.Add(time.Minute)}, notBefore: now}
	)
	c.put(snap, used, v)
	for i := range uint64(100 * half) {
		var key fingerprint
		binary.BigEndian.PutUint64(key[:], i+1)
		c.put(snap, key, v)
		if n := len(c.young) + len(c.old); n > 2*half {
			t.Fatalf("%d entries, want at most %d", n, 2*half)
		}
		if _, ok := c.get(snap, used, now); !ok {
			t.Fatalf("the entry in use was dropped after %d others", i+1)
		}
	}
}

func TestOnlySuccessesAreCached(t *testing.T) {
	f := newFixture(t)
	stranger := newCA(t, "stranger")
	for range 10 {
		f.verifier.Verify(parsed(t, stranger.issue(t, callerID)))
		f.verifier.Verify(nil)
	}
	if n := len(f.verifier.cache.young) + len(f.verifier.cache.old); n != 0 {
		t.Errorf("%d entries", n)
	}
	f.verifier.Verify(parsed(t, f.ca.issue(t, callerID)))
	if n := len(f.verifier.cache.young); n != 1 {
		t.Errorf("%d entries, want 1", n)
	}
}

// TestCacheKeyCoversAllCertificates checks that a cached success does not count for a
// caller who presents the same leaf with other certificates.
func TestCacheKeyCoversAllCertificates(t *testing.T) {
	f := newFixture(t)
	full := parsed(t, f.ca.newCA(t, "intermediate").issue(t, callerID))
	checkPeer(t, f.verifier.Verify(full), Verified, "")
	checkPeer(t, f.verifier.Verify(full[:1]), Untrusted, "")
}

// TestVerifyingWhileTheBundleChanges verifies concurrently while the bundle changes, and
// checks each result against the bundle of its time.
func TestVerifyingWhileTheBundleChanges(t *testing.T) {
	f := newFixture(t)
	certs := parsed(t, f.ca.issue(t, callerID))
	good, bad := f.source.Load(), newCA(t, "next")
	without := newSnapshot(t, 2, bad.issue(t, gatewayID), bundles{"prod.example": {bad}})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				got := f.verifier.Verify(certs)
				if want := got.generation == 1; (got.Cause == Verified) != want {
					t.Errorf("generation %d: %v", got.generation, got.Cause)
				}
			}
		})
	}
	for range 50 {
		f.source.Store(without)
		runtime.Gosched()
		f.source.Store(good)
	}
	wg.Wait()
}

// TestCacheHitAllocatesNothing checks that the verification of a cached caller allocates
// nothing.
func TestCacheHitAllocatesNothing(t *testing.T) {
	f := newFixture(t)
	chain := f.ca.newCA(t, "intermediate").issue(t, callerID)
	cs := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: parsed(t, chain)}
	if got := testing.AllocsPerRun(100, func() { f.verifier.Peer(cs) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkVerify(b *testing.B) {
	ca := newCA(b, "prod")
	source := newSource(newSnapshot(b, 1, ca.issue(b, gatewayID), bundles{"prod.example": {ca}}))
	v := newVerifier(b, source)
	run := func(name string, certs []*x509.Certificate, verify func([]*x509.Certificate) Peer) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				verify(certs)
			}
		})
	}
	leaf := parsed(b, ca.issue(b, callerID))
	chain := parsed(b, ca.newCA(b, "intermediate").issue(b, callerID))
	forged := parsed(b, newCA(b, "prod").issue(b, callerID, valid(-2*time.Hour, -time.Hour)))
	miss := func(certs []*x509.Certificate) Peer {
		peer, _, _ := source.Snapshot().verify(certs, time.Now())
		return peer
	}
	run("hit", leaf, v.Verify)
	run("hit/with-intermediate", chain, v.Verify)
	run("miss", leaf, miss)
	run("miss/with-intermediate", chain, miss)
	run("refused/forged-and-expired", forged, miss)
}

// BenchmarkFullCache measures the memory of a full cache.
func BenchmarkFullCache(b *testing.B) {
	var before, after runtime.MemStats
	for b.Loop() {
		c := cache{half: cacheEntries / 2}
		snap := &Snapshot{generation: 1}
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range uint64(cacheEntries) {
			var key fingerprint
			binary.BigEndian.PutUint64(key[:], i+1)
			id := spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("prod.example"), "/ns/ci/sa/a-workload-of-usual-length")
			c.put(snap, key, verdict{peer: Peer{ID: id}})
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(c.old)
		runtime.KeepAlive(c.young)
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/cacheEntries, "B/entry")
}
