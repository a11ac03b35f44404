package proxy_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// TestAddressIsAllowedByTheNamesItWasToldFor checks requests for an address that no rule
// names. They are allowed if the DNS door has answered the caller with the address for a
// name that a rule allows. The rule of that name decides how first bytes are checked.
func TestAddressIsAllowedByTheNamesItWasToldFor(t *testing.T) {
	told := map[string][]string{"builder": {"strict.example"}}
	g := newGateway(t, options{bound: func(who spiffeid.ID, addr netip.Addr, _ time.Time) []resolve.Binding {
		if addr != netip.MustParseAddr("127.0.0.1") {
			return nil
		}
		var bound []resolve.Binding
		for _, text := range told[who.Path()[1:]] {
			var b resolve.Binding
			text, b.Mapped = strings.CutPrefix(text, "mapped ")
			for i, text := range strings.Split(text, " via ") {
				name, err := allowlist.ParseHost(text)
				switch {
				case err != nil:
					panic(err) // a constant of this test
				case i == 0:
					b.Name = name
				default:
					b.Via = append(b.Via, name)
				}
			}
			bound = append(bound, b)
		}
		return bound
	}})
	mode := func(host string, mode allowlist.TLSMode) allowlist.Rule {
		return with(to(host, g.origin.port), func(r *allowlist.Rule) { r.TLS = mode })
	}
	spec := g.policy()
	spec.Entries[0].Allow = []allowlist.Rule{
		with(mode("hidden.example", allowlist.TLSAuto), func(r *allowlist.Rule) { r.ECH = allowlist.ECHRefuse }),
		mode("strict.example", allowlist.TLSRequire), mode("off.example", allowlist.TLSOff), to("elsewhere.example", 1),
		with(mode("inner.example", allowlist.TLSOff), func(r *allowlist.Rule) { r.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }),
	}
	spec.Entries[0].Deny = []allowlist.Rule{to("edge.example", g.origin.port), to("other.example", 1)}
	spec.Entries[1].Allow = []allowlist.Rule{mode("strict.example", allowlist.TLSRequire)}
	g.swap(t, spec)
	hello := func(name string) string { return clientHello(name, false, 1<<14) }
	for _, row := range []struct {
		name, who string
		told      []string // names that the DNS door has answered with the address; "mapped" marks one that was answered to a mapped caller only
		sent      string
		answered  allowlist.Reason // reason of the answer to the CONNECT
		closed    allowlist.Reason // reason for which the first bytes are refused
	}{
		{"told one name, with a hello for it", "builder", []string{"strict.example"}, hello("strict.example"), 0, 0},
		{"told one name, with a hello for another", "builder", []string{"strict.example"}, hello("off.example"), 0, allowlist.SNIMismatch},
		{"told one name, with a hello without a name", "builder", []string{"strict.example"}, hello(""), 0, allowlist.SNIMissing},
		{"told one name, in clear", "builder", []string{"strict.example"}, "GET /", 0, allowlist.NotTLS},
		{"told two names, with a hello for the other", "builder", []string{"off.example", "strict.example"}, hello("off.example"), 0, 0},
		{"told two names, the stricter rule counts", "builder", []string{"off.example", "strict.example"}, "GET /", 0, allowlist.NotTLS},
		{"told one name, with ECH that its rule allows", "builder", []string{"strict.example"}, clientHello("strict.example", true, 1<<14), 0, 0},
		{"told two names, with ECH that the rule of one refuses", "builder", []string{"strict.example", "hidden.example"}, clientHello("hidden.example", true, 1<<14), 0, allowlist.ECHRefused},
		{"told one name, whose rule does not check first bytes", "builder", []string{"off.example"}, "GET /", 0, 0},
		{"told one name as a mapped caller", "builder", []string{"mapped strict.example"}, hello("strict.example"), 0, 0},
		{"told one name as a mapped caller, in clear", "builder", []string{"mapped strict.example"}, "GET /", 0, allowlist.NotTLS},
		{"told two names, the stricter one as a mapped caller", "builder", []string{"off.example", "mapped strict.example"}, "GET /", 0, 0},
		{"told two names, with a hello for the one it was told as a mapped caller", "builder", []string{"strict.example", "mapped off.example"}, hello("off.example"), 0, 0},
		{"told two names, where ECH is refused for the one it was told as a mapped caller", "builder", []string{"strict.example", "mapped hidden.example"}, clientHello("strict.example", true, 1<<14), 0, 0},
		{"told two names, the allowed one as a mapped caller", "builder", []string{"evil.example", "mapped strict.example"}, "GET /", 0, allowlist.NotTLS},
		{"told no name", "builder", nil, "", allowlist.IPNotOnAllowlist, 0},
		{"told no name, but another identity was", "reporter", nil, "", allowlist.IPNotOnAllowlist, 0},
		{"told a name that is not allowed any more", "builder", []string{"evil.example"}, "", allowlist.IPNotOnAllowlist, 0},
		{"told a name that is allowed on another port", "builder", []string{"elsewhere.example"}, "", allowlist.IPNotOnAllowlist, 0},
		{"told a name over an alias", "builder", []string{"strict.example via other.example"}, hello("strict.example"), 0, 0},
		{"told a name over an alias that is denied on the port", "builder", []string{"strict.example via other.example via edge.example"}, "", allowlist.IPNotOnAllowlist, 0},
		{"told two names, with a hello for the one whose alias is denied", "builder", []string{"off.example via edge.example", "strict.example"}, hello("off.example"), 0, allowlist.SNIMismatch},
		{"told a name whose rule does not allow the address", "builder", []string{"inner.example"}, "", allowlist.IPNotOnAllowlist, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			told = map[string][]string{row.who: row.told}
			if row.who == "reporter" {
				told["builder"] = []string{"strict.example"}
			}
			accepted := g.origin.accepted.Load()
			c := g.call(t, row.who)
			a := c.ask(t, connectTo(g.at("127.0.0.1")))
			decision := g.next(t, audit.EventDecision)
			if a.reason() != row.answered.String() || decision.Reason != row.answered.String() || decision.Host != "127.0.0.1" {
				t.Fatalf("answered %s, record %+v, want %q", a.phrase, decision, row.answered)
			}
			if row.answered != allowlist.NoReason {
				if g.origin.accepted.Load() != accepted {
					t.Error("a connection for what was refused")
				}
				return
			}
			if want := g.at("127.0.0.1"); decision.Address != want {
				t.Errorf("dialled %s, want %s", decision.Address, want)
			}
			if !strings.HasPrefix(decision.Detail, "the address was told for ") ||
				row.name == "told two names, with a hello for the other" && decision.Detail != "the address was told for off.example, strict.example" {
				t.Errorf("the record does not say by which names: %q", decision.Detail)
			}
			origin := g.origin.next(t)
			c.send(t, row.sent)
			if row.closed == allowlist.NoReason {
				if _, err := origin.Read(make([]byte, 1)); err != nil {
					t.Error(err)
				}
				_ = c.Close()
				_ = origin.Close()
				g.next(t, audit.EventTunnelClose)
				return
			}
			c.gone(t)
			if n, err := origin.Read(make([]byte, 1)); err == nil {
				t.Errorf("the origin got %d bytes", n)
			}
			if r := g.next(t, audit.EventDecision); r.Reason != row.closed.String() {
				t.Errorf("record %+v, want %s", r, row.closed)
			}
			g.next(t, audit.EventTunnelClose)
		})
	}
	if n := g.names.lookups.Load(); n != 0 {
		t.Errorf("%d lookups of names whose address was given", n)
	}
}

// TestUnmetRuleForAnAddressLeavesItAllowedByName checks that a rule for an address which
// does not apply, because of its date, its methods, its ports or the class of the address,
// does not prevent the address from being allowed by its name. A deny rule does.
func TestUnmetRuleForAnAddressLeavesItAllowedByName(t *testing.T) {
	name, err := allowlist.ParseHost("off.example")
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding {
		return []resolve.Binding{{Name: name}}
	}})
	cidr := func(text string, change func(*allowlist.Rule)) allowlist.Rule {
		r := allowlist.Rule{CIDR: netip.MustParsePrefix(text), Ports: to("x.example", g.origin.port).Ports}
		change(&r)
		return r
	}
	for _, row := range []struct {
		name string
		rule allowlist.Rule
		deny bool
		want allowlist.Reason
	}{
		{"a rule whose date has passed", cidr("127.0.0.1/32", func(r *allowlist.Rule) { r.Expires = time.Now().Add(-time.Hour) }), false, 0},
		{"a rule for plain requests", cidr("127.0.0.1/32", func(r *allowlist.Rule) { r.Methods = []string{"GET"} }), false, 0},
		{"a rule for another port", cidr("127.0.0.1/32", func(r *allowlist.Rule) { r.Ports = to("x.example", 1).Ports }), false, 0},
		{"a rule that is too wide for the class", cidr("0.0.0.0/0", func(*allowlist.Rule) {}), false, 0},
		{"a rule that denies", cidr("127.0.0.1/32", func(*allowlist.Rule) {}), true, allowlist.DeniedByRule},
	} {
		t.Run(row.name, func(t *testing.T) {
			spec := g.policy()
			spec.Entries[0].Allow = []allowlist.Rule{with(to("off.example", g.origin.port), func(r *allowlist.Rule) { r.TLS = allowlist.TLSOff })}
			if row.deny {
				spec.Entries[0].Deny = []allowlist.Rule{row.rule}
			} else {
				spec.Entries[0].Allow = append(spec.Entries[0].Allow, row.rule)
			}
			g.swap(t, spec)
			c := g.call(t, "builder")
			a := c.ask(t, connectTo(g.at("127.0.0.1")))
			if r := g.next(t, audit.EventDecision); a.reason() != row.want.String() || r.Reason != row.want.String() {
				t.Fatalf("answered %s, record %+v, want %q", a.phrase, r, row.want)
			}
			if row.want == allowlist.NoReason {
				_ = g.origin.next(t).Close()
				_ = c.Close()
				g.next(t, audit.EventTunnelClose)
			}
		})
	}
}
