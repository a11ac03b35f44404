package dns_test

import (
	"testing"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// TestMissingDescriptorBlamesNoServer checks that the client gets an error at once and no
// server is blamed, and that queries are answered from the cache.
func TestMissingDescriptorBlamesNoServer(t *testing.T) {
	for _, wire := range wires() {
		t.Run(wire, func(t *testing.T) {
			descriptors := limit.NewDescriptors(1)
			g := newGateway(t, options{descriptors: descriptors})
			c := g.dial(t, wire, "sidecar")
			if got := say(ask(t, c, "allowed.example")); got == "REFUSED, ede 18 busy" {
				t.Fatalf("with a descriptor: %s", got)
			}
			g.next(t)
			descriptors.SetMost(0)
			if got := say(ask(t, c, "allowed.example")); got == "REFUSED, ede 18 busy" {
				t.Errorf("from the cache: %s", got)
			}
			g.next(t)
			if got := say(ask(t, c, "a.wild.example")); got != "REFUSED, ede 18 busy" {
				t.Errorf("answered %s", got)
			}
			r := g.next(t)
			if r.Verdict != "fail" || r.Reason != "busy" || r.Detail != limit.ErrNoDescriptor.Error() {
				t.Errorf("recorded as %+v", r)
			}
		})
	}
}
