package e2e

import (
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// TestUnspecifiedListenerIsReachedAtEveryAddress checks that each listener at 0.0.0.0 is
// reached at every IPv4 address of the host, and each listener at [::] at every address.
func TestUnspecifiedListenerIsReachedAtEveryAddress(t *testing.T) {
	if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		missing.Skip(t, "there is no IPv6 loopback: "+err.Error())
	} else {
		_ = l.Close()
	}
	s := newSite(t, 443)
	for _, row := range []struct {
		host     string
		shown    string // the address that the listener logs
		overIPv6 bool
	}{
		{"0.0.0.0", "0.0.0.0", false},
		{"[::ffff:0.0.0.0]", "0.0.0.0", false},
		{"[::]", "::", true},
	} {
		t.Run(row.host, func(t *testing.T) {
			write(t, s.dir, map[string]string{"exeat.yaml": `version: 1
identity: {certificate: gateway.pem, key: gateway_key.pem, bundle: ca.pem}
policy: policy.yaml
listeners:
  - {name: mtls, address: "` + row.host + `:0"}
  - {name: dot, address: "` + row.host + `:0", protocol: dot}
  - {name: doh, address: "` + row.host + `:0", protocol: doh}
admin: {address: "` + row.host + `:0"}
timeouts: {drain_delay: 0s}
`})
			p := start(t, s.dir, "serve")
			for _, name := range []string{"mtls", "dot", "doh", "admin"} {
				at := p.listening(t, name)
				if got := at.Addr().String(); got != row.shown {
					t.Errorf("%s listens on %s, want %s", name, got, row.shown)
				}
				for _, try := range []struct {
					addr string
					want bool
				}{{"127.0.0.1", true}, {"::1", row.overIPv6}} {
					conn, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(try.addr), at.Port()).String())
					if err == nil {
						_ = conn.Close()
					}
					if (err == nil) != try.want {
						t.Errorf("%s at %s: reached over %s: %v, want %v", name, row.host, try.addr, err == nil, try.want)
					}
				}
			}
			p.signal(t, syscall.SIGTERM)
			if code := p.exit(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// TestDNSOverUDPNeedsASpecificAddress checks that a listener for DNS over UDP needs an
// address, because an answer has to come from the address to which the question was sent.
func TestDNSOverUDPNeedsASpecificAddress(t *testing.T) {
	s := newSite(t, 443)
	for _, host := range []string{"0.0.0.0", "[::]", "[::ffff:0.0.0.0]"} {
		write(t, s.dir, map[string]string{"exeat.yaml": strings.Replace(siteConfig, "listeners:\n",
			"listeners:\n  - {name: names, address: \""+host+":0\", protocol: dns, identity: source-map, sources: {127.0.0.0/8: \""+builder+"\"}}\n", 1)})
		_, stderr, code := run(t, s.dir, exeat, "serve", "--check")
		if code != 2 || !strings.Contains(stderr, "an answer has to come from the address that was asked") {
			t.Errorf("%s: exit code %d, %s", host, code, stderr)
		}
	}
}
