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
	maxNamesakes = 16 // authorities of one name that are tried for one certificate: this many whose key it names, and this many others
	maxChecks    = 24 // signature checks to find the genuine intermediates, before crypto/x509 is called
)

// maxGenuine is how many intermediates of a trust domain are remembered as genuine.
const maxGenuine = 256

// chains holds the chains from a leaf to the authorities of its trust domain.
type chains struct {
	all  [][]*x509.Certificate // every chain including its authority, whether it is valid now or not
	used mask                  // the presented certificates that are part of a chain
	cost effort                // processor time of the signature checks
}

// mask is a set of presented certificates: bit i stands for certificate i.
type mask uint8

// chains finds every chain from certs[0] to an authority. It checks what crypto/x509
// checks, except for the time; the caller compares the dates of the chains with the
// clock. So one verification tells both whether a chain is valid and why not, and an
// authority that was issued again with the same key and a later NotBefore counts as the
// same authority.
//
// No signature is checked with a key that the peer has chosen. Beginning with the
// authorities, it finds those presented certificates which an authority or an
// intermediate that is known to be genuine has signed, and gives only these to
// crypto/x509. A certificate that merely bears the right names costs one check.
func (t *trust) chains(certs []*x509.Certificate) chains {
	return t.chainsFor(x509.ExtKeyUsageClientAuth, certs)
}

// chainsFor does what chains does, for certificates with a given extended key usage.
func (t *trust) chainsFor(usage x509.ExtKeyUsage, certs []*x509.Certificate) chains {
	var found chains
	presented := make([]*x509.Certificate, len(certs))
	for i, cert := range certs {
		presented[i] = withoutAge(cert)
	}
	genuine := t.genuine(presented[1:], &found.cost)
	options := x509.VerifyOptions{
		Roots: t.ageless, Intermediates: x509.NewCertPool(), CurrentTime: time.Now(),
		KeyUsages: []x509.ExtKeyUsage{usage},
	}
	if t.crowded {
		options.Roots = x509.NewCertPool()
	}
	for _, child := range append([]*x509.Certificate{presented[0]}, genuine...) {
		for _, parent := range t.parents(child, genuine) {
			found.cost.check(parent.PublicKey) // crypto/x509 will do this check
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
	// A twin, by which another authority has signed the same key, is part of the chain,
	// too: that authority may be the one that stays trusted after a rotation.
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

// genuine returns the intermediates that an authority or another genuine intermediate
// has signed. It begins at the end of the list, where peers put the intermediate that is
// nearest to the authority.
func (t *trust) genuine(intermediates []*x509.Certificate, cost *effort) []*x509.Certificate {
	var genuine []*x509.Certificate
	var tried map[[2]*x509.Certificate]bool // pairs of child and parent
	left := slices.Clone(intermediates)
	slices.Reverse(left)
	for found := true; found; {
		found = false
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
				genuine, found = append(genuine, cert), true
			}
			return ok
		})
	}
	return genuine
}

// parents returns the certificates that may have signed a certificate according to its
// issuer name, the likely ones first: those whose key it names come before others, and
// intermediates before authorities. It returns at most maxNamesakes authorities of each
// group.
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

// at returns the chains that are valid at a moment.
func (c *chains) at(now time.Time) [][]*x509.Certificate {
	var valid [][]*x509.Certificate
	for _, chain := range c.all {
		if from, until := window(chain); !now.Before(from) && !now.After(until) {
			valid = append(valid, chain)
		}
	}
	return valid
}

// fingerprints is a bounded set of certificates. It is safe for concurrent use.
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

// add adds a certificate. If the set is full, it drops all others before.
func (f *fingerprints) add(key fingerprint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil || len(f.all) >= maxGenuine {
		f.all = make(map[fingerprint]struct{})
	}
	f.all[key] = struct{}{}
}
