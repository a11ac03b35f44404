package allowlist

import (
	"net/netip"
	"testing"
)

// TestDecisionsAllocateNothing checks that a decision and the check of an allowed address
// allocate nothing, whatever the verdict, so that a flood of denied requests costs no
// memory.
func TestDecisionsAllocateNothing(t *testing.T) {
	p := must(Compile(Spec{
		Entries: []Entry{
			entryOf(checkout, allow(rule("api.example"), rule("*.one.example"), rule("**.many.example"), rule("8.8.8.0/24"), rule("::/0"), rule("get.example port 80", methods("GET"), paths("/p/**"))),
				deny(rule("gist.example"), rule("9.9.9.9/32"))),
			entryOf("spiffe://prod.example/**"), entryOf("everyone of prod.example"),
		},
		Quarantine: []Quarantined{{Pattern: must(ParseIdentityPattern("spiffe://prod.example/ns/legacy/**"))}},
	})).WithQuarantine(NewQuarantineList([]Quarantined{{Pattern: must(ParseIdentityPattern(builder))}}))
	rows := []row{
		{"an exact name", tunnel(checkout, "api.example:443"), "allow"},
		{"*.", tunnel(checkout, "a.one.example:443"), "allow"},
		{"**.", tunnel(checkout, "a.b.many.example:443"), "allow"},
		{"IPv4", tunnel(checkout, "8.8.8.8:443"), "allow"},
		{"IPv6", tunnel(checkout, "[2606:4700::1]:443"), "allow"},
		{"NAT64", tunnel(checkout, "[64:ff9b::808:808]:443"), "allow"},
		{"a path", plain(checkout, "GET", "get.example:80", "/p/my%20file"), "allow"},
		{"a miss", tunnel(checkout, "a.b.c.d.other.example:443"), "not-on-allowlist"},
		{"a near miss", tunnel(checkout, "api.example:80"), "port-not-allowed"},
		{"a malformed path", plain(checkout, "GET", "get.example:80", "/p/../q"), "malformed-target"},
		{"a deny rule", tunnel(checkout, "gist.example:443"), "denied-by-rule"},
		{"an address that is not listed", tunnel(checkout, "1.1.1.1:443"), "ip-not-on-allowlist"},
		{"a denied address", tunnel(checkout, "9.9.9.9:443"), "denied-by-rule"},
		{"a special address", tunnel(checkout, "[::1]:443"), "resolved-address-denied"},
		{"a quarantined identity", tunnel(builder, "api.example:443"), "quarantined"},
		{"one by prefix", tunnel("spiffe://prod.example/ns/legacy/sa/x", "api.example:443"), "quarantined"},
		{"an unknown identity", tunnel("spiffe://dev.example/a", "api.example:443"), "identity-unknown"},
	}
	checkRows(t, p, rows)
	for _, r := range rows {
		d := p.Decide(r.req)
		if n := testing.AllocsPerRun(100, func() { d = p.Decide(r.req) }); n != 0 {
			t.Errorf("%s: Decide makes %v allocations, want 0", r.why, n)
		}
		if !d.Allowed() {
			continue
		}
		addr := d.Dest.Host.Addr()
		if !addr.IsValid() {
			addr = netip.MustParseAddr("8.8.8.8")
		}
		ap := netip.AddrPortFrom(addr, d.Dest.Port)
		if n := testing.AllocsPerRun(100, func() {
			if err := d.CheckAddr(ap); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: CheckAddr makes %v allocations, want 0", r.why, n)
		}
	}
}
