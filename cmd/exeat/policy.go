package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

func newPolicy() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "policy",
		Short:   "Look at policies",
		Example: "  exeat policy lint policy.yaml",
		RunE:    group,
	}
	cmd.AddCommand(newPolicyLint(), newPolicyCheck())
	return cmd
}

// defaultPolicy is the policy of a command that names none.
const defaultPolicy = "policy.yaml"

func newPolicyLint() *cobra.Command {
	var output, trustDomain string
	cmd := &cobra.Command{
		Use:   "lint [FILE|DIRECTORY...]",
		Short: "Say what is wrong with a policy",
		Long: `Load a policy (policy.yaml if none is named) as the gateway would and print
every error with its place.

Exit codes: 0 no error, 1 errors in the policy, 2 it cannot be read.`,
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
		"the gateway's trust `domain`, which an everyone without trust_domains is about")
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
		return opts, fmt.Errorf("--trust-domain: %w", err)
	}
	opts.TrustDomain = td
	return opts, nil
}

// finding is one error of a policy, as --output json prints it.
type finding struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
}

func lint(w io.Writer, output string, opts policyfile.Options, paths []string) error {
	policy, err := policyfile.Load(opts, paths...)
	var errs strictyaml.Errors
	if err != nil && !errors.As(err, &errs) {
		return err
	}
	if output == outputJSON {
		findings := make([]finding, 0, len(errs))
		for _, e := range errs {
			findings = append(findings, finding{e.File, e.Line, e.Column, e.Msg})
		}
		result := map[string]any{"errors": findings, "version": policy.Version()}
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
	_, err := fmt.Fprintf(w, "policy %s: no errors\n", policy.Version())
	return err
}

// checkFlags are the flags of policy check.
type checkFlags struct {
	output, trustDomain  string
	policies             []string
	identity, dest, with string
	qtype                string
}

func newPolicyCheck() *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check --identity ID --dest HOST:PORT|NAME [--type TYPE]",
		Short: "Say what a policy decides",
		Long: `Decide as the gateway would for a CONNECT or, with --type, for a DNS query,
without a lookup, and say by which rule, or why not and what would allow it.
Resolved addresses are checked only by the gateway.

Exit codes: 0 allowed or observed, 1 denied, 2 wrong use or a broken policy. A
special name such as host.local is not looked up, observed or not: 1.`,
		Example: "  exeat policy check --policy policy.yaml --identity spiffe://prod.example/ns/ci/sa/builder --dest github.com:443\n" +
			"  exeat policy check --identity spiffe://prod.example/ns/ci/sa/builder --dest github.com --type A",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(visible{cmd.OutOrStdout()})
		},
	}
	addOutput(cmd, &f.output)
	addTrustDomain(cmd, &f.trustDomain)
	cmd.Flags().StringSliceVarP(&f.policies, "policy", "p", []string{defaultPolicy}, "policy `files` or directories")
	cmd.Flags().StringVar(&f.identity, "identity", "", "the caller's SPIFFE `ID` (required)")
	cmd.Flags().StringVar(&f.dest, "dest", "", "the destination, `HOST:PORT`, or a name with --type (required)")
	cmd.Flags().StringVar(&f.qtype, "type", "", "ask whether the name may be resolved, for this query `type` such as A")
	cmd.Flags().StringVar(&f.with, "with", "x509-svid", "`how` the caller proves its identity: x509-svid, listener or source-map")
	require(cmd, "identity", "dest")
	return cmd
}

func (f *checkFlags) run(w io.Writer) error {
	opts, err := policyOptions(f.output, f.trustDomain)
	if err != nil {
		return err
	}
	q, err := f.question()
	if err != nil {
		return err
	}
	if opts.TrustDomain.IsZero() {
		opts.TrustDomain = q.ID.TrustDomain()
	}
	policy, err := policyfile.Load(opts, f.policies...)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (--policy names the files)", err)
	}
	if err != nil {
		return err
	}
	d, allowed := q.decide(policy)
	if err := f.print(w, d, q.text, policy.Version()); err != nil {
		return err
	}
	if !allowed {
		return errAnswerNo
	}
	return nil
}

// question is what policy check asks: for a destination, or for a name if it
// has a type.
type question struct {
	allowlist.Request

	qtype allowlist.QueryType
	text  string // what for
}

func (f *checkFlags) question() (q question, err error) {
	q.Time = time.Now()
	if q.ID, err = spiffeid.FromString(f.identity); err != nil {
		return q, fmt.Errorf("--identity %s: %w: write spiffe://TRUST.DOMAIN/PATH", f.identity, err)
	}
	var ok bool
	if q.Source, ok = allowlist.ParseSource(f.with); !ok {
		return q, fmt.Errorf("--with %s: write x509-svid, listener or source-map", f.with)
	}
	if f.qtype == "" {
		if q.Dest, err = allowlist.ParseDestination(f.dest); err != nil {
			return q, fmt.Errorf("--dest %s: %w: write one such as api.example:443", f.dest, err)
		}
		q.text = q.Dest.String()
		return q, nil
	}
	if q.Dest.Host, err = allowlist.ParseHost(f.dest); err != nil || q.Dest.Host.IsAddr() {
		return q, fmt.Errorf("--dest %s: %w: with --type write a name without a port", f.dest, allowlist.ErrHost)
	}
	if q.qtype, ok = allowlist.ParseQueryType(f.qtype); !ok {
		return q, fmt.Errorf("--type %s: no rule allows it: write one such as A, AAAA or TXT", f.qtype)
	}
	q.text = q.qtype.String() + " of " + q.Dest.Host.String()
	return q, nil
}

// decide asks a policy. Of a decision about a name it returns what is printed;
// that a special name is observed does not allow it.
func (q *question) decide(p *allowlist.Policy) (d allowlist.Decision, allowed bool) {
	if q.qtype == 0 {
		d = p.Decide(q.Request)
		return d, d.Allowed()
	}
	name := p.DecideName(allowlist.NameRequest{ID: q.ID, Source: q.Source, Host: q.Dest.Host, Type: q.qtype, Time: q.Time})
	return allowlist.Decision{
		Request: q.Request, Verdict: name.Verdict, Reason: name.Reason, WouldReason: name.WouldReason,
		Mode: name.Mode, Rule: name.Rule, Owner: name.Owner,
	}, name.Allowed()
}

func (f *checkFlags) print(w io.Writer, d allowlist.Decision, to, version string) error {
	rule, at, remedy := "", "", ""
	if f.qtype == "" {
		remedy = refusal.Line(d.ID.String(), d.Remedy(max(d.Reason, d.WouldReason)).Rule) // one of them is none
	}
	if d.Rule != nil {
		rule, at = d.Rule.Name(), d.Rule.Place()
	}
	if f.output == outputJSON {
		return json.NewEncoder(w).Encode(map[string]string{
			"verdict": d.Verdict.String(), "reason": d.Reason.String(), "would_reason": d.WouldReason.String(),
			"identity": d.ID.String(), "destination": to, "mode": d.Mode.String(),
			"rule": rule, "rule_at": at, "allowed_ports": d.AllowedPorts(), "owner": d.Owner, "policy": version,
			"allow_with": remedy,
		})
	}
	text := d.Verdict.String()
	if d.Reason == allowlist.IdentitySourceNotAccepted {
		to += " with " + f.with
	}
	if reason := d.Reason.String() + d.WouldReason.String(); reason != "" {
		text += " (" + reason + ")"
	}
	text += ": " + d.ID.String() + " to " + to
	if rule != "" {
		text += ", rule " + rule + " at " + at
	}
	if ports := d.AllowedPorts(); ports != "" {
		text += ", allowed ports " + ports
	}
	if d.Owner != "" {
		text += ", owner " + d.Owner
	}
	if remedy != "" {
		text += "\nTo allow it, the policy needs:\n\n" + strings.TrimSuffix(remedy, "\n")
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
