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

// FileConfig names the PEM files of an identity: either the three files, or the
// directory that holds them.
type FileConfig struct {
	// Certificate is the file with the X509-SVID: the leaf, then its intermediates.
	Certificate string
	// Key is the file with its private key (PKCS #8, SEC 1 or PKCS #1; not encrypted).
	Key string
	// Bundle is the file with the authorities of our own trust domain.
	Bundle string
	// Dir is a directory that holds the three files, either as svid.pem, svid_key.pem
	// and bundle.pem (the names that spiffe-helper writes) or as tls.crt, tls.key and
	// ca.crt (the names of the CSI drivers).
	Dir string
	// Bundles maps the names of other trust domains to the files with their
	// authorities. If it is empty, only our own trust domain is known.
	Bundles map[string]string
}

// Files is a [Provider] that reads an identity from files. It does not watch them; call
// [Files.Reload] when they may have changed. It is safe for concurrent use.
type Files struct {
	config   FileConfig
	snapshot atomic.Pointer[Snapshot]

	mu      sync.Mutex // locked during a whole Reload
	read    digest     // digest of the files that snapshot was made from
	spoiled error      // why a part of these files could not be used; nil if all were
}

// Snapshot returns the snapshot of the files as they were when they last fitted
// together. It is nil if f is nil.
func (f *Files) Snapshot() *Snapshot {
	if f == nil {
		return nil
	}
	return f.snapshot.Load()
}

// LoadFiles reads certificate, key and bundles. An error says which file is wrong, why,
// and what to do. The files must be regular files, because they are read more than once;
// see [Files.Reload].
func LoadFiles(config FileConfig) (*Files, error) {
	config.Bundles = maps.Clone(config.Bundles)
	f := &Files{config: config}
	if _, err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Reload reads all files again. Calling it without need is cheap: files that have not
// changed are not parsed.
//
// If the files fit together and two readings in a row are equal, they become the next
// snapshot, and changed is true. Otherwise, for example while a directory is only half
// rotated, the error says which file is wrong, the snapshot stays, and the next call
// tries again. There is one exception: if the bundle of another trust domain cannot be
// used, its last valid version stays in the new snapshot, and the error says so. A nil
// error means that the snapshot corresponds to the files. A certificate that has
// expired since is no error; see [Snapshot.NotAfter].
//
// Concurrent calls run one after another.
func (f *Files) Reload() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	read, err := f.config.read()
	if err != nil {
		return false, err
	}
	before := f.snapshot.Load()
	if before != nil && read.digest == f.read {
		return false, f.spoiled
	}
	if read, err = f.config.repeat(read); err != nil {
		return false, err
	}
	snap, spoiled, err := read.snapshot(before)
	if err != nil {
		return false, err
	}
	f.read, f.spoiled = read.digest, spoiled
	if spoiled != nil && snap.same(before) {
		return false, spoiled
	}
	f.snapshot.Store(snap)
	return true, spoiled
}

// same reports whether two snapshots are equal except for their generation.
func (s *Snapshot) same(other *Snapshot) bool {
	return slices.EqualFunc(s.certificate.Certificate, other.certificate.Certificate, bytes.Equal) && s.SameTrust(other)
}

// Fingerprint reads the files and returns a text that differs between two readings if
// their content differs: a hash of it, or the error if they cannot be read. It parses
// nothing and changes nothing.
func (f *Files) Fingerprint() string {
	read, err := f.config.read()
	if err != nil {
		return err.Error()
	}
	return hex.EncodeToString(read.digest[:])
}

// resolve returns the configuration with the paths of the three files filled in.
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

// fromDir fills in the paths of the three files in the configured directory.
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
