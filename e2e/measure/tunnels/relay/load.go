package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
)

// load reads the files that `exeat authority mint` writes.
func load(dir fs.FS) (*tls.Config, error) {
	cert, err := fs.ReadFile(dir, "svid.pem")
	if err != nil {
		return nil, err
	}
	key, err := fs.ReadFile(dir, "svid_key.pem")
	if err != nil {
		return nil, err
	}
	bundle, err := fs.ReadFile(dir, "bundle.pem")
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(bundle) {
		return nil, errors.New("bundle.pem holds no certificate")
	}
	return newConfig(certificate, clients), nil
}
