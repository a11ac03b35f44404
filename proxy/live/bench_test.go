package live

import (
	"crypto/x509"
	"fmt"
	"strconv"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// BenchmarkPut judges 9,000 tunnels of 100 identities by a policy of 1,000 rules that
// forbids none of them. It measures what a reload costs that ends nothing.
func BenchmarkPut(b *testing.B) {
	const tunnels, identities, destinations = 9000, 100, 10
	var entries []allowlist.Entry
	for i := range identities {
		var rules []allowlist.Rule
		for d := range destinations {
			rules = append(rules, onlyAt(to(fmt.Sprintf("dest-%d.example", d)), "8.8.8.8/32"))
		}
		entries = append(entries, entry("worker-"+strconv.Itoa(i), rules...))
	}
	p := policy(entries...)
	r := &rig{}
	r.Enforcer = must(NewEnforcer(EnforcerConfig{Current: &r.current, Registry: &r.registry, Trusts: func(certs []*x509.Certificate) bool {
		return len(certs) > 0
	}}))
	for n := range tunnels {
		f := newFlow("worker-"+strconv.Itoa(n%identities), fmt.Sprintf("dest-%d.example", n/identities%destinations))
		f.End = func(tunnel.Reason, allowlist.Reason) { b.Error("a tunnel ended") }
		r.open(f)
	}
	for b.Loop() {
		r.put(b.Context(), p)
	}
}
