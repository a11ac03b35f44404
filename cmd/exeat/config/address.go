package config

import (
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// address returns HOST:PORT with an IP address, so that no name must be looked up at
// start, or unix: with a path. Port 0 means a free port.
func (d directory) address(n *strictyaml.Node) string {
	text, ok := n.Text()
	if !ok {
		return ""
	}
	if path, unix := strings.CutPrefix(text, "unix:"); unix {
		if path == "" {
			n.Errorf("the path is missing: write unix:/path")
			return ""
		}
		if path = d.read(n, path); len(path) > listen.MaxPath {
			n.Errorf("the path %s has %d bytes, and that of a unix socket at most %d: choose a shorter one", path, len(path), listen.MaxPath)
			return ""
		}
		return "unix:" + path
	}
	if _, err := netip.ParseAddrPort(text); err != nil {
		n.Errorf("%q is no address: write an IP address and a port such as 127.0.0.1:8443, or unix:/path", text)
		return ""
	}
	return d.note(n, text)
}

// occupied is an address of a listener in the configuration.
type occupied struct{ listener, address string }

// occupy adds a listener's address, and refuses one that the system would not give to
// this listener beside another one.
func (p *parser) occupy(n *strictyaml.Node, listener, address string) {
	if n == nil || address == "" { // there is an error already
		return
	}
	for _, other := range p.occupied {
		if exclude(other.address, address) {
			n.Errorf("%s is taken by listener %s at %s: choose another address or port", address, other.listener, other.address)
			return
		}
	}
	p.occupied = append(p.occupied, occupied{listener, address})
}

// exclude reports whether two addresses cannot be listened on at the same time.
func exclude(a, b string) bool {
	pathA, unixA := strings.CutPrefix(a, "unix:")
	pathB, unixB := strings.CutPrefix(b, "unix:")
	if unixA || unixB {
		return unixA && unixB && samePath(pathA, pathB)
	}
	first, errA := netip.ParseAddrPort(a)
	second, errB := netip.ParseAddrPort(b)
	if errA != nil || errB != nil || first.Port() == 0 || first.Port() != second.Port() {
		return false
	}
	x, y := first.Addr().Unmap(), second.Addr().Unmap()
	return x == y || covers(x, y) || covers(y, x)
}

// covers reports whether a listener on the address every also listens on the address
// one: 0.0.0.0 covers every IPv4 address, and [::] every address.
func covers(every, one netip.Addr) bool {
	return every.IsUnspecified() && (every.Is6() || one.Is4())
}

func samePath(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}
