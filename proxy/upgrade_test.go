package proxy_test

import (
	"bufio"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// upgrades returns the fields of a request for another protocol.
func upgrades(protocols ...string) []string {
	fields := []string{"Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"}
	for _, p := range protocols {
		fields = append(fields, "Upgrade: "+p)
	}
	return fields
}

// TestDroppedUpgradeDoesNotReachTheOrigin checks that nothing of the upgrade reaches the
// origin, and that the request is treated like any plain one.
func TestDroppedUpgradeDoesNotReachTheOrigin(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	for _, row := range []struct{ method, host, path, protocols string }{
		{"GET", "allowed.example", "/", "h2c"},
		{"POST", "allowed.example", "/", "h2c"},
		{"GET", "read-only.example", "/", "h2c"},
		{"GET", "public-path.example", "/public/x", "h2c"},
		{"GET", "allowed.example", "/", "H2C"},
		{"GET", "allowed.example", "/", "TLS/1.0, HTTP/2.0"},
		{"GET", "allowed.example", "/", "spdy/3.1"},
		{"GET", "allowed.example", "/", "websockets"},
		{"GET", "allowed.example", "/", "x-websocket, h2c"},
		{"GET", "allowed.example", "/", `"websocket", web socket, websocket/, /websocket`},
		{"GET", "allowed.example", "/", ","},
		// A rule for upgrades does not allow other versions of HTTP, because no rule
		// would decide the requests over them.
		{"GET", "ws.example", "/", "h2c"},
		{"GET", "ws.example", "/", "h2c-16, h2, HTTP/2.0, http/1.1, TLS/1.2"},
	} {
		a := c.ask(t, plainTo(row.method, r.url(row.host, row.path), upgrades(row.protocols)...))
		if a.status != 200 || a.body != "ok" || a.close {
			t.Errorf("%s of %s: answered %s", row.protocols, row.host, a.phrase)
			r.next(t, audit.EventDecision)
			continue
		}
		if raw := strings.ToLower(r.received(t).raw); strings.Contains(raw, "upgrade") || strings.Contains(raw, "http2-settings") || strings.Contains(raw, "connection") {
			t.Errorf("%s of %s: the origin got %q", row.protocols, row.host, raw)
		}
		if decision, end := r.carried(t); decision.Verdict != "allow" || decision.Status != 200 || decision.Host != row.host || end.CloseReason != "upstream" {
			t.Errorf("%s of %s: records %+v, %+v", row.protocols, row.host, decision, end)
		}
	}
}

// TestDroppedUpgradeDoesNotCountAsATunnel checks that the request does not count as a
// tunnel, for limits and for rules: if it is denied, it is denied as a plain request.
func TestDroppedUpgradeDoesNotCountAsATunnel(t *testing.T) {
	g := newGateway(t, options{limits: limit.Config{Identity: allowlist.Limits{Tunnels: 1, ConnectsPerSecond: 1}}})
	g.origin.serve(t, func(request) string { return ok })
	c := g.call(t, "builder")
	for url, want := range map[string]string{
		g.at("allowed.example") + "/":           "",
		g.at("ws.example") + "/":                "",
		g.at("public-path.example") + "/admin":  "path-not-allowed",
		g.at("secret.example") + "/":            "not-on-allowlist",
		"allowed.example:22/":                   "port-not-allowed",
		g.at("expired.example") + "/":           "rule-expired",
		g.at("denied.wild.example") + "/":       "denied-by-rule",
		g.at("public-path.example") + "/public": "path-not-allowed",
	} {
		protocols := "spdy/3.1, h2c"
		if strings.HasPrefix(url, "ws.example") {
			protocols = "h2c"
		}
		if lease, reason, _ := g.budgets.Open(nil, allowlist.HolderOf(id("builder"), allowlist.ProofX509SVID)); reason == allowlist.NoReason { // the only new tunnel of this second
			lease.Close()
		}
		if a := c.ask(t, get("http://"+url, upgrades(protocols)...)); a.reason() != want || a.close {
			t.Errorf("%s: answered %s, want %q", url, a.phrase, want)
		}
		g.next(t, audit.EventDecision)
		if want == "" {
			g.next(t, audit.EventTunnelClose)
		}
	}
	g.idle(t)
	lease, reason, _ := g.budgets.Exchange(nil, allowlist.HolderOf(id("builder"), allowlist.ProofX509SVID))
	if reason != allowlist.NoReason {
		t.Fatal(reason)
	}
	t.Cleanup(lease.Close)
	if a := c.ask(t, get("http://"+g.at("ws.example")+"/", upgrades("websocket")...)); a.reason() != "tunnel-limit" {
		t.Errorf("an upgrade beyond the limit is answered %s", a.phrase)
	}
	g.next(t, audit.EventDecision)
}

// TestWebSocketIsRefusedWithoutARuleForUpgrades checks that a WebSocket client, which can
// use no answer but 101, is refused if its rule does not allow upgrades.
func TestWebSocketIsRefusedWithoutARuleForUpgrades(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	for _, protocols := range [][]string{
		{"websocket"}, {"WebSocket"}, {"WEBSOCKET"}, {"websocket/13"}, {"h2c, websocket"}, {"websocket,h2c"}, {" ,\twebsocket\t,"}, {"h2c", "spdy/3.1, WebSocket"},
	} {
		for _, host := range []string{"allowed.example", "read-only.example", "public-path.example"} {
			lookups := r.names.lookups.Load()
			a := c.ask(t, get(r.url(host, "/public/x"), upgrades(protocols...)...))
			if a.status != 403 || a.reason() != "upgrade-not-allowed" || a.close {
				t.Errorf("%q of %s: answered %s", protocols, host, a.phrase)
			}
			if d := r.next(t, audit.EventDecision); d.Verdict != "deny" || d.Reason != "upgrade-not-allowed" || d.Status != 403 {
				t.Errorf("record %+v", d)
			}
			if r.names.lookups.Load() != lookups || r.origin.accepted.Load() != 0 {
				t.Errorf("%q of %s: a lookup or a dial", protocols, host)
			}
		}
	}
	for name, head := range map[string]string{ // these do not request an upgrade (RFC 9110 section 7.8)
		"HTTP/1.0":                 strings.Replace(get(r.url("allowed.example", "/"), upgrades("websocket")...), "HTTP/1.1", "HTTP/1.0", 1),
		"without Connection":       get(r.url("allowed.example", "/"), "Upgrade: websocket"),
		"without a protocol":       get(r.url("allowed.example", "/"), "Connection: Upgrade"),
		"in a request with a body": plainTo("POST", r.url("allowed.example", "/"), "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 2") + "hi",
	} {
		if a := r.call(t, "builder").ask(t, head); a.body != "ok" {
			t.Errorf("%s: answered %s", name, a.phrase)
		}
		if req := r.received(t); req.Header.Get("Upgrade") != "" || req.Header.Get("Connection") != "" {
			t.Errorf("%s: the origin got %q", name, req.raw)
		}
		r.carried(t)
	}
}

// TestVersionsOfHTTPAreRemovedFromAnUpgrade checks that h2c is removed from an offer of
// h2c and WebSocket, so that the origin cannot choose it.
func TestVersionsOfHTTPAreRemovedFromAnUpgrade(t *testing.T) {
	for asked, row := range map[string]struct{ want, agreed string }{
		"h2c, websocket":         {"websocket", "h2c"},
		"websocket, HTTP/2.0":    {"websocket", "HTTP/2.0"},
		"TLS/1.0 , WebSocket/13": {"WebSocket/13", "TLS/1.0"},
		"foo, h2c,bar/1":         {"foo, bar/1", "h2c"},
	} {
		g := newGateway(t, options{})
		c := g.call(t, "builder")
		c.send(t, get("http://"+g.at("ws.example")+"/", upgrades(asked)...))
		conn := g.origin.next(t)
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			t.Fatal(err)
		}
		if req.Header.Get("Upgrade") != row.want || req.Header.Get("Connection") != "Upgrade" || req.Header.Get("HTTP2-Settings") != "" {
			t.Errorf("%q: the origin got %v", asked, req.Header)
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+row.agreed+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if a := c.answer(t); a.status != 502 || a.reason() != "response-failed" {
			t.Errorf("%q, and the origin takes what it was not asked for: answered %s", asked, a.phrase)
		}
		g.next(t, audit.EventDecision)
		g.next(t, audit.EventTunnelClose)
	}
}

// TestUpgradeIsCheckedAgainstTheAddressesOfItsRule checks a request whose rule for
// upgrades does not allow the address of the origin, while the rule for other requests
// does.
func TestUpgradeIsCheckedAgainstTheAddressesOfItsRule(t *testing.T) {
	r := newPlainRig(t, ok)
	spec := r.policy()
	spec.Entries[0].Allow = []allowlist.Rule{
		to("two.example"),
		with(to("two.example"), func(rule *allowlist.Rule) {
			rule.Name, rule.Upgrade, rule.Addresses = "upgrades", true, []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
		}),
	}
	r.swap(t, spec)
	c := r.call(t, "builder")
	if a := c.ask(t, get(r.url("two.example", "/"), upgrades("spdy/3.1")...)); a.body != "ok" {
		t.Errorf("answered %s", a.phrase)
	}
	if req := r.received(t); req.Header.Get("Upgrade") != "" {
		t.Errorf("the origin got %q", req.raw)
	}
	if decision, _ := r.carried(t); decision.Verdict != "allow" || decision.Status != 200 {
		t.Errorf("record %+v", decision)
	}
	if a := c.ask(t, get(r.url("two.example", "/"), upgrades("websocket")...)); a.reason() != "resolved-address-denied" {
		t.Errorf("answered %s", a.phrase)
	}
	if decision := r.next(t, audit.EventDecision); decision.Verdict != "deny" || decision.Status != 403 {
		t.Errorf("record %+v", decision)
	}
}

// TestUpgradeForbiddenDuringTheLookUpDoesNotGoOut forbids an upgrade while the name is
// looked up. The upgrade must not go out, and a request for an optional one must go out
// without it.
func TestUpgradeForbiddenDuringTheLookUpDoesNotGoOut(t *testing.T) {
	for name, row := range map[string]struct {
		enforced bool // the state is enforced; otherwise the request itself must notice it
		protocol string
		reason   string
	}{
		"optional, found by the enforcer":   {true, "spdy/3.1", ""},
		"optional, found by the request":    {false, "spdy/3.1", ""},
		"a WebSocket, ended":                {true, "websocket", "upgrade-not-allowed"},
		"a WebSocket, found by the request": {false, "websocket", "upgrade-not-allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newPlainRig(t, ok)
			spec := r.policy()
			spec.Entries[0].Allow = []allowlist.Rule{with(to("held.example"), func(rule *allowlist.Rule) { rule.Upgrade = true })}
			r.swap(t, spec)
			enforcer := r.enforcer()
			c := r.call(t, "builder")
			c.send(t, get(r.url("held.example", "/"), upgrades(row.protocol)...))
			<-r.names.asked
			spec = r.policy()
			spec.Version, spec.Entries[0].Allow = "two", []allowlist.Rule{to("held.example")}
			if row.enforced {
				policy, err := allowlist.Compile(spec)
				if err != nil {
					t.Fatal(err)
				}
				enforcer.put(t.Context(), policy)
			} else {
				r.swap(t, spec)
			}
			close(r.names.answer)
			if row.reason == "" {
				select {
				case <-r.names.asked: // the second look-up
				case <-time.After(patience):
					t.Error("the request was not asked for again")
				}
			}
			a := c.answer(t)
			if a.reason() != row.reason || row.reason == "" && a.body != "ok" {
				t.Errorf("answered %s", a.phrase)
			}
			decision := r.next(t, audit.EventDecision)
			if decision.Reason != row.reason || decision.Policy != "two" {
				t.Errorf("record %+v", decision)
			}
			if row.reason != "" {
				return
			}
			if req := r.received(t); req.Header.Get("Upgrade") != "" {
				t.Errorf("the origin got %q", req.raw)
			}
			r.next(t, audit.EventTunnelClose)
		})
	}
}
