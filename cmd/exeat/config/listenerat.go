package config

import (
	"fmt"
	"iter"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
)

// adminListener is the name of the admin listener in messages.
const adminListener = "admin"

// ListenerAt returns the name of the listener that has an address, or "" if there is none. A
// listener on an unspecified address has every address of this host. One with port 0 is
// not found.
func (c *Config) ListenerAt(at netip.AddrPort) string {
	at = netip.AddrPortFrom(at.Addr().WithZone(""), at.Port())
	for name, address := range c.addresses() {
		listener, err := netip.ParseAddrPort(address)
		if err != nil || listener.Port() == 0 || listener.Port() != at.Port() {
			continue
		}
		every := listener.Addr().Unmap().IsUnspecified()
		if every && listener.Addr().Unmap().Is4() && at.Addr().Unmap().Is6() && !at.Addr().IsUnspecified() {
			continue // that listener is for IPv4 only
		}
		local := allowlist.Local{Listeners: []netip.AddrPort{listener}}
		if every {
			local.Addresses, _ = HostAddresses() // after an error the listener's own address still counts
		}
		if allowlist.NewClassifier(local).IsListener(at) {
			return name
		}
	}
	return ""
}

// ListenerOnSocket returns the name of the listener that is a unix socket at a path, or "" if
// there is none.
func (c *Config) ListenerOnSocket(path string) string {
	wanted, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	for name, address := range c.addresses() {
		own, isUnix := strings.CutPrefix(address, "unix:")
		if own, err := filepath.Abs(own); isUnix && err == nil && own == wanted {
			return name
		}
	}
	return ""
}

// HasListenerPort reports whether a listener has a port, at any address.
func (c *Config) HasListenerPort(port uint16) bool {
	for _, address := range c.addresses() {
		if at, err := netip.ParseAddrPort(address); err == nil && port != 0 && at.Port() == port {
			return true
		}
	}
	return false
}

// addresses yields the name and address of every listener.
func (c *Config) addresses() iter.Seq2[string, string] {
	return func(yield func(name, address string) bool) {
		for _, l := range c.Listeners {
			if !yield(l.Name, l.Address) {
				return
			}
		}
		yield(adminListener, c.Gateway.Admin.Address)
	}
}

// HostAddresses returns the addresses of this host.
func HostAddresses() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the addresses of this host: %w", err)
	}
	var all []netip.Addr
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, prefix.Addr())
		}
	}
	return all, nil
}
