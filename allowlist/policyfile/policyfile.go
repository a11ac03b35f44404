// Package policyfile reads policies in YAML. It returns an [allowlist.Spec] or an
// [allowlist.Policy], or errors with their file, line and column and with what to write
// instead.
//
// [Load] loads a policy in one call, and [Parse] one whose bytes the caller has. A
// program that reloads uses a [Loader], or takes the steps one by one: [Read] reads the
// bytes of one moment, [Files.Digest] shows whether they have changed, [Files.Spec]
// checks them and [allowlist.Compile] compiles them. [Files.Quarantine] reads
// quarantine.yaml by itself, so that an error in another file does not delay a
// quarantine.
//
// The package refuses rather than guesses: unknown keys, empty lists, a setting that two
// files set, a rule that can never do anything. Settings that this version does not
// enforce yet are errors too. It has no defaults (package allowlist has them) and does
// not judge style. Only a Loader keeps anything between calls.
package policyfile

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// ErrEmpty is the error of Load and Spec for a directory without policy files. A gateway
// may start with such a directory: it denies everything and is not ready.
var ErrEmpty = errors.New("the policy has no files")

// Options are settings from outside of the policy that change its meaning.
type Options struct {
	// TrustDomain is the trust domain of the gateway, the default of
	// everyone.trust_domains. If it is zero, an everyone without trust_domains is an
	// error.
	TrustDomain spiffeid.TrustDomain
}

// Load reads, checks and compiles the policy at paths, each a file or a directory. The
// error is an error of Read, ErrEmpty, or a [strictyaml.Errors] with all errors of all
// files.
func Load(opts Options, paths ...string) (*allowlist.Policy, error) {
	files, err := Read(paths...)
	if err != nil {
		return nil, err
	}
	return files.policy(opts)
}

// Parse checks and compiles a policy from the bytes of its files by name. The policy has
// the meaning of the same files in a directory, and the names may have any suffix. Errors
// contain the names as paths. All files together may have 64 MiB. The errors are those of
// Load.
func Parse(opts Options, data map[string][]byte) (*allowlist.Policy, error) {
	files, err := filesOf(data)
	if err != nil {
		return nil, err
	}
	return files.policy(opts)
}

// policy checks and compiles all files.
func (f *Files) policy(opts Options) (*allowlist.Policy, error) {
	spec, err := f.Spec(opts)
	if err != nil {
		return nil, err
	}
	return compile(spec)
}

func compile(spec allowlist.Spec) (*allowlist.Policy, error) {
	policy, err := allowlist.Compile(spec)
	if err != nil {
		return nil, fmt.Errorf("compiling policy: %w", err)
	}
	return policy, nil
}
