package proxy_test

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
)

// observing returns a policy in a mode, with rules that check first bytes.
func (g *gateway) observing(mode allowlist.Mode) allowlist.Spec {
	address := allowlist.Rule{CIDR: netip.MustParsePrefix("127.0.0.1/32"), Ports: to("x.example", g.origin.port).Ports, TLS: allowlist.TLSRequire}
	e := allowlist.Entry{Pattern: only("builder"), Mode: mode, Allow: []allowlist.Rule{
		address, to("allowed.example", g.origin.port), to("elsewhere.example", 1),
		with(to("strict.example", g.origin.port), func(r *allowlist.Rule) { r.TLS = allowlist.TLSRequire }),
		with(to("expired.example", g.origin.port), func(r *allowlist.Rule) { r.Expires = time.Now().Add(-time.Hour) }),
		with(to("read-only.example", g.origin.port), func(r *allowlist.Rule) { r.Methods = []string{http.MethodGet} }),
	}, Deny: []allowlist.Rule{{Host: to("denied.example").Host}}}
	if mode == allowlist.ModeObserve {
		e.ObserveUntil = time.Now().Add(time.Hour)
	}
	return allowlist.Spec{Version: "one", Entries: []allowlist.Entry{e}}
}

// TestFirstBytesUnderObserve sends the same first bytes in both modes. First bytes that are
// refused under enforce must never be recorded as a match under observe.
func TestFirstBytesUnderObserve(t *testing.T) {
	g := newGateway(t, options{})
	hello := func(name string) string { return clientHello(name, false, 1<<14) }
	const none = allowlist.NoReason
	for _, row := range []struct {
		name, host, sent string
		enforced         allowlist.Reason // reason of the refusal under enforce
		refused, would   allowlist.Reason // reason of the refusal and would_reason under observe
		tls              string
	}{
		{"an address: for a name that is allowed", "127.0.0.1", hello("allowed.example"), none, none, none, "match"},
		{"an address: for a name that no rule allows", "127.0.0.1", hello("evil.example"), allowlist.SNIMismatch, none, allowlist.NotOnAllowlist, "mismatch"},
		{"an address: for a name of one label", "127.0.0.1", hello("localhost"), allowlist.SNIMismatch, none, allowlist.NotOnAllowlist, "mismatch"},
		{"an address: for a name that is allowed on another port", "127.0.0.1", hello("elsewhere.example"), allowlist.SNIMismatch, none, allowlist.PortNotAllowed, "mismatch"},
		{"an address: for a name whose rule has expired", "127.0.0.1", hello("expired.example"), allowlist.SNIMismatch, none, allowlist.RuleExpired, "mismatch"},
		{"an address: for a name that is allowed for plain requests", "127.0.0.1", hello("read-only.example"), allowlist.SNIMismatch, none, allowlist.MethodNotAllowed, "mismatch"},
		{"an address: for a denied name", "127.0.0.1", hello("denied.example"), allowlist.SNIMismatch, allowlist.SNIMismatch, none, "mismatch"},
		{"an address: for another address", "127.0.0.1", hello("127.0.0.2"), allowlist.SNIMismatch, allowlist.SNIMismatch, none, "mismatch"},
		{"an address: for a malformed name", "127.0.0.1", hello("evil\x00.example"), allowlist.SNIMismatch, allowlist.SNIMismatch, none, "mismatch"},
		{"an address: without a name", "127.0.0.1", hello(""), none, none, none, "absent"},
		{"an address: in clear", "127.0.0.1", "GET /", allowlist.NotTLS, allowlist.NotTLS, none, "not-tls"},
		{"a name: for itself", "strict.example", hello("strict.example"), none, none, none, "match"},
		{"a name: for a name that no rule allows", "strict.example", hello("evil.example"), allowlist.SNIMismatch, allowlist.SNIMismatch, none, "mismatch"},
		{"a name: for another allowed name", "strict.example", hello("allowed.example"), allowlist.SNIMismatch, allowlist.SNIMismatch, none, "mismatch"},
	} {
		for _, mode := range []allowlist.Mode{allowlist.ModeEnforce, allowlist.ModeObserve} {
			t.Run(row.name+", "+mode.String(), func(t *testing.T) {
				refused, would := row.refused, row.would
				if mode == allowlist.ModeEnforce {
					refused, would = row.enforced, none
				}
				g.swap(t, g.observing(mode))
				c := g.call(t, "builder")
				if a := c.ask(t, connectTo(g.at(row.host))+row.sent); a.status != 200 {
					t.Fatalf("answered %s", a.phrase)
				}
				first := g.next(t, audit.EventDecision)
				if first.Verdict != "allow" || first.WouldReason != "" || first.Stage != "" {
					t.Errorf("record %+v, want the address to be allowed", first)
				}
				g.checkFirstBytes(t, c, g.origin.next(t), row.sent, refused)
				if refused != none || would != none {
					verdict := "deny"
					if refused == none {
						verdict = "observe"
					}
					r := g.next(t, audit.EventDecision)
					if r.ID != first.ID || r.Stage != "tls" || r.Verdict != verdict || r.Reason != refused.String() || r.WouldReason != would.String() || r.TLS != row.tls || r.Status != 0 {
						t.Errorf("record %+v, want %s %s%s", r, verdict, refused, would)
					}
				}
				r := g.next(t, audit.EventTunnelClose)
				if r.Reason != refused.String() || r.WouldReason != would.String() || r.TLS != row.tls {
					t.Errorf("record %+v, want %s%s, %s", r, refused, would, row.tls)
				}
			})
		}
	}
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("%d records too many, first %+v", len(left), left[0])
	}
}

// TestFirstBytesOfARemovedRuleAreObserved removes the rule before the first bytes come.
// Only observe then lets the name through, and the first state that enforces ends the
// tunnel.
func TestFirstBytesOfARemovedRuleAreObserved(t *testing.T) {
	const asked = "asked.wild.example"
	g := newGateway(t, options{})
	enforcer := g.enforcer()
	put := func(mode allowlist.Mode, rules ...allowlist.Rule) live.Enforcement {
		for i := range rules {
			rules[i].Ports, rules[i].TLS = to("x.example", g.origin.port).Ports, allowlist.TLSRequire
		}
		e := allowlist.Entry{Pattern: only("builder"), Mode: mode, Allow: rules}
		if mode == allowlist.ModeObserve {
			e.ObserveUntil = time.Now().Add(time.Hour)
		}
		p, err := allowlist.Compile(allowlist.Spec{Version: "v", Entries: []allowlist.Entry{e}})
		if err != nil {
			t.Fatal(err)
		}
		return enforcer.put(t.Context(), p)
	}
	address := allowlist.Rule{CIDR: netip.MustParsePrefix("127.0.0.1/32")}
	put(allowlist.ModeObserve, address, to(asked))
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("127.0.0.1"))); a.status != 200 {
		t.Fatalf("status %s", a.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "allow" {
		t.Errorf("record %+v", r)
	}
	after := put(allowlist.ModeObserve, address)
	origin := g.origin.next(t)
	c.send(t, clientHello(asked, false, 1<<14))
	if _, err := origin.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r := g.next(t, audit.EventDecision)
	if r.Verdict != "observe" || r.WouldReason != "not-on-allowlist" || r.TLS != "mismatch" || r.Generation != after.State.Generation {
		t.Errorf("record %+v, want it observed by generation %d", r, after.State.Generation)
	}
	if e := put(allowlist.ModeEnforce, address); e.Open != 1 || e.Closed != 1 {
		t.Errorf("%d of %d tunnels were ended by a state that enforces", e.Closed, e.Open)
	}
	_ = c.Close()
	_ = origin.Close()
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "revoked" || r.Reason != "not-on-allowlist" {
		t.Errorf("record %+v", r)
	}
	g.emptied(t)
}
