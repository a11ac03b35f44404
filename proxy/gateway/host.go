package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/live"
)

// addressesEvery is the time between two readings of the host's addresses, which may
// change while the gateway runs.
const addressesEvery = 5 * time.Second

// host keeps the addresses of this host up to date in the classifier.
type host struct {
	cfg       *Config
	listeners []netip.AddrPort // addresses of all listeners
	known     []netip.Addr     // addresses of the host, sorted; nil before the first reading
}

// refresh reads the host's addresses. If they have changed, it applies a classifier
// that knows the new ones. It is not for concurrent use.
func (h *host) refresh(ctx context.Context, apply func(context.Context, live.Change)) error {
	now, err := h.cfg.HostAddresses()
	if err != nil {
		return err
	}
	now = slices.SortedFunc(slices.Values(now), netip.Addr.Compare)
	if h.known != nil && slices.Equal(now, h.known) {
		return nil
	}
	if h.known != nil {
		h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "the addresses of this host have changed", slog.Int("addresses", len(now)))
	}
	h.known = append([]netip.Addr{}, now...)
	apply(ctx, live.Change{Classifier: allowlist.NewClassifier(allowlist.Local{
		NAT64: h.cfg.NAT64, Listeners: h.listeners, Addresses: now,
	})})
	return nil
}

// follow calls refresh until ctx is done, so that tunnels to an address that the host was
// given later are denied or ended.
func (h *host) follow(ctx context.Context, apply func(context.Context, live.Change)) {
	ticker := time.NewTicker(addressesEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := h.refresh(ctx, apply); err != nil {
			h.cfg.Log.LogAttrs(ctx, slog.LevelError, "the addresses of this host are unknown, the last ones count", slog.Any("error", err))
		}
	}
}
