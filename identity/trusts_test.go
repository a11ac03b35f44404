package identity

import (
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"
)

// TestTrustIsAboutAuthoritiesAndNotAboutTime checks that Trusts is true while an
// authority of the chain is trusted for the trust domain of the caller, even if
// certificates of the chain have expired.
func TestTrustIsAboutAuthoritiesAndNotAboutTime(t *testing.T) {
	ca, other := newCA(t, "prod"), newCA(t, "other")
	renewed := testCA{key: ca.key} // has the same key in a certificate that begins now
	template := *ca.cert
	template.NotBefore, template.NotAfter, template.Raw = time.Now(), time.Now().Add(48*time.Hour), nil
	renewed.cert = create(t, &template, &template, ca.key.Public(), ca.key)
	intermediate := ca.newCA(t, "intermediate")
	past := ca.newCA(t, "past", valid(-3*time.Hour, -2*time.Hour))
	web := ca.newCA(t, "web", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	impostor := newCA(t, "prod") // the name of our CA, another key
	old := valid(-10*time.Hour, -9*time.Hour)

	for _, test := range []struct {
		name  string
		chain []*x509.Certificate
		trust bundles
		want  bool
	}{
		{"its CA is in the bundle", parsed(t, ca.issue(t, callerID)), bundles{"prod.example": {ca}}, true},
		{"its CA is one of two", parsed(t, ca.issue(t, callerID)), bundles{"prod.example": {impostor, ca}}, true},
		{"it expired", parsed(t, ca.issue(t, callerID, old)), bundles{"prod.example": {ca}}, true},
		{"it expired before its CA was issued again", parsed(t, ca.issue(t, callerID, old)), bundles{"prod.example": {renewed}}, true},
		{"it comes over an intermediate", parsed(t, intermediate.issue(t, callerID)), bundles{"prod.example": {ca}}, true},
		{"its intermediate expired", parsed(t, past.issue(t, callerID)), bundles{"prod.example": {ca}}, true},
		{"its intermediate became an authority", parsed(t, intermediate.issue(t, callerID)), bundles{"prod.example": {intermediate}}, true},
		{"its CA left the bundle", parsed(t, ca.issue(t, callerID)), bundles{"prod.example": {impostor}}, false},
		{"its CA left the bundle and it expired", parsed(t, ca.issue(t, callerID, old)), bundles{"prod.example": {impostor}}, false},
		{"its CA is in the bundle of another trust domain", parsed(t, ca.issue(t, callerID)), bundles{"prod.example": {other}, "partner.example": {ca}}, false},
		{"its trust domain is trusted no more", parsed(t, other.issue(t, "spiffe://partner.example/x")), bundles{"prod.example": {ca}}, false},
		{"its intermediate is not for clients", parsed(t, web.issue(t, callerID)), bundles{"prod.example": {ca}}, false},
		{"nothing was presented", nil, bundles{"prod.example": {ca}}, false},
		{"a certificate that cannot be read", []*x509.Certificate{nil}, bundles{"prod.example": {ca}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			own := test.trust["prod.example"][0].issue(t, gatewayID)
			v := newVerifier(t, newSource(newSnapshot(t, 1, own, test.trust)))
			for range 2 { // the second answer comes from the memory
				if got := v.Trusts(test.chain); got != test.want {
					t.Errorf("got %v", got)
				}
			}
		})
	}
	if (*Verifier)(nil).Trusts(parsed(t, ca.issue(t, callerID))) {
		t.Error("no verifier trusts")
	}
}

// TestTrustFollowsTheBundle checks that a caller is trusted until its authority leaves
// the bundle.
func TestTrustFollowsTheBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newCA(t, "prod"), newCA(t, "prod")
		source := newSource(newSnapshot(t, 1, first.issue(t, gatewayID), bundles{"prod.example": {first}}))
		v := newVerifier(t, source)
		live := parsed(t, first.issue(t, callerID))
		checkPeer(t, v.Verify(live), Verified, "")
		want := func(want bool) {
			t.Helper()
			if got := v.Trusts(live); got != want {
				t.Errorf("got %v", got)
			}
		}
		want(true)
		pass(2 * time.Hour)
		checkPeer(t, v.Verify(live), Expired, "")
		want(true)
		source.Store(newSnapshot(t, 2, second.issue(t, gatewayID), bundles{"prod.example": {first, second}}))
		want(true)
		source.Store(newSnapshot(t, 3, second.issue(t, gatewayID), bundles{"prod.example": {second}}))
		want(false)
	})
}

// TestSameTrust checks that two snapshots trust the same only if they have the same
// authorities for the same trust domains.
func TestSameTrust(t *testing.T) {
	ca, other := newCA(t, "prod"), newCA(t, "other")
	base := newSnapshot(t, 1, ca.issue(t, gatewayID), bundles{"prod.example": {ca, other}, "partner.example": {other}})
	for name, row := range map[string]struct {
		trust bundles
		want  bool
	}{
		"another certificate of ours":    {bundles{"prod.example": {ca, other}, "partner.example": {other}}, true},
		"another order in the file":      {bundles{"prod.example": {other, ca}, "partner.example": {other}}, true},
		"an authority left":              {bundles{"prod.example": {ca}, "partner.example": {other}}, false},
		"an authority joined":            {bundles{"prod.example": {ca, other}, "partner.example": {other, ca}}, false},
		"a trust domain left":            {bundles{"prod.example": {ca, other}}, false},
		"another trust domain has it":    {bundles{"prod.example": {ca, other}, "stranger.example": {other}}, false},
		"another authority of that name": {bundles{"prod.example": {ca, newCA(t, "other")}, "partner.example": {other}}, false},
	} {
		next := newSnapshot(t, 2, ca.issue(t, gatewayID), row.trust)
		if base.SameTrust(next) != row.want || next.SameTrust(base) != row.want {
			t.Errorf("%s: want %v", name, row.want)
		}
	}
	if base.SameTrust(nil) {
		t.Error("no snapshot trusts the same")
	}
}

// TestTheMemoryOfTrustIsBounded checks that the number of remembered answers of Trusts
// is bounded.
func TestTheMemoryOfTrustIsBounded(t *testing.T) {
	var s trustAnswers
	snap := &Snapshot{generation: 1}
	for i := range cacheEntries + 10 {
		s.put(snap, fingerprint{byte(i), byte(i >> 8), byte(i >> 16)}, true)
	}
	if n := len(s.answers); n > cacheEntries {
		t.Errorf("%d answers, want at most %d", n, cacheEntries)
	}
}

func BenchmarkTrusts(b *testing.B) {
	ca := newCA(b, "prod")
	v := newVerifier(b, newSource(newSnapshot(b, 1, ca.issue(b, gatewayID), bundles{"prod.example": {ca}})))
	certs := parsed(b, ca.issue(b, callerID))
	b.Run("asked again", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v.Trusts(certs)
		}
	})
	b.Run("asked once", func(b *testing.B) {
		b.ReportAllocs()
		snap := v.snapshot()
		for b.Loop() {
			snap.trusted.leads(certs)
		}
	})
}
