package proxy_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// TestNewStateJudgesTheNameInTheFirstBytes opens tunnels to an address with first bytes
// that ask for a name, and puts a policy in force that has changed for the name only.
func TestNewStateJudgesTheNameInTheFirstBytes(t *testing.T) {
	const asked, other = "asked.wild.example", "other.wild.example"
	var told []string
	g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding {
		return bindings(told...)
	}})
	enforcer := g.enforcer()
	put := func(rules ...allowlist.Rule) live.Enforcement {
		for i := range rules {
			rules[i].Ports, rules[i].TLS = to("x.example", g.origin.port).Ports, allowlist.TLSRequire
		}
		p, err := allowlist.Compile(allowlist.Spec{Version: "v", Entries: []allowlist.Entry{{Pattern: only("builder"), Allow: rules}}})
		if err != nil {
			t.Fatal(err)
		}
		return enforcer.put(t.Context(), p)
	}
	address := allowlist.Rule{CIDR: netip.MustParsePrefix("127.0.0.1/32")}
	for _, row := range []struct {
		name          string
		told          []string // names that the DNS door has answered with the address
		before, after []allowlist.Rule
		ends          bool
	}{
		{"told the address for two names, the one that was asked for goes", []string{other, asked}, []allowlist.Rule{to(other), to(asked)}, []allowlist.Rule{to(other)}, true},
		{"told the address for two names, the other goes", []string{other, asked}, []allowlist.Rule{to(other), to(asked)}, []allowlist.Rule{to(asked)}, false},
		{"the address is allowed, the name goes", nil, []allowlist.Rule{address, to(asked)}, []allowlist.Rule{address}, true},
		{"the address is allowed, another name goes", nil, []allowlist.Rule{address, to(asked), to(other)}, []allowlist.Rule{address, to(asked)}, false},
		{"the address is allowed no more, the name is", nil, []allowlist.Rule{address, to(asked)}, []allowlist.Rule{to(asked)}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			told = row.told
			put(row.before...)
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("127.0.0.1"))); a.status != 200 {
				t.Fatalf("status %s", a.phrase)
			}
			c.send(t, clientHello(asked, false, 1<<14))
			origin := g.origin.next(t)
			if _, err := origin.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			g.next(t, audit.EventDecision)
			e := put(row.after...)
			if e.Open != 1 || (e.Closed == 1) != row.ends {
				t.Errorf("%d of %d tunnels were ended, want one to end: %v", e.Closed, e.Open, row.ends)
			}
			_ = c.Close()
			_ = origin.Close()
			g.next(t, audit.EventTunnelClose)
			g.emptied(t)
		})
	}
}
