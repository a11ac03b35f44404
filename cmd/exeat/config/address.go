package config

import (
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// address is HOST:PORT with a literal host, so that nothing depends on a name
// being looked up at start; port 0 asks for a free one.
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

// occupied is an address that a listener has in the configuration.
type occupied struct{ listener, address string }

// occupy takes an address for a listener, and refuses one that the system would not
// give to both that listener and another one.
func (p *parser) occupy(n *strictyaml.Node, listener, address string) {
	if n == nil || address == "" { // an error already
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

// exclude reports whether only one of two addresses can be listened on at a time.
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

// covers reports whether a listener at an address has another one, too: 0.0.0.0
// every one of IPv4, and [::] every one.
func covers(every, one netip.Addr) bool {
	return every.IsUnspecified() && (every.Is6() || one.Is4())
}

func samePath(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}
