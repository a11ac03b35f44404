// Package policyfile reads policies: YAML files in, an [allowlist.Spec] or an
// [allowlist.Policy] out, and every error with its file, line and column and
// with what to write instead.
//
// [Load] does it in one call, and [Parse] for a policy that is at hand and in no
// file. A program that reloads takes the steps one by one: [Read] takes the bytes
// of one moment, [Files.Digest] tells whether they changed, [Files.Spec] checks
// them and [allowlist.Compile] puts them in force; [Files.Quarantine] reads
// quarantine.yaml by itself, so that an error elsewhere does not hold a quarantine
// back.
//
// It refuses rather than guesses: unknown keys, empty lists, a setting that two
// files set, a rule that can never do anything. Settings that this version does
// not enforce yet are errors too. It knows no defaults (package allowlist has
// them), judges no style (package review does) and keeps nothing between calls.
package policyfile

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// ErrEmpty is the error of Load and Spec for a directory without policy files.
// A gateway may start so: it denies everything and is not ready.
var ErrEmpty = errors.New("the policy has no files")

// Options is what a policy means beside its text.
type Options struct {
	// TrustDomain is the gateway's own, the default of everyone.trust_domains.
	// Zero: an everyone without trust_domains is an error.
	TrustDomain spiffeid.TrustDomain
}

// Load reads, checks and compiles the policy at paths, each a file or a
// directory. The error is that of Read, ErrEmpty, or a [strictyaml.Errors]
// with all errors of all files.
func Load(opts Options, paths ...string) (*allowlist.Policy, error) {
	files, err := Read(paths...)
	if err != nil {
		return nil, err
	}
	return files.policy(opts)
}

// Parse checks and compiles a policy of which the bytes of each file are given by
// the file's name. It means what the same files in a directory mean, whatever the
// names end in; errors say the names for the files. All
// files together may have 64 MiB. The error is as that of Load.
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
