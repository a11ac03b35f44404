package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crossSigned returns the intermediate of an authority, signed by another authority as
// well.
func crossSigned(tb testing.TB, intermediate, by testCA) *x509.Certificate {
	tb.Helper()
	template := *intermediate.cert
	template.Raw, template.AuthorityKeyId = nil, nil
	return create(tb, &template, by.cert, intermediate.key.Public(), by.key)
}

// TestChainLeadsToAnAuthority checks that of a peer's certificates those are kept which
// lead to an authority, by every way, and that the peer is trusted while any of these
// authorities is.
func TestChainLeadsToAnAuthority(t *testing.T) {
	a, b := newCA(t, "a"), newCA(t, "b")
	own := newCA(t, "own")
	i := a.newCA(t, "intermediate")
	both := crossSigned(t, i, b).Raw
	leaf := i.issue(t, callerID)
	junk, other := selfSigned(t, callerID).Certificate[0], a.newCA(t, "other").cert.Raw
	der := func(more ...[]byte) [][]byte { return append(slices.Clone(leaf.Certificate[:1]), more...) }
	root := testCA{cert: create(t, func() *x509.Certificate {
		template := *i.cert
		template.Raw, template.AuthorityKeyId = nil, nil
		return &template
	}(), i.cert, i.key.Public(), i.key), key: i.key} // the intermediate as an authority

	for _, test := range []struct {
		name      string
		presented [][]byte
		before    []testCA // authorities that are trusted in the handshake
		keeps     []int
		after     map[string][]testCA // authorities with which the peer is still trusted
		lost      map[string][]testCA
	}{
		{
			"junk behind an SVID",
			[][]byte{a.issue(t, callerID).Certificate[0], junk},
			[]testCA{a},
			[]int{0},
			map[string][]testCA{"the same": {a}},
			map[string][]testCA{"another": {b}},
		},
		{
			"an intermediate that leads nowhere", der(other, i.cert.Raw),
			[]testCA{a},
			[]int{0, 2},
			map[string][]testCA{"the same": {a}},
			map[string][]testCA{"another": {b}},
		},
		{
			"cross-signed by two that are trusted", der(i.cert.Raw, both),
			[]testCA{a, b},
			[]int{0, 1, 2},
			map[string][]testCA{"one": {a}, "the other": {b}, "both": {a, b}},
			map[string][]testCA{"none": {own}},
		},
		{
			"cross-signed by one that is trusted and one that will be", der(both, i.cert.Raw),
			[]testCA{a},
			[]int{0, 1, 2},
			map[string][]testCA{"one": {a}, "the other": {b}},
			map[string][]testCA{"none": {own}},
		},
		{
			"an intermediate that is an authority, too", der(i.cert.Raw),
			[]testCA{a, root},
			[]int{0, 1},
			map[string][]testCA{"one": {a}, "the other": {root}},
			map[string][]testCA{"none": {b}},
		},
		{
			"an authority that will be an intermediate", der(i.cert.Raw),
			[]testCA{root},
			[]int{0, 1},
			map[string][]testCA{"as an intermediate": {a}},
			map[string][]testCA{"none": {b}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			trusting := func(generation uint64, cas []testCA) *Snapshot {
				return newSnapshot(t, generation, own.issue(t, gatewayID), bundles{"prod.example": append([]testCA{own}, cas...)})
			}
			source := newSource(trusting(1, test.before))
			v := newVerifier(t, source)
			presented := parsedAll(t, tls.Certificate{Certificate: test.presented})
			generation := uint64(1)
			for range 2 { // the second answer comes from the memory
				peer := v.Verify(presented)
				checkPeer(t, peer, Verified, "")
				chain := peer.Chain(presented)
				var want []*x509.Certificate
				for _, n := range test.keeps {
					want = append(want, presented[n])
				}
				if !slices.Equal(chain, want) {
					t.Errorf("keeps %d certificates, want %v", len(chain), test.keeps)
				}
				for want, all := range map[bool]map[string][]testCA{true: test.after, false: test.lost} {
					for name, cas := range all {
						generation++
						source.Store(trusting(generation, cas))
						if v.Trusts(chain) != want || (v.Verify(presented).Cause == Verified) != want {
							t.Errorf("with %s: trusted %v, verified %v, want %v", name, v.Trusts(chain), v.Verify(presented).Cause, want)
						}
					}
				}
				generation++
				source.Store(trusting(generation, test.before))
			}
		})
	}
}

// TestCauseOfAPeerWithTwoChains checks that of two chains the valid one counts, and
// which one the cause is about if neither is valid.
func TestCauseOfAPeerWithTwoChains(t *testing.T) {
	a, b := newCA(t, "a"), newCA(t, "b", valid(-10*time.Hour, -5*time.Hour))
	i := a.newCA(t, "intermediate")
	leaf := i.issue(t, callerID)
	old := crossSigned(t, i, b)
	late := b.issue(t, callerID, valid(-time.Hour, time.Hour)) // its authority had ended before it began
	v := newVerifier(t, newSource(newSnapshot(t, 1, a.issue(t, gatewayID), bundles{"prod.example": {a, b}})))
	leaf.Certificate = [][]byte{leaf.Certificate[0], old.Raw, i.cert.Raw}
	peer := v.Verify(parsed(t, leaf))
	checkPeer(t, peer, Verified, "")
	leaf.Certificate = leaf.Certificate[:2]
	checkPeer(t, v.Verify(parsed(t, leaf)), Expired, "issued by one that expired")
	checkPeer(t, v.Verify(parsed(t, late)), Expired, "issued by one that expired")
}

// budget is a budget that counts what is spent.
type budget struct {
	mu   sync.Mutex
	left time.Duration
}

func (b *budget) Left() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.left > 0
}

func (b *budget) Spend(used time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left -= used
}

// TestUnverifiedCertificatesSpendTheBudget checks that certificates which do not verify
// spend the budget, also if the failure is remembered, that nothing is verified when the
// budget is used up, and that certificates which verify cost nothing.
func TestUnverifiedCertificatesSpendTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		state := func(certs []*x509.Certificate) tls.ConnectionState {
			s := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: certs}
			if err := f.verifier.verifyConnection(s); err != nil {
				t.Fatal(err)
			}
			return s
		}
		strangers := map[string][]*x509.Certificate{
			"a CA with the name of ours": parsedAll(t, newCA(t, "prod").issue(t, callerID)),
			"a long key":                 parsedAll(t, signedWith(t, f.ca, rsaKey(t, 8192))),
			"no SPIFFE ID":               parsedAll(t, f.ca.issue(t, "")),
			"expired":                    parsedAll(t, f.ca.issue(t, callerID, valid(-2*time.Hour, -time.Hour))),
			"too many names":             parsedAll(t, selfSigned(t, "", func(c *x509.Certificate) { c.ExtraExtensions = nil; explosions()["URI names"](c, 7_000) })),
		}
		for name, certs := range strangers {
			cs := state(certs)
			b := &budget{left: time.Second}
			for n := range 3 { // the failure is remembered after the first
				before := b.left
				peer, ok := f.verifier.PeerWithin(cs, b)
				if spent := before - b.left; !ok || peer.Cause == Verified || spent < 50*time.Microsecond || spent > 10*time.Millisecond {
					t.Errorf("%s, time %d: %v, %v, spent %v", name, n, peer.Cause, ok, spent)
				}
			}
			b.left = 0
			if peer, ok := f.verifier.PeerWithin(cs, b); ok || peer.Cause == Verified || !peer.ID.IsZero() || b.left != 0 {
				t.Errorf("%s, without a budget: %v %v, %v left", name, peer.Cause, ok, b.left)
			}
		}
		known, unknown := state(parsed(t, f.ca.issue(t, callerID))), state(parsed(t, f.ca.issue(t, callerID)))
		none := &budget{}
		checkPeer(t, f.verifier.Peer(known), Verified, "")
		for _, cs := range []tls.ConnectionState{known, {HandshakeComplete: true}, {}} {
			if _, ok := f.verifier.PeerWithin(cs, none); !ok {
				t.Error("what costs nothing needs a budget")
			}
		}
		if _, ok := f.verifier.PeerWithin(unknown, none); ok {
			t.Error("something was verified without a budget")
		}
		b := &budget{left: 1}
		if peer, ok := f.verifier.PeerWithin(unknown, b); !ok || peer.Cause != Verified || b.left != 1 {
			t.Errorf("a good peer: %v, %v, %v left", peer.Cause, ok, b.left)
		}
	})
}

// TestSignatureChecksOfAChain checks how many signatures the verification of a chain
// checks.
func TestSignatureChecksOfAChain(t *testing.T) {
	root := newCA(t, "same")
	one := newCA(t, "other").newCA(t, "ignored")
	deep := root
	for range maxPresented - 1 {
		deep = deep.newCA(t, "same") // all have one name, as SPIRE's have by default
	}
	i := root.newCA(t, "intermediate")
	forged := newCA(t, "same").issue(t, callerID)
	for range maxPresented - 1 {
		forged.Certificate = append(forged.Certificate, newCA(t, "same").cert.Raw)
	}
	for _, tr := range newSnapshot(t, 1, root.issue(t, gatewayID), bundles{"prod.example": {root}}).trusted.bundles {
		for _, test := range []struct {
			name          string
			cert          tls.Certificate
			first, second int // checks of the first and of the second verification, when the intermediates are known
			chains        int
		}{
			{"issued by an authority", root.issue(t, callerID), 1, 1, 1},
			{"issued by an intermediate", i.issue(t, callerID), 3, 2, 1},
			{"issued by somebody else", one.issue(t, callerID), 0, 0, 0},
			{"seven intermediates of one name", deep.issue(t, callerID), 64, 57, 1},
			{"seven false authorities with the name of ours", forged, 8, 8, 0},
		} {
			for n, want := range []int{test.first, test.second} {
				found := tr.chains(parsed(t, test.cert))
				if found.cost.checks != want || len(found.all) != test.chains {
					t.Errorf("%s, time %d: %d checks, %d chains, want %d, %d", test.name, n, found.cost.checks, len(found.all), want, test.chains)
				}
			}
		}
	}
}

// world holds the certificates of which FuzzChains makes peers: authorities and
// intermediates of one name, cross-signed ones, expired ones, and unrelated ones.
type world struct {
	trust       *trust
	authorities []*x509.Certificate
	all         []*x509.Certificate
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	bare := func(c *x509.Certificate) { c.SubjectKeyId = nil }
	roots := []testCA{newCA(tb, "x"), newCA(tb, "x"), newCA(tb, "y"), newCA(tb, "x", bare)}
	for range 20 {
		roots = append(roots, newCA(tb, "crowd"))
	}
	w := &world{}
	for _, ca := range roots {
		w.authorities = append(w.authorities, ca.cert)
	}
	td := newSnapshot(tb, 1, roots[0].issue(tb, gatewayID), bundles{"prod.example": roots})
	for _, tr := range td.trusted.bundles {
		w.trust = tr
	}
	add := func(certs ...*x509.Certificate) { w.all = append(w.all, certs...) }
	cas := []testCA{roots[0], roots[1], roots[9]}
	for _, ca := range []testCA{roots[0], roots[2]} {
		for _, name := range []string{"x", "y", "z"} {
			i := ca.newCA(tb, name)
			j := i.newCA(tb, "x")
			past := i.newCA(tb, name, valid(-3*time.Hour, -2*time.Hour))
			cas = append(cas, i, j, past)
			add(i.cert, j.cert, past.cert, crossSigned(tb, i, roots[1]), crossSigned(tb, j, past), crossSigned(tb, i, j))
		}
	}
	for range 4 {
		stranger := newCA(tb, "x")
		cas = append(cas, stranger, stranger.newCA(tb, "x"))
		add(stranger.cert, cas[len(cas)-1].cert)
	}
	for _, ca := range cas {
		add(parsed(tb, ca.issue(tb, callerID))[0], parsed(tb, ca.issue(tb, callerID, valid(-3*time.Hour, -time.Hour)))[0])
	}
	add(w.authorities...)
	return w
}

// FuzzChains makes peers of random certificates. It checks that a peer is accepted exactly
// if crypto/x509 accepts it, and that no peer causes more checks of signatures than the
// bound. A peer that presents so many other certificates that the checks for its own are
// used up may be refused.
func FuzzChains(f *testing.F) {
	w := newWorld(f)
	leaves := slices.DeleteFunc(slices.Clone(w.all), func(c *x509.Certificate) bool { return c.IsCA })
	for i := range leaves {
		f.Add(byte(i), []byte{0, 1, 2, 3, 4, 5, 6})
		f.Add(byte(i), []byte{byte(7 * i), byte(5 * i), 36, 37, 38, 39, 40})
		f.Add(byte(i), []byte{36, 38, 40, 42, 37, 39, 41})
		// The last authorities of the crowd are not among the maxNamesakes that are
		// tried, so that all checks for them fail.
		f.Add(byte(i), []byte{byte(len(w.all) - 1), byte(len(w.all) - 2), byte(len(w.all) - 3)})
		f.Add(byte(i), []byte{0, 1, byte(len(w.all) - 1), byte(len(w.all) - 2)})
	}
	f.Fuzz(func(t *testing.T, leaf byte, picks []byte) {
		certs := []*x509.Certificate{leaves[int(leaf)%len(leaves)]}
		for _, pick := range picks {
			certs = append(certs, w.all[int(pick)%len(w.all)])
		}
		if bounded(certs) != nil {
			return
		}
		w.trust.known = fingerprints{} // nothing is remembered, which is the worst case
		var search effort
		genuine := w.trust.genuine(ageless(certs[1:]), &search)
		w.trust.known = fingerprints{}
		found := w.trust.chains(certs)
		now := time.Now()
		holding := found.at(now)
		if want := accepted(w, certs, now); want != (len(holding) > 0) && (!want || search.checks < maxChecks) {
			t.Errorf("accepted %v, by crypto/x509 %v", len(holding) > 0, want)
		}
		const most = 2 * maxNamesakes // authorities that are tried for one certificate: those whose key it names, and others
		var intermediates []*x509.Certificate
		for _, cert := range certs[1:] {
			if slices.ContainsFunc(genuine, cert.Equal) {
				intermediates = append(intermediates, cert)
			}
		}
		in509 := searched(certs[0], nil, intermediates, w.authorities)
		if got := found.cost.checks; got > maxChecks+(1+len(intermediates))*(most+len(intermediates)) {
			t.Errorf("%d checks", got)
		}
		if len(intermediates) == 0 && (found.cost.checks > maxChecks+most || in509 > most) {
			t.Errorf("a stranger causes %d checks", found.cost.checks)
		}
		if len(found.all) == 0 && found.used != 0 || len(found.all) > 0 && found.used&1 == 0 {
			t.Errorf("%d chains use %b", len(found.all), found.used)
		}
	})
}

func ageless(certs []*x509.Certificate) []*x509.Certificate {
	out := make([]*x509.Certificate, len(certs))
	for i, cert := range certs {
		out[i] = withoutAge(cert)
	}
	return out
}

// accepted reports whether crypto/x509 accepts a peer, given all of its certificates.
func accepted(w *world, certs []*x509.Certificate, now time.Time) bool {
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, ca := range w.authorities {
		options.Roots.AddCert(ca)
	}
	for _, cert := range certs[1:] {
		options.Intermediates.AddCert(cert)
	}
	_, err := certs[0].Verify(options)
	return err == nil
}

// searched counts the signatures that crypto/x509 checks to find all chains.
func searched(cert *x509.Certificate, chain, intermediates, authorities []*x509.Certificate) int {
	if len(chain) > maxPresented {
		return 0
	}
	chain = append(slices.Clone(chain), cert)
	n := 0
	for _, parents := range [][]*x509.Certificate{authorities, intermediates} {
		for _, parent := range parents {
			if !bytes.Equal(parent.RawSubject, cert.RawIssuer) || slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return isTwin(c, parent) }) {
				continue
			}
			n++
			if cert.CheckSignatureFrom(parent) == nil && slices.Contains(intermediates, parent) {
				n += searched(parent, chain, intermediates, authorities)
			}
		}
	}
	return n
}
