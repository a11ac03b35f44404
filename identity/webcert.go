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

// WebCertificate is a certificate with DNS names from files, for listeners whose
// clients check the name of the proxy; see [ServerConfig.Web]. It watches nothing
// by itself: whoever does calls [WebCertificate.Reload]. It is safe for concurrent
// use.
type WebCertificate struct {
	certificate, key string // paths
	current          atomic.Pointer[tls.Certificate]

	mu   sync.Mutex // held by a Reload from end to end
	held string     // what Look said of the files that current was made of
}

// LoadWebCertificate reads a certificate and its key. It is an error when the
// certificate names no host, is for other uses than a server's, or is not valid
// now.
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

// Certificate returns what the files held when they were last in order. It is
// shared and must not be changed; nil if nothing was loaded.
func (w *WebCertificate) Certificate() *tls.Certificate {
	if w == nil {
		return nil
	}
	return w.current.Load()
}

// Reload reads both files again, as [Files.Reload] does: what is not in order
// leaves the last certificate in place.
func (w *WebCertificate) Reload() (changed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	certificate, key, err := w.read()
	if err != nil {
		return false, err
	}
	holds := digestOf(certificate, key)
	if holds == w.held {
		return false, nil
	}
	loaded, err := webCertificate(certificate, key)
	if err != nil {
		return false, err
	}
	w.held = holds
	w.current.Store(loaded)
	return true, nil
}

// Look tells two readings apart, as [Files.Look] does.
func (w *WebCertificate) Look() string {
	certificate, key, err := w.read()
	if err != nil {
		return err.Error()
	}
	return digestOf(certificate, key)
}

func (w *WebCertificate) read() (certificate, key file, err error) {
	if certificate, err = readFile("certificate", w.certificate); err == nil {
		key, err = readFile("key", w.key)
	}
	return certificate, key, err
}

func digestOf(files ...file) string {
	hash := sha256.New()
	for _, f := range files {
		f.addTo(hash)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

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
