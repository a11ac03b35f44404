package policyfile

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// quarantineFile is the name of the file that is loaded independently of the others.
const quarantineFile = "quarantine.yaml"

// Files holds the bytes of all policy files at one moment. It is immutable.
type Files struct {
	list []file // sorted by name; names are unique
}

type file struct {
	name string // relative to the policy root
	path string // the path that was opened, for errors
	data []byte
}

// Read reads policy files. Each path is a file, or a directory in which it reads every
// *.yaml. It skips names that begin with a dot (such as ..data of a ConfigMap) and all
// names without a YAML suffix, and follows symbolic links. Files are identified by their
// names, so two files with the same name are an error, and so is a name like x.yml that
// looks like policy and would not be read. All files together may have 64 MiB.
//
// Read takes no lock. If the files may change, call it until two readings have the same
// Digest.
func Read(paths ...string) (*Files, error) {
	files, err := readable(paths)
	if err != nil {
		return nil, err
	}
	return files, nil
}

// readable returns the files that can be read, and the first error if others cannot.
func readable(paths []string) (*Files, error) {
	if len(paths) == 0 {
		return &Files{}, errors.New("reading policy: no path was given")
	}
	r := reader{left: strictyaml.MaxBytes, paths: make(map[string]string)}
	for _, path := range paths {
		r.fail(r.add(path))
	}
	slices.SortFunc(r.list, func(a, b file) int { return strings.Compare(a.name, b.name) })
	if r.first != nil {
		return &Files{list: r.list}, fmt.Errorf("reading policy: %w", r.first)
	}
	return &Files{list: r.list}, nil
}

// filesOf returns Files with the given bytes by name. It does not copy the bytes.
func filesOf(data map[string][]byte) (*Files, error) {
	f := new(Files)
	left := int64(strictyaml.MaxBytes)
	for _, name := range slices.Sorted(maps.Keys(data)) {
		if left -= int64(len(data[name])); left < 0 {
			return nil, fmt.Errorf("reading policy: %w", tooLarge(name))
		}
		f.list = append(f.list, file{name: name, path: name, data: data[name]})
	}
	return f, nil
}

// Empty reports whether there are no files.
func (f *Files) Empty() bool { return len(f.list) == 0 }

// Names returns the names of the files, relative to the policy root and sorted.
func (f *Files) Names() []string {
	names := make([]string, len(f.list))
	for i, file := range f.list {
		names[i] = file.name
	}
	return names
}

// Digest returns a hash over the names and bytes of all files in hex, by which readings
// are compared. It does not depend on the path of the policy root. The version of the
// policy is another hash, which does not depend on names and comments.
func (f *Files) Digest() string {
	hash := sha256.New()
	part := func(b []byte) {
		var size [8]byte // written before each part, so that no two lists hash the same bytes
		binary.BigEndian.PutUint64(size[:], uint64(len(b)))
		hash.Write(size[:])
		hash.Write(b)
	}
	for _, file := range f.list {
		part([]byte(file.name))
		part(file.data)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// reader collects files up to a total number of bytes.
type reader struct {
	list  []file
	paths map[string]string // paths by file name
	left  int64             // number of bytes that may still be read
	first error             // the first error
}

// fail keeps the first error.
func (r *reader) fail(err error) {
	if r.first == nil {
		r.first = err
	}
}

// add reads the file or the directory at a path. It returns an error if the path itself
// cannot be read, and passes errors of files in a directory to fail.
func (r *reader) add(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return r.addFile(path, info)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || !looksLikeYAML(name) {
			continue
		}
		r.fail(r.addInside(filepath.Join(path, name)))
	}
	return nil
}

func (r *reader) addInside(path string) error {
	if filepath.Ext(path) != ".yaml" {
		return fmt.Errorf("%s would not be read: rename it to end in .yaml", path)
	}
	info, err := os.Stat(path) // follows symbolic links
	if err != nil {
		return err
	}
	return r.addFile(path, info)
}

func (r *reader) addFile(path string, info os.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: name a file or a directory of files", path)
	}
	name := filepath.Base(path)
	if first, ok := r.paths[name]; ok {
		return fmt.Errorf("%s and %s have the same name: rename one", first, path)
	}
	if info.Size() > r.left {
		return tooLarge(path)
	}
	data, err := readAll(path, r.left)
	if err != nil {
		return err
	}
	r.left -= int64(len(data))
	r.paths[name] = path
	r.list = append(r.list, file{name: name, path: path, data: data})
	return nil
}

func readAll(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // G304: the operator names the policy
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, tooLarge(path) // the file has grown since Stat
	}
	return data, nil
}

func tooLarge(path string) error {
	return fmt.Errorf("%s: the policy has more than %d MiB", path, strictyaml.MaxBytes>>20)
}

func looksLikeYAML(name string) bool {
	ext := strings.ToLower(filepath.Ext(name))
	return ext == ".yaml" || ext == ".yml"
}
