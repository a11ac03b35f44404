package main

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

// lookAtAddresses is the time between looks at the host's addresses. One that
// appears later is as much its own as one that was there at the start.
const lookAtAddresses = 5 * time.Second

// local is what the address check must know of this host.
func (g *gateway) local() (allowlist.Local, error) {
	local := allowlist.Local{NAT64: g.cfg.NAT64}
	for _, u := range g.datagrams {
		local.Listeners = append(local.Listeners, u.Addr())
	}
	for _, l := range g.listeners {
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			local.Listeners = append(local.Listeners, tcp.AddrPort())
		}
	}
	if g.admin != nil {
		if tcp, ok := g.admin.Addr().(*net.TCPAddr); ok {
			local.Listeners = append(local.Listeners, tcp.AddrPort())
		}
	}
	var err error
	if local.Addresses, err = config.HostAddresses(); err != nil {
		return local, err
	}
	slices.SortFunc(local.Addresses, netip.Addr.Compare)
	return local, nil
}

// followAddresses puts the policy in force again when the host's addresses have
// changed, so that no tunnel reaches one that is new.
func (g *gateway) followAddresses(ctx context.Context) {
	ticker := time.NewTicker(lookAtAddresses)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			g.lookAtAddresses(ctx)
		}
	}
}

// lookAtAddresses belongs to the goroutine of followAddresses.
func (g *gateway) lookAtAddresses(ctx context.Context) {
	local, err := g.local()
	if err != nil {
		g.log.LogAttrs(ctx, slog.LevelError, "the addresses of this host are unknown, the last ones count", slog.Any("error", err))
		return
	}
	if slices.Equal(local.Addresses, g.addresses) {
		return
	}
	g.addresses = local.Addresses
	g.log.LogAttrs(ctx, slog.LevelInfo, "the addresses of this host have changed", slog.Int("addresses", len(local.Addresses)))
	g.policy.classifier.Store(allowlist.NewClassifier(local))
	g.policyWatcher.Trigger()
}
