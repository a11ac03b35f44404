package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// wayPolicy returns a policy that allows builder tunnels, plain requests and upgrades to some
// hosts, and denies others. It does not check first bytes.
func wayPolicy(t *testing.T, version string, allow, deny []string) *allowlist.Policy {
	t.Helper()
	e := allowlist.Entry{Pattern: only("builder")}
	for _, host := range allow {
		e.Allow = append(e.Allow,
			with(to(host), func(r *allowlist.Rule) { r.TLS = allowlist.TLSOff }),
			with(to(host), func(r *allowlist.Rule) { r.Methods = []string{http.MethodGet} }),
			with(to(host), func(r *allowlist.Rule) { r.Upgrade = true }))
	}
	for _, host := range deny {
		e.Deny = append(e.Deny, with(to(host), func(r *allowlist.Rule) { r.Addresses = nil }))
	}
	p, err := allowlist.Compile(allowlist.Spec{Version: version, Entries: []allowlist.Entry{e}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// opened is an open tunnel or exchange of a caller.
type opened struct {
	*caller
	origin net.Conn
	reader *bufio.Reader // reads at the origin
}

// opens opens a tunnel or an exchange to a host, by "connect", "get" or "upgrade", and returns
// when it has reached the origin.
func (g *gateway) opens(t *testing.T, way, host string) opened {
	t.Helper()
	o := opened{caller: g.call(t, "builder")}
	switch way {
	case "connect":
		if a := o.ask(t, connectTo(g.at(host))); a.status != 200 {
			t.Fatalf("answered %s %s", a.phrase, a.reason())
		}
		o.origin = g.origin.next(t)
		o.reader = bufio.NewReader(o.origin)
		echo(t, o.caller, o.origin, o.reader)
		g.next(t, audit.EventDecision)
		return o
	case "get":
		o.send(t, get("http://"+g.at(host)+"/"))
	case "upgrade":
		o.send(t, get("http://"+g.at(host)+"/", upgrades("websocket")...))
	}
	o.origin = g.origin.next(t)
	o.reader = bufio.NewReader(o.origin)
	if _, err := http.ReadRequest(o.reader); err != nil {
		t.Fatal(err)
	}
	if way == "upgrade" {
		agree(t, o.caller, o.origin)
		echo(t, o.caller, o.origin, o.reader)
		g.next(t, audit.EventDecision)
	}
	return o
}

// TestEveryStateJudgesTheWay checks tunnels and exchanges whose look-up has led over other
// names. They must end when a state no longer allows a new request to be led there.
func TestEveryStateJudgesTheWay(t *testing.T) {
	for _, row := range []struct {
		name          string
		over          []string
		inspect       bool
		before, after [2][]string // allowed names, denied names
		want          allowlist.Reason
	}{
		{"its alias is denied", []string{"x.example"}, false, [2][]string{{"a.example"}, nil}, [2][]string{{"a.example"}, {"x.example"}}, allowlist.DeniedByRule},
		{"an alias behind its alias is denied", []string{"x.example", "y.example"}, false, [2][]string{{"a.example"}, nil}, [2][]string{{"a.example"}, {"y.example"}}, allowlist.DeniedByRule},
		{"its alias is denied by a wildcard", []string{"edge.x.example"}, false, [2][]string{{"a.example"}, nil}, [2][]string{{"a.example"}, {"**.x.example"}}, allowlist.DeniedByRule},
		{"another name is denied", []string{"x.example"}, false, [2][]string{{"a.example"}, nil}, [2][]string{{"a.example"}, {"y.example"}}, 0},
		{"its alias must be allowed, and is not any more", []string{"x.example"}, true, [2][]string{{"a.example", "x.example"}, nil}, [2][]string{{"a.example"}, nil}, allowlist.NotOnAllowlist},
		{"its alias must be allowed, and is by another rule", []string{"x.example"}, true, [2][]string{{"a.example", "x.example"}, nil}, [2][]string{{"a.example", "*.example"}, nil}, 0},
		{"its alias need not be allowed", []string{"x.example"}, false, [2][]string{{"a.example", "x.example"}, nil}, [2][]string{{"a.example"}, nil}, 0},
	} {
		for _, way := range []string{"connect", "get", "upgrade"} {
			t.Run(row.name+", "+way, func(t *testing.T) {
				g := newGateway(t, options{})
				g.names.over(row.inspect, row.over...)
				g.enforcer().put(t.Context(), wayPolicy(t, "before", row.before[0], row.before[1]))
				o := g.opens(t, way, "a.example")
				done := g.enforcer().put(t.Context(), wayPolicy(t, "after", row.after[0], row.after[1]))
				if done.Open != 1 || (done.Closed == 1) != (row.want != allowlist.NoReason) {
					t.Fatalf("ended %d of %d", done.Closed, done.Open)
				}
				if row.want == allowlist.NoReason {
					if way == "get" {
						_, _ = io.WriteString(o.origin, ok)
						if a := o.answer(t); a.body != "ok" {
							t.Errorf("answered %s", a.phrase)
						}
						g.next(t, audit.EventDecision)
					} else {
						echo(t, o.caller, o.origin, o.reader)
						_ = o.Close()
						_ = o.origin.Close()
					}
					g.next(t, audit.EventTunnelClose)
					return
				}
				if way == "get" {
					if a := o.answer(t); a.reason() != "cut-off" {
						t.Errorf("answered %s", a.phrase)
					}
					g.next(t, audit.EventDecision)
				} else {
					o.gone(t)
				}
				if end := g.next(t, audit.EventTunnelClose); end.CloseReason != "revoked" || end.Reason != row.want.String() {
					t.Errorf("record %+v, want %s", end, row.want)
				}
				head := map[string]string{
					"connect": connectTo(g.at("a.example")), "get": get("http://" + g.at("a.example") + "/"),
					"upgrade": get("http://"+g.at("a.example")+"/", upgrades("websocket")...),
				}[way]
				if a := g.call(t, "builder").ask(t, head); a.reason() != row.want.String() {
					t.Errorf("a new one is answered %s %s, want %s", a.phrase, a.reason(), row.want)
				}
			})
		}
	}
}

// TestLookUpIsDecidedByTheStateAtItsEnd checks that the state in force at the end of the
// look-up decides about its result, and is the one in the record.
func TestLookUpIsDecidedByTheStateAtItsEnd(t *testing.T) {
	for _, inspect := range []bool{false, true} {
		for name, head := range map[string]func(*gateway) string{
			"connect": func(g *gateway) string { return connectTo(g.at("held.example")) },
			"get":     func(g *gateway) string { return get("http://" + g.at("held.example") + "/") },
			"upgrade": func(g *gateway) string {
				return get("http://"+g.at("held.example")+"/", upgrades("websocket")...)
			},
		} {
			t.Run(name, func(t *testing.T) {
				g := newGateway(t, options{})
				g.names.over(inspect, "x.example")
				g.enforcer().put(t.Context(), wayPolicy(t, "before", []string{"held.example", "x.example"}, nil))
				c := g.call(t, "builder")
				c.send(t, head(g))
				<-g.names.asked
				after, want := wayPolicy(t, "after", []string{"held.example"}, []string{"x.example"}), allowlist.DeniedByRule
				if inspect {
					after, want = wayPolicy(t, "after", []string{"held.example"}, nil), allowlist.NotOnAllowlist
				}
				if done := g.enforcer().put(t.Context(), after); done.Closed != 0 || done.Open != 1 {
					t.Errorf("ended %d of %d: the look-up has not ended yet", done.Closed, done.Open)
				}
				close(g.names.answer)
				if a := c.answer(t); a.status != 403 || a.reason() != want.String() {
					t.Fatalf("answered %s %s, want %s", a.phrase, a.reason(), want)
				}
				if rec := g.next(t, audit.EventDecision); rec.Verdict != "deny" || rec.Reason != want.String() || rec.Policy != "after" || rec.Generation != g.current.Load().Generation {
					t.Errorf("record %+v", rec)
				}
				for len(g.origin.conns) > 0 { // the origin was dialled, and nothing was sent
					conn := g.origin.next(t)
					if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
						t.Error("something was sent")
					}
				}
				g.emptied(t)
			})
		}
	}
}

// TestIdleConnectionIsReusedOnlyIfItsWayIsAllowed checks that a request uses an idle
// connection only if its own decision allows the way of that connection, also if CloseIdle
// was not called yet.
func TestIdleConnectionIsReusedOnlyIfItsWayIsAllowed(t *testing.T) {
	r := newPlainRig(t, ok)
	ask := func() answer { return r.call(t, "builder").ask(t, get(r.url("a.example", "/"))) }
	swap := func(p *allowlist.Policy) { r.current.Swap(p, time.Now()) } // without closing connections
	r.names.over(false, "x.example")
	swap(wayPolicy(t, "one", []string{"a.example"}, nil))
	for range 2 {
		if a := ask(); a.body != "ok" {
			t.Fatalf("answered %s", a.phrase)
		}
		r.received(t)
		r.carried(t)
	}
	if n := r.origin.accepted.Load(); n != 1 {
		t.Fatalf("%d connections, want the one that is kept", n)
	}
	swap(wayPolicy(t, "two", []string{"a.example"}, []string{"x.example"}))
	if a := ask(); a.status != 403 || a.reason() != "denied-by-rule" {
		t.Errorf("answered %s %s", a.phrase, a.reason())
	}
	if rec := r.next(t, audit.EventDecision); rec.Policy != "two" || rec.Reason != "denied-by-rule" {
		t.Errorf("record %+v", rec)
	}
	swap(wayPolicy(t, "three", []string{"a.example"}, nil))
	if a := ask(); a.body != "ok" {
		t.Fatalf("answered %s", a.phrase)
	}
	r.received(t)
	r.carried(t)
	swap(wayPolicy(t, "four", []string{"a.example"}, []string{"x.example"}))
	r.names.over(false, "y.example")
	accepted := r.origin.accepted.Load()
	if a := ask(); a.body != "ok" {
		t.Errorf("led over another name: answered %s", a.phrase)
	}
	r.received(t)
	r.carried(t)
	if n := r.origin.accepted.Load() - accepted; n != 1 {
		t.Errorf("%d connections more, want another one", n)
	}
}

// TestEveryStateJudgesTheWayOfABinding checks the way of the name that is decided about:
// the first binding, or the name that the first bytes ask for.
func TestEveryStateJudgesTheWayOfABinding(t *testing.T) {
	host := func(name string) allowlist.Host {
		h, err := allowlist.ParseHost(name)
		if err != nil {
			panic(err) // a constant of this test
		}
		return h
	}
	told := []resolve.Binding{
		{Name: host("a.example"), Way: allowlist.Way{Via: []allowlist.Host{host("x.example")}}},
		{Name: host("b.example"), Way: allowlist.Way{Via: []allowlist.Host{host("y.example"), host("z.example")}}},
	}
	for _, row := range []struct {
		name, asks string
		deny       []string
		ends       bool
	}{
		{"the alias of the name that is asked for", "a.example", []string{"x.example"}, true},
		{"the alias of the other name", "a.example", []string{"z.example"}, false},
		{"an alias of the other one, which is asked for", "b.example", []string{"z.example"}, true},
		{"the alias of the first one, where the other is asked for", "b.example", []string{"x.example"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, options{bound: func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding { return told }})
			put := func(version string, deny ...string) (closed, open int) {
				e := allowlist.Entry{Pattern: only("builder")}
				for _, name := range []string{"a.example", "b.example"} {
					e.Allow = append(e.Allow, with(to(name, g.origin.port), func(r *allowlist.Rule) { r.TLS = allowlist.TLSRequire }))
				}
				for _, name := range deny {
					e.Deny = append(e.Deny, with(to(name), func(r *allowlist.Rule) { r.Addresses = nil }))
				}
				p, err := allowlist.Compile(allowlist.Spec{Version: version, Entries: []allowlist.Entry{e}})
				if err != nil {
					t.Fatal(err)
				}
				done := g.enforcer().put(t.Context(), p)
				return done.Closed, done.Open
			}
			put("before")
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("127.0.0.1"))); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			c.send(t, clientHello(row.asks, false, 1<<14))
			origin := g.origin.next(t)
			if _, err := origin.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			g.next(t, audit.EventDecision)
			if closed, open := put("after", row.deny...); open != 1 || (closed == 1) != row.ends {
				t.Errorf("ended %d of %d, want it to end: %v", closed, open, row.ends)
			}
			_ = c.Close()
			_ = origin.Close()
			g.next(t, audit.EventTunnelClose)
			g.emptied(t)
		})
	}
}
