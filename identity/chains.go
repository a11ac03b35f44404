package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
	"time"
)

// Bounds of the checks of signatures in one verification.
const (
	maxNamesakes = 16 // authorities of one name that are tried for a certificate: of those whose key it names, and of the others
	maxChecks    = 24 // to find the intermediates, before crypto/x509 is asked
)

// maxGenuine is how many intermediates of a trust domain are remembered as genuine.
const maxGenuine = 256

// chains are what leads from a leaf to the authorities of its trust domain.
type chains struct {
	all  [][]*x509.Certificate // with their authorities, at whatever time they hold
	used mask                  // of the certificates presented, those in one of all
	cost effort
}

// mask says which of the certificates that were presented are meant.
type mask uint8

// chains finds every chain from certs[0] to an authority, with all that
// crypto/x509 checks but the time: whether one of them holds now is read from its
// dates. So one verification says both whether and why not, and an authority that
// was issued again since, with the same key and a later beginning, is the same.
//
// No signature is checked with a key that a peer has chosen: from the authorities
// on down, each certificate that was presented is looked for among those that a
// genuine one has signed, and crypto/x509 is given only these. Names alone, which
// anybody may write, cost a check for each certificate.
func (t *trust) chains(certs []*x509.Certificate) chains {
	var found chains
	presented := make([]*x509.Certificate, len(certs))
	for i, cert := range certs {
		presented[i] = withoutAge(cert)
	}
	genuine := t.genuine(presented[1:], &found.cost)
	options := x509.VerifyOptions{
		Roots: t.ageless, Intermediates: x509.NewCertPool(), CurrentTime: time.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if t.crowded {
		options.Roots = x509.NewCertPool()
	}
	for _, child := range append([]*x509.Certificate{presented[0]}, genuine...) {
		for _, parent := range t.parents(child, genuine) {
			found.cost.check(parent.PublicKey) // as crypto/x509 will
			if t.crowded && !slices.Contains(genuine, parent) {
				options.Roots.AddCert(parent)
			}
		}
	}
	for _, cert := range genuine {
		options.Intermediates.AddCert(cert)
	}
	all, err := presented[0].Verify(options)
	if err != nil {
		return found
	}
	found.all = all
	// What another authority has signed for one of the chain belongs to it: that
	// authority may be the one that stays.
	for i, cert := range presented {
		if slices.ContainsFunc(all, func(chain []*x509.Certificate) bool {
			return slices.ContainsFunc(chain, func(member *x509.Certificate) bool { return isTwin(member, cert) })
		}) {
			found.used |= 1 << i
		}
	}
	for _, chain := range all {
		for i, member := range chain {
			if at := slices.Index(presented, member); at >= 0 {
				chain[i] = certs[at]
			} else {
				chain[i] = t.aged[member]
			}
		}
	}
	return found
}

// genuine returns the intermediates that an authority has signed, or another
// genuine one. It begins at the end, where the one nearest to the authority is.
func (t *trust) genuine(intermediates []*x509.Certificate, cost *effort) []*x509.Certificate {
	var genuine []*x509.Certificate
	var tried map[[2]*x509.Certificate]bool // child and parent
	left := slices.Clone(intermediates)
	slices.Reverse(left)
	for again := true; again; {
		again = false
		left = slices.DeleteFunc(left, func(cert *x509.Certificate) bool {
			if !cert.BasicConstraintsValid || !cert.IsCA {
				return true
			}
			parents := t.parents(cert, genuine)
			key := sha256.Sum256(cert.Raw)
			ok := len(parents) > 0 && t.known.has(key)
			for _, parent := range parents {
				pair := [2]*x509.Certificate{cert, parent}
				if ok || cost.checks >= maxChecks || tried[pair] {
					continue
				}
				if tried == nil {
					tried = make(map[[2]*x509.Certificate]bool)
				}
				tried[pair] = true
				cost.check(parent.PublicKey)
				if ok = cert.CheckSignatureFrom(parent) == nil; ok {
					t.known.add(key)
				}
			}
			if ok {
				genuine, again = append(genuine, cert), true
			}
			return ok
		})
	}
	return genuine
}

// parents returns who may have signed a certificate, by the names alone, the
// likely ones first: whose key it names, then the intermediate found last. Of the
// authorities of one name they are the first few.
func (t *trust) parents(child *x509.Certificate, genuine []*x509.Certificate) []*x509.Certificate {
	var parents []*x509.Certificate
	authorities := t.byName[string(child.RawIssuer)]
	for _, named := range [...]bool{true, false} {
		for _, cert := range slices.Backward(genuine) {
			if cert != child && bytes.Equal(cert.RawSubject, child.RawIssuer) && namesKeyOf(child, cert) == named {
				parents = append(parents, cert)
			}
		}
		n := 0
		for _, cert := range authorities {
			if n < maxNamesakes && namesKeyOf(child, cert) == named {
				parents, n = append(parents, cert), n+1
			}
		}
	}
	return parents
}

// namesKeyOf reports whether a certificate names the key of another one as that
// of its issuer.
func namesKeyOf(child, parent *x509.Certificate) bool {
	return len(child.AuthorityKeyId) > 0 && bytes.Equal(parent.SubjectKeyId, child.AuthorityKeyId)
}

// at returns the chains that hold at a moment.
func (c *chains) at(now time.Time) [][]*x509.Certificate {
	var holding [][]*x509.Certificate
	for _, chain := range c.all {
		if from, until := window(chain); !now.Before(from) && !now.After(until) {
			holding = append(holding, chain)
		}
	}
	return holding
}

// fingerprints is a memory of a few certificates. It is safe for concurrent use.
type fingerprints struct {
	mu  sync.Mutex
	all map[fingerprint]struct{}
}

func (f *fingerprints) has(key fingerprint) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.all[key]
	return ok
}

// add forgets all others when there are too many.
func (f *fingerprints) add(key fingerprint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil || len(f.all) >= maxGenuine {
		f.all = make(map[fingerprint]struct{})
	}
	f.all[key] = struct{}{}
}
