package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// checkGateway reads what a start reads and opens nothing, so it may run beside
// the gateway that serves. It prints what would come into force.
func checkGateway(ctx context.Context, cfg config.Config, path string, w io.Writer, log *slog.Logger) error {
	g := &gateway{cfg: cfg, log: log}
	defer func() {
		if g.identity != nil {
			g.identity.close()
		}
	}()
	if err := g.read(ctx, os.Getenv); err != nil {
		return err
	}
	for _, lc := range cfg.Listeners {
		if err := g.identify(&listen.Config{}, lc); err != nil {
			return fmt.Errorf("listener %s: %w", lc.Name, err)
		}
	}
	resolver, err := resolve.New(cfg.Resolver)
	if err != nil {
		return err
	}
	resolver.Close()
	policy := "no policy yet"
	if g.policy.policy != nil {
		policy = "policy " + g.policy.policy.Version()
		for _, warning := range g.strangers() {
			if _, err := fmt.Fprintf(w, "%s: warning: %s\n", path, warning); err != nil {
				return err
			}
		}
	}
	_, err = fmt.Fprintf(w, "%s: no errors, %s\n", path, policy)
	return err
}

// strangers says of which identities, named by listeners, the policy would
// refuse whatever they ask for. Quarantine is no mistake.
func (g *gateway) strangers() (warnings []string) {
	for _, lc := range g.cfg.Listeners {
		ids, source := g.namedBy(lc)
		for _, id := range ids {
			switch g.policy.policy.Knows(id, source) { //nolint:exhaustive // the others are no mistakes of the configuration
			case allowlist.IdentityUnknown:
				warnings = append(warnings, fmt.Sprintf("listener %s: no entry of the policy matches %s, so whatever it asks for is refused as %s", lc.Name, id, allowlist.IdentityUnknown))
			case allowlist.IdentitySourceNotAccepted:
				warnings = append(warnings, fmt.Sprintf("listener %s: no entry of %s accepts %s, so whatever it asks for is refused as %s", lc.Name, id, source, allowlist.IdentitySourceNotAccepted))
			}
		}
	}
	return warnings
}

// namedBy returns the identities that a listener gives its callers, in order,
// and how these are recorded as proved; none for a listener that asks for
// certificates.
func (g *gateway) namedBy(lc config.Listener) ([]spiffeid.ID, allowlist.Source) {
	switch lc.Identity {
	case config.Self:
		return []spiffeid.ID{g.identity.source.Snapshot().ID()}, allowlist.SourceListener
	case config.Fixed:
		return []spiffeid.ID{lc.ID}, allowlist.SourceListener
	case config.SourceMap:
		ids := slices.Collect(maps.Values(lc.Sources))
		slices.SortFunc(ids, func(a, b spiffeid.ID) int { return strings.Compare(a.String(), b.String()) })
		return slices.Compact(ids), allowlist.SourceMap
	case config.MTLS:
	}
	return nil, allowlist.SourceNone
}
