package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity/authority"
)

func newAuthority() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "authority",
		Short: "A small SPIFFE authority for development and tests",
		Long: `A small SPIFFE authority for development and tests. In production use SPIRE or
another implementation: this authority keeps its CA key in a file.`,
		Example: "  exeat authority mint --id spiffe://dev.example/ns/ci/sa/builder --out builder",
		RunE:    group,
	}
	cmd.AddCommand(newAuthorityMint(), newAuthorityServe())
	return cmd
}

func newAuthorityMint() *cobra.Command {
	var (
		dir, id, out string
		output       string
		dns          []string
		lifetime     time.Duration
	)
	cmd := &cobra.Command{
		Use:   "mint --id SPIFFE-ID --out DIRECTORY",
		Short: "Mint an X.509-SVID into a directory",
		Long: `Mint an X.509-SVID, and write svid.pem, svid_key.pem and bundle.pem to the output
directory. The first use makes the authority's own key and keeps it in --dir. Only
the current user may read the keys; everybody may read certificates and bundles.

Clients such as curl, git and Node check the DNS name of an https:// proxy. Name
it with --dns in the SVID of a gateway.`,
		Example: "  exeat authority mint --id spiffe://dev.example/ns/ci/sa/builder --out builder\n" +
			"  exeat authority mint --id spiffe://dev.example/gateway --dns localhost --dns 127.0.0.1 --out gateway",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			spiffeID, err := spiffeid.FromString(id)
			if err != nil {
				return fmt.Errorf("--id %s: %w: write spiffe://TRUST.DOMAIN/PATH", id, err)
			}
			a, err := authority.Open(dir, spiffeID.TrustDomain())
			if err != nil {
				return err
			}
			svid, err := a.Mint(authority.Options{ID: spiffeID, DNS: dns, Lifetime: lifetime})
			if err != nil {
				return err
			}
			if err := svid.WriteDir(out, a.Bundle()); err != nil {
				return err
			}
			until := svid.NotAfter.UTC().Format(time.RFC3339)
			if output == outputJSON {
				return json.NewEncoder(visible{cmd.OutOrStdout()}).Encode(map[string]string{
					"id": svid.ID.String(), "directory": out, "valid_until": until,
				})
			}
			_, err = fmt.Fprintf(visible{cmd.OutOrStdout()}, "%s in %s, valid until %s\n", svid.ID, out, until)
			return err
		},
	}
	addOutput(cmd, &output)
	cmd.Flags().StringVar(&dir, "dir", "authority", "`directory` of the authority's key and certificate; the first use makes it")
	cmd.Flags().StringVar(&id, "id", "", "the SPIFFE `ID` to mint (required)")
	cmd.Flags().StringVar(&out, "out", "", "`directory` to write to (required)")
	cmd.Flags().StringSliceVar(&dns, "dns", nil, "DNS `name` or IP address to add; may be repeated")
	cmd.Flags().DurationVar(&lifetime, "lifetime", authority.DefaultLifetime, "how long the SVID is valid")
	require(cmd, "id", "out")
	return cmd
}
