package enforce

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/e2e/site"
	"github.com/exeat-dev/exeat/identity/authority"
)

// Names and sizes of the site. Every identity may reach every destination, so that the
// policy has 1,000 rules.
const (
	trustDomain  = "enforce.example"
	recordName   = "records.jsonl"
	identities   = 100
	destinations = 10
	// The last identities have SVIDs of the authority that leaves the bundle.
	leaving = 10
	// Destinations whose tunnels end: one leaves the policy, and the rules of one expire.
	// See also aliased.
	removed = 9
	expired = 8
	// Number of probes, through tunnels that survive every scenario.
	probes = 10
)

// world is everything that runs.
type world struct {
	*site.Site

	gone    *authority.Authority // the authority that leaves the bundle; the site's authority stays
	port    string               // port of the origin
	names   *site.Names          // the name server that knows the alias
	callers []pair
	records *recordFile

	gateway        *site.Process
	holder, prober *role
}

// newWorld starts everything. If it returns an error, everything is ended.
func newWorld(ctx context.Context, exeat string) (*world, error) {
	s, err := site.New(trustDomain)
	if err != nil {
		return nil, err
	}
	s.Exeat = exeat
	w := &world{Site: s, records: &recordFile{path: s.Path(recordName)}}
	if err := w.build(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *world) build(ctx context.Context) error {
	if err := w.Build(ctx); err != nil {
		return err
	}
	if err := w.mint(); err != nil {
		return err
	}
	origin, err := w.start(ctx, originRole)
	if err != nil {
		return err
	}
	first, err := origin.hear()
	if err != nil {
		return err
	}
	w.port = first.Address[strings.LastIndexByte(first.Address, ':')+1:]
	if w.names, err = w.Names(edges); err != nil {
		return err
	}
	if err := w.Write("policy.yaml", w.policy(everything)); err != nil {
		return err
	}
	if w.gateway, err = w.Serve(ctx, "exeat.yaml", config(w.resolver()), 1); err != nil {
		return err
	}
	return w.startCallers(ctx, w.gateway.Addresses[0])
}

// warnings prints the warnings and errors in the gateway's log.
func (w *world) warnings(out io.Writer) {
	for line := range strings.Lines(w.gateway.Stderr.String()) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") {
			_, _ = io.WriteString(out, "exeat: "+line)
		}
	}
}

func (w *world) startCallers(ctx context.Context, gateway string) error {
	for _, r := range []**role{&w.holder, &w.prober} {
		started, err := w.start(ctx, holderRole)
		if err != nil {
			return err
		}
		*r = started
		if _, err := started.do(command{Setup: &setup{Gateway: gateway, Roots: w.Authority.Bundle(), Callers: w.callers}}); err != nil {
			return err
		}
	}
	return nil
}

// mint makes the second authority of the trust domain and the SVIDs of all callers, and
// lets the gateway trust both authorities.
func (w *world) mint() (err error) {
	if w.gone, err = authority.New(authority.Config{TrustDomain: w.Authority.TrustDomain()}); err != nil {
		return err
	}
	for i := range identities {
		issuer := w.Authority
		if i >= identities-leaving {
			issuer = w.gone
		}
		svid, err := issuer.Mint(authority.Options{ID: spiffeid.RequireFromString(callerID(i)), Lifetime: authority.DefaultCALifetime / 2})
		if err != nil {
			return err
		}
		w.callers = append(w.callers, pair{svid.Certificate, svid.Key})
	}
	return w.Write("gateway/bundle.pem", w.bundle(true))
}

func (w *world) bundle(both bool) string {
	all := w.Authority.Bundle()
	if both {
		all = append(all, w.gone.Bundle()...)
	}
	return string(all)
}

func callerID(i int) string { return fmt.Sprintf("spiffe://%s/ns/load/sa/worker-%02d", trustDomain, i) }

func host(destination int) string { return fmt.Sprintf("dest-%d.%s", destination, trustDomain) }

func config(resolver string) string {
	var hosts strings.Builder
	for d := range destinations {
		if d != aliased {
			fmt.Fprintf(&hosts, "    %s: 127.0.0.1\n", host(d))
		}
	}
	return fmt.Sprintf(`version: 1
identity: {dir: gateway}
policy: {files: policy.yaml}
listeners:
  - {name: enforce, address: "127.0.0.1:0", identity: mtls}
resolver:
%s  hosts:
%srecords: {file: %s}
timeouts: {drain_delay: 0s, drain_timeout: 0s}
limits: {connections_per_source: 100000, handshakes_per_source: 100000, requests_per_identity: 100000, tunnels: 100000, connects_per_second: 100000}
`, resolver, hosts.String(), recordName)
}

// everything returns every rule unchanged.
func everything(_ int, rule string) string { return rule }

// policy returns a policy with a rule for every identity and destination. change returns
// the rule of a destination, or "" for none.
func (w *world) policy(change func(destination int, rule string) string) string {
	var b strings.Builder
	b.WriteString("version: 1\nidentities:\n")
	for i := range identities {
		fmt.Fprintf(&b, "  - id: %s\n    allow:\n", callerID(i))
		for d := range destinations {
			rule := fmt.Sprintf("host: %s, ports: [%s], addresses: 127.0.0.1/32", host(d), w.port)
			if rule = change(d, rule); rule != "" {
				fmt.Fprintf(&b, "      - {%s}\n", rule)
			}
		}
	}
	return b.String()
}
