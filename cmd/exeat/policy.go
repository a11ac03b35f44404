package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

func newPolicy() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "policy",
		Short:   "Check policies",
		Example: "  exeat policy lint policy.yaml",
		RunE:    group,
	}
	cmd.AddCommand(newPolicyLint(), newPolicyCheck())
	return cmd
}

// defaultPolicy is the policy of a command without --policy.
const defaultPolicy = "policy.yaml"

func newPolicyLint() *cobra.Command {
	var output, trustDomain string
	cmd := &cobra.Command{
		Use:   "lint [FILE|DIRECTORY...]",
		Short: "Print the errors of a policy",
		Long: `Load a policy as the gateway does, and print every error with its place. Without
arguments the command loads policy.yaml.

Exit codes: 0 no error, 1 errors in the policy, 2 the policy cannot be read.`,
		Example: "  exeat policy lint policy.yaml\n  exeat policy lint --output json policies/",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{defaultPolicy}
			}
			opts, err := policyOptions(output, trustDomain)
			if err != nil {
				return err
			}
			return lint(visible{cmd.OutOrStdout()}, output, opts, args)
		},
	}
	addOutput(cmd, &output)
	addTrustDomain(cmd, &trustDomain)
	return cmd
}

func addTrustDomain(cmd *cobra.Command, trustDomain *string) {
	cmd.Flags().StringVar(trustDomain, "trust-domain", "",
		"the gateway's trust `domain`: an everyone entry without trust_domains covers its identities")
}

func policyOptions(output, trustDomain string) (policyfile.Options, error) {
	var opts policyfile.Options
	if err := checkOutput(output); err != nil {
		return opts, err
	}
	if trustDomain == "" {
		return opts, nil
	}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return opts, fmt.Errorf("--trust-domain %s: %w: write one such as prod.example", trustDomain, err)
	}
	opts.TrustDomain = td
	return opts, nil
}

// loadPolicy loads the policy at paths; named says, in the error, how a command names a
// policy.
func loadPolicy(opts policyfile.Options, paths []string, named string) (*allowlist.Policy, error) {
	policy, err := policyfile.Load(opts, paths...)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w (%s)", err, named)
	case errors.Is(err, policyfile.ErrEmpty):
		return nil, fmt.Errorf("%w in %s: write one whose name ends in .yaml (%s)", err, strings.Join(paths, " or "), named)
	}
	return policy, err
}

// finding is one error of a policy, in the form of --output json.
type finding struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
}

func lint(w io.Writer, output string, opts policyfile.Options, paths []string) error {
	policy, err := loadPolicy(opts, paths, "write the policy's files or directories behind exeat policy lint")
	var errs strictyaml.Errors
	if err != nil && !errors.As(err, &errs) {
		return err
	}
	if output == outputJSON {
		findings := make([]finding, 0, len(errs))
		for _, e := range errs {
			findings = append(findings, finding{e.File, e.Line, e.Column, e.Msg})
		}
		result := map[string]any{"errors": findings, "version": policy.Version(), "quarantine": policy.QuarantineVersion()}
		if err := json.NewEncoder(w).Encode(result); err != nil {
			return err
		}
	} else if err := printLint(w, policy, errs); err != nil {
		return err
	}
	if len(errs) > 0 {
		return errAnswerNo
	}
	return nil
}

func printLint(w io.Writer, policy *allowlist.Policy, errs strictyaml.Errors) error {
	if len(errs) > 0 {
		_, err := fmt.Fprintf(w, "%v\n", errs)
		return err
	}
	_, err := fmt.Fprintf(w, "%s: no errors\n", versions(policy.Version(), policy.QuarantineVersion()))
	return err
}

// versions returns the version of a policy, and that of the quarantine list if there is
// one.
func versions(policy, quarantine string) string {
	text := "policy " + policy
	if quarantine != "" {
		text += ", quarantine " + quarantine
	}
	return text
}
