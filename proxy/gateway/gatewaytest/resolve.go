package gatewaytest

import (
	"context"
	"net/netip"

	"github.com/exeat-dev/exeat/allowlist"
)

// Addresses makes a gateway's Resolve from a look-up that knows no aliases.
func Addresses(
	lookup func(context.Context, *allowlist.Decision) ([]netip.Addr, error),
) func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) {
	return func(ctx context.Context, d *allowlist.Decision) ([]allowlist.Resolved, error) {
		addrs, err := lookup(ctx, d)
		return On(allowlist.Way{}, addrs...), err
	}
}

// On returns addresses that a look-up reached on a way.
func On(way allowlist.Way, addrs ...netip.Addr) []allowlist.Resolved {
	all := make([]allowlist.Resolved, 0, len(addrs))
	for _, addr := range addrs {
		all = append(all, allowlist.Resolved{Addr: addr, Way: way})
	}
	return all
}
