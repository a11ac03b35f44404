package proxy_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// looked returns a rule for a.example or held.example at the origin, with the given checks
// of first bytes.
func (g *gateway) looked(mode allowlist.TLSMode, ech allowlist.ECHMode) []allowlist.Rule {
	var rules []allowlist.Rule
	for _, host := range []string{"a.example", "held.example"} {
		rules = append(rules, with(to(host, g.origin.port), func(r *allowlist.Rule) { r.TLS, r.ECH = mode, ech }))
	}
	return rules
}

func (g *gateway) putRules(t *testing.T, version string, rules ...allowlist.Rule) live.Enforcement {
	t.Helper()
	p, err := allowlist.Compile(allowlist.Spec{Version: version, Entries: []allowlist.Entry{{Pattern: only("builder"), Allow: rules}}})
	if err != nil {
		t.Fatal(err)
	}
	return g.enforcer().put(t.Context(), p)
}

const (
	tlsOff, tlsAuto, tlsRequire = allowlist.TLSOff, allowlist.TLSAuto, allowlist.TLSRequire
	echRecord, echRefuse        = allowlist.ECHRecord, allowlist.ECHRefuse
)

// TestNewStateJudgesFirstBytesOfOpenTunnels checks that a new state decides about the
// first bytes of open tunnels like those of a new tunnel, except that first bytes which
// were not checked do not match.
func TestNewStateJudgesFirstBytesOfOpenTunnels(t *testing.T) {
	hello, hiding := clientHello("a.example", false, 1<<14), clientHello("a.example", true, 1<<14)
	const clear = "SSH-2.0-x\r\n"
	for _, row := range []struct {
		name   string
		before allowlist.TLSMode
		sent   string
		after  allowlist.TLSMode
		ech    allowlist.ECHMode
		want   allowlist.Reason
	}{
		{"a hello that was not checked, and must match", tlsOff, hello, tlsRequire, echRecord, allowlist.SNIMismatch},
		{"bytes in clear that were not checked, and must match", tlsOff, clear, tlsRequire, echRecord, allowlist.SNIMismatch},
		{"bytes in clear that were not checked, and need not be TLS", tlsOff, clear, tlsAuto, echRecord, 0},
		{"a hello that was not checked, and must not hide a name", tlsOff, hello, tlsAuto, echRefuse, allowlist.ECHRefused},
		{"a hello that was not checked, and need not be", tlsOff, hello, tlsOff, echRecord, 0},
		{"bytes in clear, and must match", tlsAuto, clear, tlsRequire, echRecord, allowlist.NotTLS},
		{"bytes in clear, and must not hide a name", tlsAuto, clear, tlsAuto, echRefuse, 0},
		{"bytes in clear, and need not be TLS", tlsAuto, clear, tlsAuto, echRecord, 0},
		{"a hello that matched, and must match", tlsAuto, hello, tlsRequire, echRefuse, 0},
		{"a hello that matched, and need not be checked", tlsRequire, hello, tlsOff, echRecord, 0},
		{"a hello with a hidden name, which it must not have", tlsRequire, hiding, tlsRequire, echRefuse, allowlist.ECHRefused},
		{"a hello with a hidden name under tls: auto, which it must not have", tlsAuto, hiding, tlsAuto, echRefuse, allowlist.ECHRefused},
		{"a hello with a hidden name, and need not be checked", tlsRequire, hiding, tlsOff, echRecord, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, options{})
			g.putRules(t, "before", g.looked(row.before, echRecord)...)
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("a.example"))); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			c.send(t, row.sent)
			origin := g.origin.next(t)
			if _, err := origin.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			g.next(t, audit.EventDecision)
			done := g.putRules(t, "after", g.looked(row.after, row.ech)...)
			if done.Open != 1 || (done.Closed == 1) != (row.want != allowlist.NoReason) {
				t.Errorf("ended %d of %d", done.Closed, done.Open)
			}
			_ = c.Close()
			_ = origin.Close()
			if end := g.next(t, audit.EventTunnelClose); row.want != allowlist.NoReason && (end.CloseReason != "revoked" || end.Reason != row.want.String()) {
				t.Errorf("record %+v, want %s", end, row.want)
			}
		})
	}
}

// TestFirstBytesAreCheckedByTheStateInForceWhenTheyCome checks that first bytes are
// checked under the state in force when they come. A new state does not end a tunnel
// before that, whether or not the state that opened the tunnel checks first bytes.
func TestFirstBytesAreCheckedByTheStateInForceWhenTheyCome(t *testing.T) {
	hello, hiding, other := clientHello("a.example", false, 1<<14), clientHello("a.example", true, 1<<14), clientHello("b.example", false, 1<<14)
	const clear = "SSH-2.0-x\r\n"
	for _, row := range []struct {
		name   string
		before allowlist.TLSMode
		first  string // part of the first bytes that is sent before the state comes
		after  allowlist.TLSMode
		ech    allowlist.ECHMode
		then   string
		want   allowlist.Reason
	}{
		{"now it must be TLS, and is not", tlsAuto, "", tlsRequire, echRecord, clear, allowlist.NotTLS},
		{"now it must be TLS, and is", tlsAuto, "", tlsRequire, echRecord, hello, 0},
		{"now it must be TLS, and asks for another name", tlsAuto, "", tlsRequire, echRecord, other, allowlist.SNIMismatch},
		{"now it need not be TLS", tlsRequire, "", tlsAuto, echRecord, clear, 0},
		{"now it is not checked", tlsRequire, "", tlsOff, echRecord, clear, 0},
		{"now it must not hide a name", tlsRequire, "", tlsRequire, echRefuse, hiding, allowlist.ECHRefused},
		{"half a hello has come, and it must not hide a name", tlsAuto, hiding[:100], tlsAuto, echRefuse, hiding[100:], allowlist.ECHRefused},
		{"half a hello has come, and the rest is not checked", tlsRequire, hello[:100], tlsOff, echRecord, other[100:], 0},
		{"half a hello has come, and the rule is the same", tlsRequire, hello[:100], tlsRequire, echRecord, hello[100:], 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, options{hello: patience})
			g.putRules(t, "before", g.looked(row.before, echRecord)...)
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("a.example"))+row.first); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			g.next(t, audit.EventDecision)
			origin := g.origin.next(t)
			if done := g.putRules(t, "after", g.looked(row.after, row.ech)...); done.Closed != 0 || done.Open != 1 {
				t.Fatalf("ended %d of %d", done.Closed, done.Open)
			}
			c.send(t, row.then)
			if row.want != allowlist.NoReason {
				c.gone(t)
			}
			_, err := origin.Read(make([]byte, 1))
			if passed := err == nil; passed != (row.want == allowlist.NoReason) {
				t.Errorf("the origin reads: %v", err)
			}
			if row.want != allowlist.NoReason {
				if rec := g.next(t, audit.EventDecision); rec.Reason != row.want.String() || rec.Stage != "tls" || rec.Policy != "after" || rec.Generation != g.current.Load().Generation {
					t.Errorf("record %+v, want %s", rec, row.want)
				}
			}
			_ = c.Close()
			_ = origin.Close()
			g.next(t, audit.EventTunnelClose)
		})
	}
}

// TestTunnelOpenedAfterAReloadIsCheckedByTheNewState checks that first bytes are checked
// under the state in force, and not under the one that the tunnel was dialled under.
func TestTunnelOpenedAfterAReloadIsCheckedByTheNewState(t *testing.T) {
	g := newGateway(t, options{hello: patience})
	g.putRules(t, "before", g.looked(tlsOff, echRecord)...)
	c := g.call(t, "builder")
	c.send(t, connectTo(g.at("held.example")))
	<-g.names.asked
	g.putRules(t, "after", g.looked(tlsRequire, echRecord)...)
	close(g.names.answer)
	if a := c.answer(t); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	if rec := g.next(t, audit.EventDecision); rec.Policy != "after" {
		t.Errorf("record %+v", rec)
	}
	c.send(t, "SSH-2.0-x\r\n")
	c.gone(t)
	if rec := g.next(t, audit.EventDecision); rec.Reason != "not-tls" {
		t.Errorf("record %+v", rec)
	}
	g.next(t, audit.EventTunnelClose)
}

// TestNewStateBoundsTheWaitForFirstBytes checks that a new state bounds the wait for first
// bytes of a tunnel whose client was allowed to be silent for any time.
func TestNewStateBoundsTheWaitForFirstBytes(t *testing.T) {
	g := newGateway(t, options{hello: 10 * time.Millisecond})
	g.putRules(t, "before", g.looked(tlsAuto, echRecord)...)
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("a.example"))); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	g.next(t, audit.EventDecision)
	g.putRules(t, "after", g.looked(tlsRequire, echRecord)...)
	c.gone(t)
	if rec := g.next(t, audit.EventDecision); rec.Reason != "not-tls" || rec.Stage != "tls" {
		t.Errorf("record %+v", rec)
	}
	if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "denied" {
		t.Errorf("record %+v", end)
	}
}

// greeted opens a tunnel to 127.0.0.1 and waits until a ClientHello for a.example, with or
// without ECH, has come to the origin.
func (g *gateway) greeted(t *testing.T, ech bool) (c *caller, origin net.Conn) {
	t.Helper()
	c = g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("127.0.0.1"))); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	c.send(t, clientHello("a.example", ech, 1<<14))
	origin = g.origin.next(t)
	if _, err := origin.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	g.next(t, audit.EventDecision)
	return c, origin
}

// endsGreeted opens a tunnel as greeted does, and reports whether a policy with these
// rules ends it.
func (g *gateway) endsGreeted(t *testing.T, ech bool, deny []allowlist.Rule, allow ...allowlist.Rule) bool {
	t.Helper()
	c, origin := g.greeted(t, ech)
	p, err := allowlist.Compile(allowlist.Spec{Version: "after", Entries: []allowlist.Entry{
		{Pattern: only("builder"), Allow: allow, Deny: deny},
	}})
	if err != nil {
		t.Fatal(err)
	}
	done := g.enforcer().put(t.Context(), p)
	if done.Open != 1 || done.Closed > 1 {
		t.Errorf("ended %d of %d", done.Closed, done.Open)
	}
	_ = c.Close()
	_ = origin.Close()
	g.next(t, audit.EventTunnelClose)
	return done.Closed == 1
}

// TestNewStateJudgesBothNamesThatECHMayHide checks a tunnel with ECH to an address that
// the DNS door has answered for two names: the hidden name may be either of them, so that
// a state decides about both.
func TestNewStateJudgesBothNamesThatECHMayHide(t *testing.T) {
	for name, ech := range map[string]bool{"hiding a name": true, "hiding nothing": false} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding {
				return bindings("a.example", "held.example")
			}})
			g.putRules(t, "before", g.looked(tlsRequire, echRecord)...)
			rules := g.looked(tlsRequire, echRecord)
			rules[1].ECH = echRefuse
			if ended := g.endsGreeted(t, ech, nil, rules...); ended != ech {
				t.Errorf("the tunnel has ended: %v", ended)
			}
		})
	}
}

// TestNameToldToAMappedCallerEndsNoTunnel checks that a name which was answered to an
// identity shown by source-map, and so perhaps to a forged datagram, decides neither how
// first bytes are checked nor whether ECH is allowed, if there are other names.
func TestNameToldToAMappedCallerEndsNoTunnel(t *testing.T) {
	g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding {
		all := bindings("a.example", "held.example")
		all[1].Mapped = true
		return all
	}})
	rules := g.looked(tlsRequire, echRecord)
	rules[1].ECH = echRefuse
	g.putRules(t, "before", rules...)
	if g.endsGreeted(t, true, nil, rules...) {
		t.Error("the tunnel has ended")
	}
}

// TestNameThatNoLongerLeadsToTheAddressEndsNoTunnel checks that a name which may no longer
// lead to the address, because its alias is denied, does not count for an open tunnel
// either.
func TestNameThatNoLongerLeadsToTheAddressEndsNoTunnel(t *testing.T) {
	g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding {
		all := bindings("a.example", "held.example")
		all[1].Via = []allowlist.Host{bindings("alias.example")[0].Name}
		return all
	}})
	g.putRules(t, "before", g.looked(tlsRequire, echRecord)...)
	rules := g.looked(tlsRequire, echRecord)
	rules[1].ECH = echRefuse
	if g.endsGreeted(t, true, []allowlist.Rule{to("alias.example", g.origin.port)}, rules...) {
		t.Error("the tunnel has ended")
	}
}

// TestFirstBytesOfAHeldTunnelAreJudged checks that a held tunnel ends if the last enforced
// policy, which is not the one that opened it, does not allow its first bytes.
func TestFirstBytesOfAHeldTunnelAreJudged(t *testing.T) {
	for _, row := range []struct {
		name  string
		sent  string
		stays bool
	}{
		{"in clear", "SSH-2.0-x\r\n", false},
		{"a hello", clientHello("a.example", false, 1<<14), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, options{hello: patience, maxRevoke: live.MaxRevoke{Share: 0.1, AtLeast: 1}})
			version := func(name string, rules ...allowlist.Rule) *allowlist.Policy {
				p, err := allowlist.Compile(allowlist.Spec{Version: name, Entries: []allowlist.Entry{
					{Pattern: only("builder"), Allow: rules}, {Pattern: only("other"), Allow: rules},
				}})
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			g.enforcer().put(t.Context(), version("before", g.looked(tlsAuto, echRecord)...))
			c, other := g.call(t, "builder"), g.call(t, "other")
			for _, c := range []*caller{c, other} {
				if a := c.ask(t, connectTo(g.at("a.example"))); a.status != 200 {
					t.Fatalf("answered %s", a.phrase)
				}
				g.next(t, audit.EventDecision)
			}
			g.enforcer().put(t.Context(), version("enforced", g.looked(tlsRequire, echRecord)...))
			if effect := g.enforcer().Apply(t.Context(), live.Change{Policy: version("held")}); effect != live.Held {
				t.Fatalf("effect %d", effect)
			}
			origin := g.origin.next(t)
			c.send(t, row.sent)
			if _, err := origin.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if row.stays { // it is judged several times
				if effect := g.enforcer().Apply(t.Context(), live.Change{Policy: version("held again")}); effect != live.Held || g.enforcer().Held().Entries != 2 {
					t.Errorf("effect %d, held %+v", effect, g.enforcer().Held())
				}
				return
			}
			if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "revoked" || end.Reason != "not-on-allowlist" {
				t.Errorf("record %+v", end)
			}
		})
	}
}

// TestRuleOfTheRequestedNameMayRefuseECH checks that the rule of the requested name
// counts, even if it was answered to an identity shown by source-map: the caller itself
// has chosen that name.
func TestRuleOfTheRequestedNameMayRefuseECH(t *testing.T) {
	g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding {
		all := bindings("a.example", "held.example")
		all[1].Mapped = true
		return all
	}})
	rules := g.looked(tlsRequire, echRecord)
	rules[1].ECH = echRefuse
	g.putRules(t, "before", rules...)
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("127.0.0.1"))); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	g.next(t, audit.EventDecision)
	c.send(t, clientHello("held.example", true, 1<<14))
	c.gone(t)
	if rec := g.next(t, audit.EventDecision); rec.Reason != "ech-refused" || rec.Stage != "tls" {
		t.Errorf("record %+v", rec)
	}
	g.next(t, audit.EventTunnelClose)
}
