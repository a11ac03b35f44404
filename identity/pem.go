package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxFileBytes bounds the size of a PEM file. The largest public root programs are
// smaller.
const maxFileBytes = 4 << 20

// file is a file that was read.
type file struct {
	what, path string // what is the purpose of the file, for messages
	data       []byte
}

// addTo adds the name, the length and the content to a hash, so that two different lists
// of files never add the same bytes.
func (f file) addTo(hash io.Writer) {
	_, _ = fmt.Fprintf(hash, "%q %d\n%s", f.path, len(f.data), f.data) // a hash never fails
}

// blocks returns the PEM blocks of a file. A block that is cut short or damaged is an
// error. encoding/pem would skip it, and a bundle that was only partly written, for
// example because the disk was full, would look like one with fewer authorities.
func (f file) blocks() ([]*pem.Block, error) {
	begin := []byte("-----BEGIN ")
	var all []*pem.Block
	left := f.data
	for {
		block, rest := pem.Decode(left)
		through := left
		if block != nil {
			through = left[:len(left)-len(rest)]
		}
		begun := bytes.Count(through, begin)
		if block == nil && begun > 0 || begun > 1 {
			return nil, fmt.Errorf("%s file %s: PEM block %d is cut short or damaged; each begins and ends on a line of its own: see whether what writes it has finished", f.what, f.path, len(all)+1)
		}
		if block == nil {
			return all, nil
		}
		all, left = append(all, block), rest
	}
}

// certificates returns the certificates of a PEM file, at least one. It skips other
// blocks, so that the file may hold the key as well.
func (f file) certificates() ([]*x509.Certificate, error) {
	var (
		certs []*x509.Certificate
		other string
	)
	blocks, err := f.blocks()
	if err != nil {
		return nil, err
	}
	for _, block := range blocks {
		if block.Type != "CERTIFICATE" {
			other = block.Type
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s file %s: certificate %d cannot be parsed: %w; issue it again", f.what, f.path, len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	switch {
	case len(certs) > 0:
		return certs, nil
	case other != "":
		return nil, fmt.Errorf("%s file %s holds a PEM block %s and no CERTIFICATE; check that the paths are not mixed up", f.what, f.path, quoted(other))
	default:
		return nil, f.notPEM("x509 -inform der", "pkcs12 -nokeys")
	}
}

// signer returns the first private key of a PEM file. It skips other blocks, such as the
// EC PARAMETERS that openssl ecparam writes before a key.
func (f file) signer() (crypto.Signer, error) {
	var other string
	for block, rest := pem.Decode(f.data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, fmt.Errorf("key file %s is encrypted; store the key without a passphrase, readable for this user only", f.path)
		}
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			other = block.Type
			continue
		}
		signer, err := parseKey(block)
		if err != nil {
			return nil, fmt.Errorf("key file %s: %w; give an EC or RSA key as PKCS #8, SEC 1 or PKCS #1", f.path, err)
		}
		return signer, nil
	}
	if other != "" {
		return nil, fmt.Errorf("key file %s holds a PEM block %s and no PRIVATE KEY; check that the paths are not mixed up", f.path, quoted(other))
	}
	return nil, f.notPEM("pkey -inform der", "pkcs12 -nocerts -noenc")
}

// notPEM returns the error for a file without PEM blocks. der and pkcs12 are the commands
// of openssl that convert a file of these formats.
func (f file) notPEM(der, pkcs12 string) error {
	var pfx struct { // RFC 7292 section 4
		Version  int
		AuthSafe asn1.RawValue
		MacData  asn1.RawValue `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal(f.data, &pfx); err == nil && pfx.Version == 3 {
		return fmt.Errorf("%s file %s is PKCS #12 and not PEM; convert it (openssl %s -in %[2]s)", f.what, f.path, pkcs12)
	}
	return fmt.Errorf("%s file %s is not PEM; convert it (openssl %s) or check the path", f.what, f.path, der)
}

// parseKey parses a private key in one of the three encodings.
func parseKey(block *pem.Block) (crypto.Signer, error) {
	var (
		key any
		err error
	)
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("unknown kind of key %s", quoted(block.Type))
	}
	if err != nil {
		return nil, fmt.Errorf("private key cannot be parsed: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("private key cannot sign")
	}
	return signer, nil
}

// readFile reads a regular file that is not empty and not too large. It does not wait
// for the writer of a named pipe, which is an error.
func readFile(what, path string) (file, error) {
	if path == "" {
		return file{}, fmt.Errorf("no path is configured for a %s file", what)
	}
	opened, err := os.OpenFile(filepath.Clean(path), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return file{}, fmt.Errorf("%s file %s: %w; check the path, its permissions, and whether what writes it has run", what, path, reason(err))
	}
	defer func() { _ = opened.Close() }()
	if info, err := opened.Stat(); err != nil || !info.Mode().IsRegular() {
		return file{}, fmt.Errorf("%s file %s is not a regular file; check the path", what, path)
	}
	data, err := io.ReadAll(io.LimitReader(opened, maxFileBytes+1))
	switch {
	case err != nil:
		return file{}, fmt.Errorf("%s file %s: %w; check the path", what, path, reason(err))
	case len(data) > maxFileBytes:
		return file{}, fmt.Errorf("%s file %s is larger than %d MiB; check the path", what, path, maxFileBytes>>20)
	case len(data) == 0:
		return file{}, fmt.Errorf("%s file %s is empty; see whether what writes it has finished", what, path)
	}
	return file{what: what, path: path, data: data}, nil
}

// reason removes the path from an error, for messages that already name the path.
func reason(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}
