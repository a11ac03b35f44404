package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/identity/authority/workloadapi"
)

// authorityServeFlags holds the flags of authority serve.
type authorityServeFlags struct {
	dir, socket string
	ids, dns    []string
	federated   map[string]string
	lifetime    time.Duration
}

func newAuthorityServe() *cobra.Command {
	var f authorityServeFlags
	cmd := &cobra.Command{
		Use:   "serve --socket PATH --id SPIFFE-ID...",
		Short: "Serve the SPIFFE Workload API",
		Long: `Serve the SPIFFE Workload API on a unix socket until SIGINT or SIGTERM. Every
client of the socket gets the X.509-SVIDs of all the given identities; the first
identity is the default. The command renews each SVID at half of its lifetime.
For development and tests.`,
		Example: "  exeat authority serve --socket /tmp/agent.sock --id spiffe://dev.example/gateway --dns localhost\n" +
			"  exeat authority serve --socket /tmp/agent.sock --id spiffe://dev.example/w --federate other.example=other.pem",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	cmd.Flags().StringVar(&f.dir, "dir", "authority", "`directory` of the authority's key and certificate; the first use makes it")
	cmd.Flags().StringVar(&f.socket, "socket", "", "`path` of the unix socket (required)")
	cmd.Flags().StringSliceVar(&f.ids, "id", nil, "a SPIFFE `ID` to serve; may be repeated (required)")
	cmd.Flags().StringSliceVar(&f.dns, "dns", nil, "DNS `name` or IP address to add; may be repeated")
	cmd.Flags().StringToStringVar(&f.federated, "federate", nil, "`DOMAIN=FILE`: another trust domain and the PEM file of its authorities; may be repeated")
	cmd.Flags().DurationVar(&f.lifetime, "lifetime", authority.DefaultLifetime, "how long an SVID is valid; it is renewed at half of that time")
	require(cmd, "id", "socket")
	return cmd
}

func (f *authorityServeFlags) run(cmd *cobra.Command) error {
	var svids []authority.Options
	for _, text := range f.ids {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return fmt.Errorf("--id %s: %w: write spiffe://TRUST.DOMAIN/PATH", text, err)
		}
		svids = append(svids, authority.Options{ID: id, DNS: f.dns, Lifetime: f.lifetime})
	}
	a, err := authority.Open(f.dir, svids[0].ID.TrustDomain())
	if err != nil {
		return err
	}
	federated, err := f.bundles()
	if err != nil {
		return err
	}
	server, err := workloadapi.New(workloadapi.Config{Authority: a, SVIDs: svids, Federated: federated})
	if err != nil {
		return err
	}
	ignoreBrokenPipes()
	l, err := workloadapi.Listen(cmd.Context(), f.socket)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(visible{bestEffort{cmd.OutOrStdout()}}, "serving the Workload API of %s on unix://%s\n", a.TrustDomain(), f.socket); err != nil {
		return errors.Join(err, l.Close())
	}
	err = server.Serve(cmd.Context(), l)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// bundles reads the authorities of the federated trust domains.
func (f *authorityServeFlags) bundles() ([]*x509bundle.Bundle, error) {
	var bundles []*x509bundle.Bundle
	for name, path := range f.federated {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("--federate %s=%s: %w", name, path, err)
		}
		pem, err := os.ReadFile(path) //nolint:gosec // G304: the operator chose the path
		if err != nil {
			return nil, fmt.Errorf("--federate %s: %w", name, err)
		}
		bundle, err := x509bundle.Parse(td, pem)
		if err != nil {
			return nil, fmt.Errorf("--federate %s=%s: %w", name, path, err)
		}
		if bundle.Empty() {
			return nil, fmt.Errorf("--federate %s=%s: there is no certificate in the file: write the PEM file of the domain's authorities", name, path)
		}
		bundles = append(bundles, bundle)
	}
	return bundles, nil
}
