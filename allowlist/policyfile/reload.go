package policyfile

import (
	"crypto/sha256"
	"errors"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// Loader loads one policy repeatedly. It keeps the trees of files without errors, so that
// a file that has not changed is not parsed again. It is not safe for concurrent use.
type Loader struct {
	opts     Options
	paths    []string
	seen     string                // fingerprint of the last reading
	accepted string                // fingerprint of the last reading that was confirmed
	parsed   map[string]parsedFile // trees by path

	policy, quarantine string            // digests of the last policy and quarantine list that were loaded
	compiled           *allowlist.Policy // the policy that was compiled from the files with the digest policy
}

// parsedFile is the tree of a file, which can be walked again.
type parsedFile struct {
	sum  [sha256.Size]byte
	root *strictyaml.Node
}

// Loaded is the result of one reading.
type Loaded struct {
	// Confirmed is false if another reading must confirm this one. No other field is set
	// then.
	Confirmed bool
	// Changed is false if the files are the same as in the last confirmed reading. No
	// other field but Confirmed is set then.
	Changed bool
	// Policy is compiled from all files but quarantine.yaml. It is nil if they have an
	// error.
	Policy *allowlist.Policy
	// PolicyChanged says that these files differ from those of the last Policy, and
	// QuarantineChanged that quarantine.yaml differs from that of the last Quarantine. If
	// these files have not changed and have no error, Policy is the last one.
	PolicyChanged, QuarantineChanged bool
	// Quarantine is the list in quarantine.yaml, whatever errors other files have. It is
	// empty if there is no such file, and nil if the file has an error or may be one of
	// the files that cannot be read.
	Quarantine *allowlist.QuarantineList
}

// NewLoader returns a loader for the policy at paths, each a file or a directory.
func NewLoader(opts Options, paths ...string) *Loader {
	return &Loader{opts: opts, paths: paths, parsed: map[string]parsedFile{}}
}

// Load reads the files. A reading is confirmed if it is the same as the reading before.
// complete says that a rename put the files in place, so that their content is complete:
// Load then reads twice itself. Policy and Quarantine may be set together with an error,
// because they are independent. For each of them that is nil, the caller should keep the
// one that it has.
func (l *Loader) Load(complete bool) (Loaded, error) {
	files, fingerprint, err := l.read()
	if complete { // by a rename, but other files may be renamed just now
		l.seen = fingerprint
		files, fingerprint, err = l.read()
	}
	confirmed := fingerprint == l.seen
	l.seen = fingerprint
	switch {
	case fingerprint == l.accepted:
		return Loaded{Confirmed: true}, nil
	case !confirmed:
		return Loaded{}, nil
	}
	l.accepted = fingerprint
	loaded := Loaded{Confirmed: true, Changed: true}
	policy, quarantine := files.split()
	if err != nil && quarantine.Empty() { // quarantine.yaml may be one of the files that cannot be read
		return loaded, err
	}
	lines, quarantineErr := quarantine.Quarantine()
	if quarantineErr == nil {
		loaded.Quarantine = allowlist.NewQuarantineList(lines)
		loaded.QuarantineChanged = quarantine.Digest() != l.quarantine
		l.quarantine = quarantine.Digest()
	}
	if digest := policy.Digest(); err == nil && digest != l.policy {
		var compiled *allowlist.Policy
		if compiled, err = l.compile(policy); err == nil {
			l.policy, l.compiled, loaded.PolicyChanged = digest, compiled, true
		}
	}
	switch {
	case err == nil:
		loaded.Policy = l.compiled
	case errors.Is(err, ErrEmpty) && quarantineErr != nil:
		return loaded, quarantineErr // there is a file, so the policy is not empty
	}
	return loaded, errors.Join(err, quarantineErr)
}

// split separates quarantine.yaml from the rest.
func (f *Files) split() (policy, quarantine *Files) {
	policy, quarantine = &Files{}, &Files{}
	for _, file := range f.list {
		if file.name == quarantineFile {
			quarantine.list = append(quarantine.list, file)
		} else {
			policy.list = append(policy.list, file)
		}
	}
	return policy, quarantine
}

// read reads the files. It also returns the fingerprint by which readings are compared:
// the digest of the files, or the error and the digest of quarantine.yaml. An error that
// lasts is therefore reported once, and a quarantine that changes meanwhile is still
// loaded.
func (l *Loader) read() (files *Files, fingerprint string, err error) {
	files, err = readable(l.paths)
	if err == nil && files.Empty() {
		err = ErrEmpty
	}
	if err != nil {
		_, quarantine := files.split()
		return files, quarantine.Digest() + " error: " + err.Error(), err
	}
	return files, files.Digest(), nil
}

// compile compiles a policy from files, which are all files but quarantine.yaml.
func (l *Loader) compile(files *Files) (*allowlist.Policy, error) {
	walk := newWalker(l.opts)
	walk.parse = l.parse
	spec, err := files.spec(walk)
	if err != nil {
		clear(l.parsed) // a walk with an error may leave parts of a tree out
		return nil, err
	}
	policy, err := compile(spec)
	if err != nil {
		return nil, err
	}
	l.forget(files)
	return policy, nil
}

// parse returns the tree of a file. It is the kept tree if the bytes are the same.
func (l *Loader) parse(f file, errs *strictyaml.Errors) *strictyaml.Node {
	sum := sha256.Sum256(f.data)
	if kept, ok := l.parsed[f.path]; ok && kept.sum == sum {
		kept.root.CollectIn(errs)
		return kept.root
	}
	root := parse(f, errs)
	if root != nil {
		l.parsed[f.path] = parsedFile{sum: sum, root: root}
	}
	return root
}

// forget drops the trees of all files that are not in files.
func (l *Loader) forget(files *Files) {
	there := map[string]bool{}
	for _, f := range files.list {
		there[f.path] = true
	}
	for path := range l.parsed {
		if !there[path] {
			delete(l.parsed, path)
		}
	}
}
