package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// checkFlags holds the flags of policy check.
type checkFlags struct {
	output, trustDomain  string
	policies             []string
	identity, dest, with string
	qtype                string
	method, path         string
	upgrade              bool
}

func newPolicyCheck() *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check --identity ID --dest HOST:PORT|NAME [--method METHOD] [--path PATH] [--upgrade] [--type TYPE]",
		Short: "Print what a policy decides about a request",
		Long: `Decide a request as the gateway does: a CONNECT; with --method, --path or
--upgrade a plain http:// request; with --type a DNS query. For an allowed request
the command prints the rule. For a denied one it prints the reason and, if a new
rule would allow it, a rule for this request and nothing more. The command looks
no name up: only the gateway checks resolved addresses.

Exit codes: 0 allowed or observed, 1 denied, 2 wrong use or a broken policy. A
query for a special name such as host.local is 1 even where the policy observes,
because the gateway does not look it up.`,
		Example: "  exeat policy check --policy policy.yaml --identity spiffe://prod.example/ns/ci/sa/builder --dest github.com:443\n" +
			"  exeat policy check --identity spiffe://prod.example/ns/ci/sa/builder --dest mirror.example:80 --method GET --path /debian/dists\n" +
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
	cmd.Flags().StringVar(&f.method, "method", "", "decide a plain request with this `method`; default GET with --path or --upgrade")
	cmd.Flags().StringVar(&f.path, "path", "", "decide a plain request for this `path`; default /; * stands for the server itself, for OPTIONS")
	cmd.Flags().BoolVar(&f.upgrade, "upgrade", false, "decide a plain request that fails without its upgrade, such as a WebSocket")
	cmd.Flags().StringVar(&f.qtype, "type", "", "decide a DNS query of this `type`, such as A")
	cmd.Flags().StringVar(&f.with, "with", "x509-svid", "`how` the caller shows its identity: x509-svid, listener or source-map")
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
	policy, err := loadPolicy(opts, f.policies, "--policy names the files")
	if err != nil {
		return err
	}
	a := q.ask(policy)
	if err := f.print(w, &a, q.text, policy.Version()); err != nil {
		return err
	}
	if !a.allowed {
		return errAnswerNo
	}
	return nil
}

// question is the request that policy check decides: one for a destination, or a DNS
// query if it has a type.
type question struct {
	allowlist.Request

	qtype allowlist.QueryType
	text  string // the request as text
}

func (f *checkFlags) question() (q question, err error) {
	q.Time = time.Now()
	if q.ID, err = spiffeid.FromString(f.identity); err != nil {
		return q, fmt.Errorf("--identity %s: %w: write spiffe://TRUST.DOMAIN/PATH", f.identity, err)
	}
	var ok bool
	if q.Proof, ok = allowlist.ParseProof(f.with); !ok {
		return q, fmt.Errorf("--with %s: write x509-svid, listener or source-map", f.with)
	}
	plain := f.method != "" || f.path != "" || f.upgrade
	switch {
	case f.qtype != "" && plain:
		return q, errors.New("--type asks for a DNS query, which has no method, path or upgrade: remove one of them")
	case f.qtype != "":
		err = f.name(&q)
		return q, err
	}
	if q.Dest, err = allowlist.ParseDestination(f.dest); err != nil {
		return q, fmt.Errorf("--dest %s: %w: write one such as api.example:443", f.dest, err)
	}
	q.text = q.Dest.String()
	if plain {
		err = f.plain(&q)
	}
	return q, err
}

// name makes the request a DNS query.
func (f *checkFlags) name(q *question) (err error) {
	if q.Dest.Host, err = allowlist.ParseHost(f.dest); err != nil || q.Dest.Host.IsAddr() {
		return fmt.Errorf("--dest %s: %w: with --type write a name without a port", f.dest, allowlist.ErrHost)
	}
	var ok bool
	if q.qtype, ok = allowlist.ParseQueryType(f.qtype); !ok {
		return fmt.Errorf("--type %s: no rule allows it: write one such as A, AAAA or TXT", f.qtype)
	}
	q.text = q.qtype.String() + " of " + q.Dest.Host.String()
	return nil
}

// plain makes the request a plain one, parsed as the gateway does.
func (f *checkFlags) plain(q *question) error {
	q.Method = cmp.Or(f.method, http.MethodGet)
	if !allowlist.IsMethod(strings.ToUpper(q.Method)) || strings.EqualFold(q.Method, http.MethodConnect) {
		return fmt.Errorf("--method %s: write one such as GET; without --method, --path and --upgrade a CONNECT is asked for", q.Method)
	}
	path := cmp.Or(f.path, "/")
	q.Path = path
	if path != allowlist.Asterisk || q.Method != http.MethodOptions {
		url, err := allowlist.ParseURL("http://" + q.Dest.String() + path)
		if err != nil || url.Dest != q.Dest {
			return fmt.Errorf("--path %s: the gateway refuses it as malformed: write one such as /a/b, escaped as in a URL", path)
		}
		q.Path = url.Path
	}
	q.text = q.Method + " http://" + q.Dest.String() + strings.TrimPrefix(q.Path, allowlist.Asterisk)
	if f.upgrade {
		q.Upgrade = allowlist.MustUpgrade
		q.text += " with an upgrade"
	}
	return nil
}

// answered is the answer of a policy to a question.
type answered struct {
	decision allowlist.Decision // for a query only the fields that are printed are set
	allowed  bool               // false for a special name that is only observed
	remedy   allowlist.Remedy
}

// ask makes a policy decide the request.
func (q *question) ask(p *allowlist.Policy) answered {
	if q.qtype == 0 {
		d := p.Decide(q.Request)
		return answered{d, d.Allowed(), d.Remedy(max(d.Reason, d.WouldReason))} // one of the two is NoReason
	}
	name := p.DecideName(allowlist.NameRequest{ID: q.ID, Proof: q.Proof, Host: q.Dest.Host, Type: q.qtype, Time: q.Time})
	d := allowlist.Decision{Request: q.Request, Outcome: name.Outcome}
	return answered{d, name.Allowed(), name.Remedy(max(d.Reason, d.WouldReason))}
}

func (f *checkFlags) print(w io.Writer, a *answered, to, version string) error {
	d := &a.decision
	rule, at, line := "", "", refusal.RuleYAML(d.ID.String(), d.Mode, a.remedy.Rule)
	if d.Rule != nil {
		rule, at = d.Rule.Name(), d.Rule.Place()
	}
	if f.output == outputJSON {
		return json.NewEncoder(w).Encode(map[string]string{
			"verdict": d.Verdict.String(), "reason": d.Reason.String(), "would_reason": d.WouldReason.String(),
			"identity": d.ID.String(), "destination": to, "mode": d.Mode.String(),
			"rule": rule, "rule_at": at, "allowed_ports": d.AllowedPorts(), "owner": d.Owner, "policy": version,
			"allow_with": line, "note": a.remedy.Note,
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
	if line != "" {
		text += "\nTo allow it, the policy needs:\n\n" + strings.TrimSuffix(line, "\n")
	}
	if note := a.remedy.Note; note != "" {
		text += "\n" + note
	}
	if f.qtype == "" && d.OnlyPublic() {
		text += "\nIf " + d.Dest.Host.String() + " resolves to a private or other special address, the gateway refuses it as " +
			allowlist.ResolvedAddressDenied.String() + ": addresses in the rule open it."
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
