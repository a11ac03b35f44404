package authority

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	caFile    = "ca.pem"
	caKeyFile = "ca_key.pem"

	publicDir   fs.FileMode = 0o755 // what is private in it is so by itself
	privateFile fs.FileMode = 0o600
	publicFile  fs.FileMode = 0o644
)

// Open returns the authority that dir holds in ca.pem and ca_key.pem. If it
// holds neither, a new one is made and stored there, the key readable for this
// user only; of several callers at the same time one makes it. Half an authority,
// an expired one, or one of another trust domain is an error.
func Open(dir string, td spiffeid.TrustDomain) (*Authority, error) {
	if dir == "" || td.IsZero() {
		return nil, errors.New("authority needs a directory and a trust domain")
	}
	root, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	held := read(root)
	if held.noCert() || held.noKey() { // somebody else may be storing one
		unlock, err := lock(root)
		if err != nil {
			return nil, err
		}
		defer unlock()
		held = read(root)
	}
	switch {
	case held.noCert() && held.noKey():
		return create(root, td)
	case held.noCert():
		return nil, fmt.Errorf("%s holds %s without %s; remove it to make a new authority", dir, caKeyFile, caFile)
	case held.noKey():
		return nil, fmt.Errorf("%s holds %s without %s; remove it to make a new authority", dir, caFile, caKeyFile)
	case held.certErr != nil || held.keyErr != nil:
		return nil, fmt.Errorf("reading the authority: %w", errors.Join(held.certErr, held.keyErr))
	}
	a, err := load(held.cert, held.key, td)
	if err != nil {
		return nil, fmt.Errorf("authority in %s: %w; remove %s and %s to make a new one", dir, err, caFile, caKeyFile)
	}
	return a, nil
}

// holding is what a directory has of an authority, as PEM.
type holding struct {
	cert, key       []byte
	certErr, keyErr error
}

func read(root *os.Root) (h holding) {
	h.cert, h.certErr = root.ReadFile(caFile)
	h.key, h.keyErr = root.ReadFile(caKeyFile)
	return h
}

func (h *holding) noCert() bool { return errors.Is(h.certErr, fs.ErrNotExist) }

func (h *holding) noKey() bool { return errors.Is(h.keyErr, fs.ErrNotExist) }

// lock waits until nobody else stores an authority in a directory, and keeps
// others from it until unlock. It ends with the process, too. Some network file
// systems lock no directory: there two may be made at the same time.
func lock(root *os.Root) (unlock func(), err error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("opening the directory: %w", err)
	}
	for errors.Is(syscall.Flock(int(dir.Fd()), syscall.LOCK_EX), syscall.EINTR) {
	}
	return func() { _ = dir.Close() }, nil
}

func create(root *os.Root, td spiffeid.TrustDomain) (*Authority, error) {
	made, err := newIssuer(td, storedCALifetime)
	if err != nil {
		return nil, err
	}
	a := stored(td, made)
	keyPEM, err := encodeKey(a.signing.key)
	if err != nil {
		return nil, err
	}
	if err := replace(root, caKeyFile, keyPEM, privateFile); err != nil {
		return nil, err
	}
	if err := replace(root, caFile, a.Bundle(), publicFile); err != nil {
		return nil, err
	}
	return a, nil
}

func load(certPEM, keyPEM []byte, td spiffeid.TrustDomain) (*Authority, error) {
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, errors.New("certificate or key is not PEM")
	}
	ca, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parsing its certificate: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parsing its key: %w", err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("its key cannot sign")
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(ca.PublicKey):
		return nil, errors.New("key does not belong to certificate")
	case !ca.IsCA || len(ca.URIs) != 1:
		return nil, errors.New("certificate is not that of a SPIFFE authority")
	case ca.URIs[0].String() != td.IDString():
		return nil, fmt.Errorf("it is for %.300q, not for %s", ca.URIs[0], td.IDString())
	case time.Now().After(ca.NotAfter):
		return nil, fmt.Errorf("it expired %s", ca.NotAfter.UTC().Format(time.RFC3339))
	}
	return stored(td, issuer{ca: ca, key: key}), nil
}

// stored is an authority without a lifetime for further CAs: a roll that its
// directory does not know would be undone by the next Open.
func stored(td spiffeid.TrustDomain, signing issuer) *Authority {
	return &Authority{trustDomain: td, signing: signing, changed: make(chan struct{})}
}

// WriteDir writes svid.pem, svid_key.pem and bundle.pem, each replaced at once
// (but not all three together: a reader must check that certificate and key
// belong together). The key is readable for this user only, the rest, and
// a directory that does not exist yet, for everybody whom the umask lets: the
// bundle is for those who meet the workload.
func (s *SVID) WriteDir(dir string, bundle []byte) error {
	if len(bundle) == 0 {
		return errors.New("writing an SVID needs a bundle")
	}
	root, err := openDir(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, file := range []struct {
		name string
		data []byte
		mode fs.FileMode
	}{
		{"bundle.pem", bundle, publicFile},
		{"svid_key.pem", s.Key, privateFile},
		{"svid.pem", s.Certificate, publicFile},
	} {
		if err := replace(root, file.name, file.data, file.mode); err != nil {
			return err
		}
	}
	return nil
}

func openDir(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, publicDir); err != nil {
		return nil, fmt.Errorf("making the directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the directory: %w", err)
	}
	return root, nil
}

// replace writes a file beside name and renames it, so that a reader sees the
// old content or the new one.
func replace(root *os.Root, name string, data []byte, mode fs.FileMode) error {
	next := "." + name + "." + rand.Text()
	err := root.WriteFile(next, data, mode)
	if err == nil {
		err = root.Rename(next, name)
	}
	if err != nil {
		_ = root.Remove(next) // it may not even exist; the first error says more
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

func encodeCertificate(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}
