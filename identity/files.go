package identity

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
)

// FileConfig names the PEM files of an identity: either the three files, or
// the directory that holds them.
type FileConfig struct {
	// Certificate holds the X509-SVID: the leaf, then its intermediates.
	Certificate string
	// Key holds its private key (PKCS #8, SEC 1 or PKCS #1; not encrypted).
	Key string
	// Bundle holds the authorities of our own trust domain.
	Bundle string
	// Dir stands for the three. It holds svid.pem, svid_key.pem and bundle.pem,
	// as spiffe-helper writes them, or tls.crt, tls.key and ca.crt, as the CSI
	// drivers do.
	Dir string
	// Bundles are more trust domains: name → file with their authorities. Empty
	// means that only our own trust domain is known.
	Bundles map[string]string
}

// Files is an identity from files. It watches nothing by itself: whoever does
// calls [Files.Reload]. It is safe for concurrent use.
type Files struct {
	config   FileConfig
	snapshot atomic.Pointer[Snapshot]

	mu      sync.Mutex // held by a Reload from end to end
	held    digest     // of the files that snapshot was made of
	spoiled error      // what of them could not be used
}

// Snapshot returns what the files held when they were last in order, or nil for
// files that were not loaded.
func (f *Files) Snapshot() *Snapshot {
	if f == nil {
		return nil
	}
	return f.snapshot.Load()
}

// LoadFiles reads certificate, key and bundles together. An error says which
// file is wrong, how, and what to do. The files must be regular ones: they are
// read more than once, see [Files.Reload].
func LoadFiles(config FileConfig) (*Files, error) {
	config.Bundles = maps.Clone(config.Bundles)
	f := &Files{config: config}
	if _, err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Reload reads all files again. It is cheap to call when in doubt: files that
// hold what the snapshot was made of are not even parsed.
//
// Only files that fit together, and that two readings in a row found the same,
// become a snapshot, of the next generation; changed says so. Of anything else,
// a half-rotated directory for one, the error says which file is wrong, the
// snapshot stays, and the next call tries again. Only a bundle of another trust
// domain that cannot be used holds nothing else back: its last one stays, which
// the error says. So a nil error means that the snapshot is what the files hold.
// A certificate that expired since is no error, see [Snapshot.NotAfter].
//
// Concurrent calls wait for each other.
func (f *Files) Reload() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	read, err := f.config.read()
	if err != nil {
		return false, err
	}
	before := f.snapshot.Load()
	if before != nil && read.digest == f.held {
		return false, f.spoiled
	}
	if read, err = f.config.settle(read); err != nil {
		return false, err
	}
	snap, spoiled, err := read.snapshot(before)
	if err != nil {
		return false, err
	}
	f.held, f.spoiled = read.digest, spoiled
	if spoiled != nil && snap.same(before) {
		return false, spoiled
	}
	f.snapshot.Store(snap)
	return true, spoiled
}

// same compares all but the generation.
func (s *Snapshot) same(other *Snapshot) bool {
	return slices.EqualFunc(s.certificate.Certificate, other.certificate.Certificate, bytes.Equal) && s.SameTrust(other)
}

// Look reads the files and returns a text by which two readings are told apart:
// what they hold, or why they cannot be read. It parses nothing and changes
// nothing.
func (f *Files) Look() string {
	read, err := f.config.read()
	if err != nil {
		return err.Error()
	}
	return hex.EncodeToString(read.digest[:])
}

// resolve returns the same configuration with the three files named.
func (c FileConfig) resolve() (FileConfig, error) {
	if c.Dir != "" {
		if c.Certificate != "" || c.Key != "" || c.Bundle != "" {
			return c, fmt.Errorf("directory %s and single files are configured; give either the directory or certificate, key and bundle", c.Dir)
		}
		return c.fromDir()
	}
	for _, f := range []struct{ what, path string }{
		{"certificate", c.Certificate}, {"key", c.Key}, {"bundle", c.Bundle},
	} {
		if f.path == "" {
			return c, fmt.Errorf("no %s file is configured; give certificate, key and bundle, or a directory that holds them", f.what)
		}
	}
	return c, nil
}

func (c FileConfig) fromDir() (FileConfig, error) {
	type layout struct{ certificate, key, bundle string }
	layouts := [...]layout{
		{"svid.pem", "svid_key.pem", "bundle.pem"}, // spiffe-helper
		{"tls.crt", "tls.key", "ca.crt"},           // CSI drivers
	}
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return c, fmt.Errorf("identity directory %s: %w; check the path, and whether what fills it has run", c.Dir, reason(err))
	}
	var found []layout
	for _, l := range layouts {
		if slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			return e.Name() == l.certificate || e.Name() == l.key || e.Name() == l.bundle
		}) {
			found = append(found, l)
		}
	}
	switch len(found) {
	case 0:
		return c, fmt.Errorf("identity directory %s holds neither svid.pem, svid_key.pem and bundle.pem nor tls.crt, tls.key and ca.crt; check the path, and whether what fills it has run", c.Dir)
	case 1:
		c.Certificate = filepath.Join(c.Dir, found[0].certificate)
		c.Key = filepath.Join(c.Dir, found[0].key)
		c.Bundle = filepath.Join(c.Dir, found[0].bundle)
		return c, nil
	default:
		return c, fmt.Errorf("identity directory %s holds files of two layouts (svid.pem ... and tls.crt ...); name certificate, key and bundle instead", c.Dir)
	}
}
