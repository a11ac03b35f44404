package proxy_test

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// TestLaterStatesJudgeAnAddressByItsNewName puts a state in force after a decision that
// allows an address for one name. The state allows it for another name, about which every
// later state must decide.
func TestLaterStatesJudgeAnAddressByItsNewName(t *testing.T) {
	const before, after = "before.wild.example", "after.wild.example"
	var behind atomic.Pointer[func()]
	g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding {
		if turn := behind.Swap(nil); turn != nil {
			(*turn)()
		}
		return bindings(before, after)
	}})
	enforcer := g.enforcer()
	put := func(hosts ...string) live.Enforcement {
		var rules []allowlist.Rule
		for _, host := range hosts {
			rules = append(rules, with(to(host, g.origin.port), func(r *allowlist.Rule) { r.TLS = allowlist.TLSRequire }))
		}
		p, err := allowlist.Compile(allowlist.Spec{Version: "v", Entries: []allowlist.Entry{{Pattern: only("builder"), Allow: rules}}})
		if err != nil {
			t.Error(err)
		}
		return enforcer.put(context.WithoutCancel(t.Context()), p)
	}
	for _, row := range []struct {
		name string
		last string // the only name that a further state allows
		ends bool
	}{
		{"a further state allows the name of the first", before, true},
		{"a further state allows the name of the second", after, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			put(before)
			turn := func() { put(after) }
			behind.Store(&turn)
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("127.0.0.1"))); a.status != 200 {
				t.Fatalf("status %s", a.phrase)
			}
			c.send(t, clientHello(after, false, 1<<14))
			origin := g.origin.next(t)
			if _, err := origin.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			g.next(t, audit.EventDecision)
			if e := put(row.last); e.Open != 1 || (e.Closed == 1) != row.ends {
				t.Errorf("%d of %d tunnels were ended, want one to end: %v", e.Closed, e.Open, row.ends)
			}
			_ = c.Close()
			_ = origin.Close()
			g.next(t, audit.EventTunnelClose)
			g.emptied(t)
		})
	}
}

// TestAllowedAddressIsNotJudgedByItsFormerName puts a state in force that allows the
// address itself, after a decision that allowed it for a name. The way of that name must
// then not matter.
func TestAllowedAddressIsNotJudgedByItsFormerName(t *testing.T) {
	var behind atomic.Pointer[func()]
	g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding {
		if turn := behind.Swap(nil); turn != nil {
			(*turn)()
		}
		all := bindings("before.wild.example")
		all[0].Via = []allowlist.Host{bindings("alias.example")[0].Name}
		return all
	}})
	put := func(e allowlist.Entry) {
		e.Pattern = only("builder")
		p, err := allowlist.Compile(allowlist.Spec{Version: "v", Entries: []allowlist.Entry{e}})
		if err != nil {
			t.Error(err)
		}
		g.enforcer().put(context.WithoutCancel(t.Context()), p)
	}
	put(allowlist.Entry{Allow: []allowlist.Rule{to("before.wild.example")}})
	turn := func() {
		put(allowlist.Entry{
			Allow: []allowlist.Rule{{CIDR: netip.MustParsePrefix("127.0.0.1/32"), Ports: to("x.example").Ports}},
			Deny:  []allowlist.Rule{to("alias.example")},
		})
	}
	behind.Store(&turn)
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("127.0.0.1"))); a.status != 200 {
		t.Errorf("status %s", a.phrase)
	}
}
