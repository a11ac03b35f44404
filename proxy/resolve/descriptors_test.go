package resolve

import (
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// TestMissingDescriptorIsNoFaultOfTheServers checks that a missing descriptor is not a
// fault of the servers: they stay well, the failure is not remembered, and expired answers
// are served.
func TestMissingDescriptorIsNoFaultOfTheServers(t *testing.T) {
	for name, protocol := range map[string]Protocol{"udp": UDP, "tcp": TCP} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, addresses("192.0.2.1"))
			descriptors := limit.NewDescriptors(1)
			r := newResolver(t, Config{Descriptors: descriptors, Servers: []Server{{Protocol: protocol, Addr: s.addr}}})
			check(t, lookup(t, r, "old.example", dns.TypeA), "192.0.2.1 from upstream")
			r.older(t, question(t, "old.example", dns.TypeA), time.Hour)
			s.hangUp()
			eventually(t, "the socket is given back", func() bool { return descriptors.Stats().Used == 0 })
			descriptors.SetMost(0)
			for range 2 {
				check(t, lookup(t, r, "api.example", dns.TypeA), "busy")
				check(t, lookup(t, r, "old.example", dns.TypeA), "192.0.2.1 from stale")
			}
			for _, u := range r.upstreams {
				if !u.isHealthy(time.Now()) {
					t.Errorf("%s is blamed", u.server)
				}
			}
			descriptors.SetMost(1)
			check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream")
			check(t, lookup(t, r, "old.example", dns.TypeA), "192.0.2.1 from upstream")
			s.hangUp()
			eventually(t, "the socket is given back", func() bool { return descriptors.Stats().Used == 0 })
		})
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begin := time.Now(); !is(); runtime.Gosched() {
		if time.Since(begin) > patience {
			t.Fatalf("not in %s: %s", patience, what)
		}
	}
}
