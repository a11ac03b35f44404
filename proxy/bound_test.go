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

// TestAnAddressByItsName connects to an address that no rule names, as a caller that the DNS
// door has answered with it for a name that a rule allows.
func TestAnAddressByItsName(t *testing.T) {
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
		told      []string
		sent      string
		answered  allowlist.Reason // reason of the answer to the CONNECT
		closed    allowlist.Reason // reason for which the first bytes are refused
	}{
		{"with a hello for it", "builder", []string{"strict.example"}, hello("strict.example"), 0, 0},
		{"with a hello for another name", "builder", []string{"strict.example"}, hello("off.example"), 0, allowlist.SNIMismatch},
		{"with a hello for no name", "builder", []string{"strict.example"}, hello(""), 0, allowlist.SNIMissing},
		{"in clear", "builder", []string{"strict.example"}, "GET /", 0, allowlist.NotTLS},
		{"of two names, with a hello for the other", "builder", []string{"off.example", "strict.example"}, hello("off.example"), 0, 0},
		{"of two names, the stricter rule counts", "builder", []string{"off.example", "strict.example"}, "GET /", 0, allowlist.NotTLS},
		{"with ECH, where no rule minds", "builder", []string{"strict.example"}, clientHello("strict.example", true, 1<<14), 0, 0},
		{"of two names, with ECH that the rule of one refuses", "builder", []string{"strict.example", "hidden.example"}, clientHello("hidden.example", true, 1<<14), 0, allowlist.ECHRefused},
		{"whose rule does not look", "builder", []string{"off.example"}, "GET /", 0, 0},
		{"that only an address was told", "builder", []string{"mapped strict.example"}, hello("strict.example"), 0, 0},
		{"that only an address was told, in clear", "builder", []string{"mapped strict.example"}, "GET /", 0, allowlist.NotTLS},
		{"of two names, the stricter of which only an address was told", "builder", []string{"off.example", "mapped strict.example"}, "GET /", 0, 0},
		{"of two names, with a hello for the one that only an address was told", "builder", []string{"strict.example", "mapped off.example"}, hello("off.example"), 0, 0},
		{"of two names, of which ECH is refused for the one that only an address was told", "builder", []string{"strict.example", "mapped hidden.example"}, clientHello("strict.example", true, 1<<14), 0, 0},
		{"of two names, of which only an address was told the one that is allowed", "builder", []string{"evil.example", "mapped strict.example"}, "GET /", 0, allowlist.NotTLS},
		{"that nobody was told", "builder", nil, "", allowlist.IPNotOnAllowlist, 0},
		{"that somebody else was told", "reporter", nil, "", allowlist.IPNotOnAllowlist, 0},
		{"for a name that is not allowed any more", "builder", []string{"evil.example"}, "", allowlist.IPNotOnAllowlist, 0},
		{"for a name on another port", "builder", []string{"elsewhere.example"}, "", allowlist.IPNotOnAllowlist, 0},
		{"led there over an alias", "builder", []string{"strict.example via other.example"}, hello("strict.example"), 0, 0},
		{"led there over an alias that is denied on the port", "builder", []string{"strict.example via other.example via edge.example"}, "", allowlist.IPNotOnAllowlist, 0},
		{"of two names, with a hello for the one whose alias is denied", "builder", []string{"off.example via edge.example", "strict.example"}, hello("off.example"), 0, allowlist.SNIMismatch},
		{"for a name that must not have it", "builder", []string{"inner.example"}, "", allowlist.IPNotOnAllowlist, 0},
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
				row.name == "of two names, with a hello for the other" && decision.Detail != "the address was told for off.example, strict.example" {
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

// TestARuleForTheAddressTakesNothingAway checks that a rule for an address that does not
// allow it, because of its date, its methods or the class, does not prevent that the
// address is allowed by its names.
func TestARuleForTheAddressTakesNothingAway(t *testing.T) {
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
		{"whose date has passed", cidr("127.0.0.1/32", func(r *allowlist.Rule) { r.Expires = time.Now().Add(-time.Hour) }), false, 0},
		{"for plain requests", cidr("127.0.0.1/32", func(r *allowlist.Rule) { r.Methods = []string{"GET"} }), false, 0},
		{"for another port", cidr("127.0.0.1/32", func(r *allowlist.Rule) { r.Ports = to("x.example", 1).Ports }), false, 0},
		{"that is too wide for the class", cidr("0.0.0.0/0", func(*allowlist.Rule) {}), false, 0},
		{"that denies", cidr("127.0.0.1/32", func(*allowlist.Rule) {}), true, allowlist.DeniedByRule},
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
