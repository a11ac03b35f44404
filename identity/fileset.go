package identity

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// digest is a hash of the names and contents of all files of an identity.
type digest [sha256.Size]byte

// fileSet is one reading of all files of an identity.
type fileSet struct {
	certificate, key, bundle file
	bundles                  []foreignBundle
	digest                   digest
}

// foreignBundle is the bundle file of a trust domain that is not our own.
type foreignBundle struct {
	name string // name of the trust domain, as it is configured
	file file
	err  error // why it could not be read
}

// read reads all files once.
func (c FileConfig) read() (*fileSet, error) {
	c, err := c.resolve()
	if err != nil {
		return nil, err
	}
	set := &fileSet{}
	hash := sha256.New()
	read := func(into *file, what, path string) {
		if err != nil {
			return // the first error is the one to report
		}
		if *into, err = readFile(what, path); err == nil {
			into.addTo(hash)
		}
	}
	read(&set.certificate, "certificate", c.Certificate)
	read(&set.key, "key", c.Key)
	read(&set.bundle, "bundle", c.Bundle)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bundles)) {
		other := foreignBundle{name: name}
		if other.file, other.err = readFile("bundle", c.Bundles[name]); other.err != nil {
			other.file.path, other.file.data = c.Bundles[name], []byte(other.err.Error())
		}
		other.file.addTo(hash)
		set.bundles = append(set.bundles, other)
	}
	hash.Sum(set.digest[:0])
	return set, nil
}

// repeat reads the files until two readings in a row are equal. A single reading is not
// enough: if the files are replaced while it goes on, it may combine an old bundle with
// a new certificate.
func (c FileConfig) repeat(last *fileSet) (*fileSet, error) {
	const readings = 4 // enough for a rotation to end; if it has not, the next Reload tries again
	for range readings {
		next, err := c.read()
		if err != nil {
			return nil, err
		}
		if next.digest == last.digest {
			return next, nil
		}
		last = next
	}
	return nil, fmt.Errorf("certificate file %s, its key and its bundles change faster than they can be read; see what writes them", last.certificate.path)
}

// snapshot makes a snapshot from the files. It repeats checks of NewSnapshot so that
// every error names the file. If the bundle of another trust domain cannot be used, the
// bundle of the snapshot before takes its place, if there is one, and spoiled says so.
func (s *fileSet) snapshot(before *Snapshot) (next *Snapshot, spoiled, err error) {
	chain, key, err := parsePair(s.certificate, s.key)
	if err != nil {
		return nil, nil, err
	}
	id, err := leafID(chain[0])
	if err != nil {
		return nil, nil, fmt.Errorf("certificate file %s is not an X509-SVID: %w; the leaf of a workload comes first, with its SPIFFE ID as the only URI SAN", s.certificate.path, err)
	}
	if err := checkValidity(chain[0], time.Now()); err != nil {
		return nil, nil, fmt.Errorf("certificate file %s: %w", s.certificate.path, err)
	}
	own, err := s.bundle.trust(id.TrustDomain())
	if err != nil {
		return nil, nil, err
	}
	if _, err := own.issued(chain, time.Now()); err != nil {
		return nil, nil, fmt.Errorf("certificate file %s and bundle file %s: %w", s.certificate.path, s.bundle.path, err)
	}
	bundles, spoiled, err := s.foreign(id.TrustDomain(), before)
	if err != nil {
		return nil, nil, err
	}
	next, err = NewSnapshot(SnapshotConfig{
		Certificate: pair(chain, key), Bundles: append(bundles, own.bundle()), Generation: before.next(),
	})
	return next, spoiled, err
}

// foreign returns the bundles of trust domains other than our own.
func (s *fileSet) foreign(own spiffeid.TrustDomain, before *Snapshot) (bundles []*x509bundle.Bundle, spoiled, err error) {
	for _, foreign := range s.bundles {
		t, err := foreign.trust(own, s.bundle.path)
		if last := before.trust(foreign.name); err != nil && last != nil {
			spoiled = fmt.Errorf("%w; the last bundle of trust domain %s stays, and all else is used", err, quoted(foreign.name))
			t, err = last, nil
		}
		if err != nil {
			return nil, nil, err
		}
		bundles = append(bundles, t.bundle())
	}
	return bundles, spoiled, nil
}

// trust parses the bundle of a trust domain that is not our own.
func (f foreignBundle) trust(own spiffeid.TrustDomain, ownPath string) (*trust, error) {
	td, err := spiffeid.TrustDomainFromString(f.name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("bundle file %s is for %s, which is not a trust domain: %w", f.file.path, quoted(f.name), err)
	case td == own:
		return nil, fmt.Errorf("bundle file %s is for %s, our own trust domain; its authorities belong into %s", f.file.path, quoted(f.name), ownPath)
	case f.err != nil:
		return nil, f.err
	}
	return f.file.trust(td)
}

// trust returns the bundle of a trust domain that is not our own, nil if the snapshot
// has none.
func (s *Snapshot) trust(name string) *trust {
	if s == nil || name == s.TrustDomain().Name() {
		return nil
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return nil
	}
	return s.trusted.bundles[td]
}

// next returns the generation of the snapshot that follows this one. s may be nil.
func (s *Snapshot) next() uint64 {
	if s == nil {
		return 1
	}
	return s.generation + 1
}

// bundle returns the authorities as a go-spiffe bundle.
func (t *trust) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(t.domain, t.authorities)
}

// trust parses a file as the bundle of a trust domain.
func (f file) trust(td spiffeid.TrustDomain) (*trust, error) {
	authorities, err := f.certificates()
	if err != nil {
		return nil, err
	}
	t, err := newTrust(td, authorities)
	if err != nil {
		return nil, fmt.Errorf("bundle file %s: %w", f.path, err)
	}
	return t, nil
}

// parsePair returns a certificate chain and the private key of its first certificate.
func parsePair(certificate, key file) ([]*x509.Certificate, crypto.Signer, error) {
	chain, err := certificate.certificates()
	if err != nil {
		return nil, nil, err
	}
	signer, err := key.signer()
	if err != nil {
		return nil, nil, err
	}
	if !keyMatches(chain[0], signer) {
		return nil, nil, fmt.Errorf("key file %s does not belong to the first certificate in %s; give both from the same issue, the leaf before its intermediates", key.path, certificate.path)
	}
	return chain, signer, nil
}

// pair returns a chain and its key as a certificate for crypto/tls.
func pair(chain []*x509.Certificate, key crypto.Signer) tls.Certificate {
	out := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		out.Certificate = append(out.Certificate, cert.Raw)
	}
	return out
}
