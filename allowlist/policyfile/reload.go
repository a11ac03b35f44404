package policyfile

import (
	"crypto/sha256"
	"errors"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// Loader loads one policy again and again. It keeps what it parsed, so that a
// file that did not change is not parsed again. It belongs to one goroutine.
type Loader struct {
	opts   Options
	paths  []string
	seen   string // what the last reading saw, believed or not
	judged string // what the last believed reading saw
	parsed map[string]parsedFile

	policy, quarantine string            // digests of what Loaded last told of
	compiled           *allowlist.Policy // made of the files with the digest policy
}

// parsedFile is a file without errors, ready to be walked again.
type parsedFile struct {
	sum  [sha256.Size]byte
	root *strictyaml.Node
}

// Loaded is what came of one reading.
type Loaded struct {
	// Settled is false if another reading must confirm this one; then nothing
	// else is set.
	Settled bool
	// Changed is false if the files are as they were when last believed; then
	// nothing else is set.
	Changed bool
	// Policy is compiled of all files but quarantine.yaml; nil if they have an
	// error.
	Policy *allowlist.Policy
	// PolicyChanged says that these files differ from those of the last load, and
	// QuarantineChanged that quarantine.yaml does. If they do not, Policy is the
	// one of the last load.
	PolicyChanged, QuarantineChanged bool
	// Quarantine is that of quarantine.yaml, whatever is wrong with other files;
	// empty if there is no such file, and nil if it has an error or may be among
	// what cannot be read.
	Quarantine *allowlist.QuarantineList
}

// NewLoader returns a loader of the policy at paths, each a file or a
// directory.
func NewLoader(opts Options, paths ...string) *Loader {
	return &Loader{opts: opts, paths: paths, parsed: map[string]parsedFile{}}
}

// Load reads the files and believes the reading if they are settled, that is
// were put there whole, or if it saw what the reading before saw. With an error
// Policy and Quarantine may still be set, each holds by itself: what is nil
// should stay as it was.
func (l *Loader) Load(settled bool) (Loaded, error) {
	files, sees, err := l.read()
	if settled { // by a rename, but perhaps more files than one
		l.seen = sees
		files, sees, err = l.read()
	}
	settled = sees == l.seen
	l.seen = sees
	switch {
	case sees == l.judged:
		return Loaded{Settled: true}, nil
	case !settled:
		return Loaded{}, nil
	}
	l.judged = sees
	loaded := Loaded{Settled: true, Changed: true}
	policy, quarantine := files.split()
	if err != nil && quarantine.Empty() { // there may be one among what cannot be read
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
		return loaded, quarantineErr // there is a file, and it is broken
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

// read also returns what tells two readings apart: the digest, or the error,
// so that one that lasts is reported once, with the quarantine list, which counts
// all the same.
func (l *Loader) read() (files *Files, sees string, err error) {
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

// compile makes a policy of all files but quarantine.yaml.
func (l *Loader) compile(files *Files) (*allowlist.Policy, error) {
	walk := newLoader(l.opts)
	walk.parse = l.parse
	spec, err := files.spec(walk)
	if err != nil {
		clear(l.parsed) // a tree that was walked with an error is not whole
		return nil, err
	}
	policy, err := compile(spec)
	if err != nil {
		return nil, err
	}
	l.forget(files)
	return policy, nil
}

// parse returns the tree of a file, the kept one if its bytes are the same.
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

// forget drops the trees of files that are gone.
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
