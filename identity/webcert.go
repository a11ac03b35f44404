package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// WebCertificate is a certificate with DNS names, read from files, for listeners whose
// clients check the name of the proxy; see [ServerConfig.Web]. It does not watch the
// files; call [WebCertificate.Reload] when they may have changed. It is safe for
// concurrent use.
type WebCertificate struct {
	certificate, key string // paths
	current          atomic.Pointer[tls.Certificate]

	mu   sync.Mutex // locked during a whole Reload
	read string     // fingerprint of the files that current was made from
}

// LoadWebCertificate reads a certificate and its key. It returns an error if the
// certificate names no host, is not for a server, or is not valid now.
func LoadWebCertificate(certificate, key string) (*WebCertificate, error) {
	if certificate == "" || key == "" {
		return nil, errors.New("web certificate needs both a certificate file and a key file")
	}
	w := &WebCertificate{certificate: certificate, key: key}
	if _, err := w.Reload(); err != nil {
		return nil, err
	}
	return w, nil
}

// Certificate returns the last valid certificate that the files held. It is shared and
// must not be changed. It is nil if w is nil.
func (w *WebCertificate) Certificate() *tls.Certificate {
	if w == nil {
		return nil
	}
	return w.current.Load()
}

// Reload reads both files again. If they are not valid, the last certificate stays and
// Reload returns an error.
func (w *WebCertificate) Reload() (changed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	certificate, key, err := w.files()
	if err != nil {
		return false, err
	}
	fingerprint := digestOf(certificate, key)
	if fingerprint == w.read {
		return false, nil
	}
	loaded, err := webCertificate(certificate, key)
	if err != nil {
		return false, err
	}
	w.read = fingerprint
	w.current.Store(loaded)
	return true, nil
}

// Fingerprint returns a text that differs between two readings if the content of the
// files differs, as [Files.Fingerprint] does.
func (w *WebCertificate) Fingerprint() string {
	certificate, key, err := w.files()
	if err != nil {
		return err.Error()
	}
	return digestOf(certificate, key)
}

// files reads both files.
func (w *WebCertificate) files() (certificate, key file, err error) {
	if certificate, err = readFile("certificate", w.certificate); err == nil {
		key, err = readFile("key", w.key)
	}
	return certificate, key, err
}

// digestOf returns a hash of the names and contents of files.
func digestOf(files ...file) string {
	hash := sha256.New()
	for _, f := range files {
		f.addTo(hash)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// webCertificate parses and checks a certificate and its key.
func webCertificate(certificate, key file) (*tls.Certificate, error) {
	chain, signer, err := parsePair(certificate, key)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	if err := checkValidity(leaf, time.Now()); err != nil {
		return nil, fmt.Errorf("certificate file %s: %w", certificate.path, err)
	}
	if len(leaf.DNSNames) == 0 && len(leaf.IPAddresses) == 0 {
		return nil, fmt.Errorf("certificate file %s has no DNS name or IP address that clients could check; issue it with the names under which clients reach the listener", certificate.path)
	}
	usages := leaf.ExtKeyUsage
	if len(usages)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.Contains(usages, x509.ExtKeyUsageServerAuth) && !slices.Contains(usages, x509.ExtKeyUsageAny) {
		return nil, fmt.Errorf("certificate file %s is not for servers: its extended key usage has no serverAuth; issue it for a server", certificate.path)
	}
	out := pair(chain, signer)
	return &out, nil
}
