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

	publicDir   fs.FileMode = 0o755 // private files in it have their own mode
	privateFile fs.FileMode = 0o600
	publicFile  fs.FileMode = 0o644
)

// Open returns the authority in the files ca.pem and ca_key.pem of dir. If neither
// exists, Open makes a new authority and stores it there, with a key that only this user
// can read. If several callers do so at the same time, one of them makes the authority
// for all. It is an error if only one of the files exists, or if the authority has
// expired or is of another trust domain.
func Open(dir string, td spiffeid.TrustDomain) (*Authority, error) {
	if dir == "" || td.IsZero() {
		return nil, errors.New("authority needs a directory and a trust domain")
	}
	root, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	files := read(root)
	if files.noCert() || files.noKey() { // another process may be storing them
		unlock, err := lock(root)
		if err != nil {
			return nil, err
		}
		defer unlock()
		files = read(root)
	}
	switch {
	case files.noCert() && files.noKey():
		return create(root, td)
	case files.noCert():
		return nil, fmt.Errorf("%s holds %s without %s; remove it to make a new authority", dir, caKeyFile, caFile)
	case files.noKey():
		return nil, fmt.Errorf("%s holds %s without %s; remove it to make a new authority", dir, caFile, caKeyFile)
	case files.certErr != nil || files.keyErr != nil:
		return nil, fmt.Errorf("reading the authority: %w", errors.Join(files.certErr, files.keyErr))
	}
	a, err := load(files.cert, files.key, td)
	if err != nil {
		return nil, fmt.Errorf("authority in %s: %w; use another directory, or remove %s and %s to make a new authority", dir, err, caFile, caKeyFile)
	}
	return a, nil
}

// storedFiles holds the files of an authority, as PEM, or the errors of reading them.
type storedFiles struct {
	cert, key       []byte
	certErr, keyErr error
}

func read(root *os.Root) (f storedFiles) {
	f.cert, f.certErr = root.ReadFile(caFile)
	f.key, f.keyErr = root.ReadFile(caKeyFile)
	return f
}

func (f *storedFiles) noCert() bool { return errors.Is(f.certErr, fs.ErrNotExist) }

func (f *storedFiles) noKey() bool { return errors.Is(f.keyErr, fs.ErrNotExist) }

// lock takes the lock of a directory, and waits while another caller has it. The lock
// ends with unlock or with the process. Some network file systems cannot lock a
// directory; there two callers may make an authority at the same time.
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

// stored returns an authority whose CA is in a directory. It has no lifetime for further
// CAs, because a roll would not change the directory and the next Open would undo it.
func stored(td spiffeid.TrustDomain, signing issuer) *Authority {
	return &Authority{trustDomain: td, signing: signing, changed: make(chan struct{})}
}

// WriteDir writes svid.pem, svid_key.pem and bundle.pem. Each file is replaced
// atomically, but not the three together, so a reader must check that certificate and key
// belong together. Only this user can read the key. The other files, and dir if it does
// not exist yet, are readable for everybody whom the umask permits, because the peers of
// the workload need the bundle.
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

// replace writes a temporary file in the same directory and renames it to name, so that a
// reader sees either the old content or the new.
func replace(root *os.Root, name string, data []byte, mode fs.FileMode) error {
	next := "." + name + "." + rand.Text()
	err := root.WriteFile(next, data, mode)
	if err == nil {
		err = root.Rename(next, name)
	}
	if err != nil {
		_ = root.Remove(next) // the file may not exist, and the first error matters more
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
