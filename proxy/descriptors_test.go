package proxy_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/proxy/audit"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// given waits until no descriptor is taken.
func given(t *testing.T, d *limit.Descriptors) {
	t.Helper()
	for begin := time.Now(); d.Stats().Used != 0; runtime.Gosched() {
		if time.Since(begin) > patience {
			t.Fatalf("%d descriptors are taken", d.Stats().Used)
		}
	}
}

// TestMissingDescriptorIsAnsweredBusy checks that the gateway answers busy, and does not
// report a failed destination. A tunnel keeps its descriptor until it ends; then another
// request gets it.
func TestMissingDescriptorIsAnsweredBusy(t *testing.T) {
	accepted, opened := limit.NewDescriptors(100), limit.NewDescriptors(0)
	g := newGateway(t, options{descriptors: gw.Descriptors{Accepted: accepted, Opened: opened}})
	busy := func(head string) {
		t.Helper()
		c := g.call(t, "builder")
		a := c.askOnce(t, head)
		if a.status != 503 || a.reason() != "busy" {
			t.Errorf("answered %s", a.phrase)
		}
		r := g.next(t, audit.EventDecision)
		if r.Verdict != "fail" || r.Reason != "busy" || r.Address != "" || r.Status != 503 || r.Detail != limit.ErrNoDescriptor.Error() {
			t.Errorf("recorded as %+v", r)
		}
	}
	tunnel, plain := connectTo(g.at("allowed.example")), get("http://"+g.at("allowed.example")+"/")
	busy(tunnel)
	busy(plain)
	opened.SetMost(1)
	for range 2 {
		c := g.call(t, "builder")
		if a := c.ask(t, tunnel); a.status != 200 {
			t.Fatalf("answered %s", a.phrase)
		}
		g.next(t, audit.EventDecision)
		origin := g.origin.next(t)
		busy(tunnel)
		busy(plain)
		_ = origin.Close()
		c.ended(t)
		g.next(t, audit.EventTunnelClose)
		given(t, opened)
	}
	if got := g.origin.accepted.Load(); got != 2 {
		t.Errorf("%d connections to the origin, want 2", got)
	}
}

// TestIdleConnectionGivesUpItsDescriptorForACaller checks that an idle connection is
// closed before a caller is refused for want of a descriptor.
func TestIdleConnectionGivesUpItsDescriptorForACaller(t *testing.T) {
	opened := limit.NewDescriptors(4)
	g := newGateway(t, options{descriptors: gw.Descriptors{Opened: opened}})
	g.origin.serve(t, func(request) string { return ok })
	if a := g.call(t, "builder").ask(t, get("http://"+g.at("allowed.example")+"/")); a.body != "ok" {
		t.Fatalf("answered %s", a.phrase)
	}
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
	if n := opened.Stats().Used; n != 1 {
		t.Fatalf("%d are taken, want that of the connection that rests", n)
	}
	opened.SetMost(1)
	if a := g.call(t, "builder").ask(t, connectTo(g.at("allowed.example"))); a.status != 200 {
		t.Errorf("answered %s", a.phrase)
	}
	if s := opened.Stats(); s.Used != 1 || s.Missed != 0 {
		t.Errorf("descriptors %+v", s)
	}
}

// TestIdleConnectionsCloseWhenDescriptorsAreScarce checks that an idle connection to an
// origin is kept while enough descriptors are free, and closed when they are scarce or
// another state comes into force.
func TestIdleConnectionsCloseWhenDescriptorsAreScarce(t *testing.T) {
	opened := limit.NewDescriptors(4)
	g := newGateway(t, options{descriptors: gw.Descriptors{Opened: opened}})
	g.origin.serve(t, func(request) string { return ok })
	c := g.call(t, "builder")
	asks := func() {
		t.Helper()
		if a := c.ask(t, get("http://"+g.at("allowed.example")+"/")); a.body != "ok" {
			t.Fatalf("answered %s", a.phrase)
		}
		g.next(t, audit.EventDecision)
		g.next(t, audit.EventTunnelClose)
	}
	asks()
	asks()
	if got := opened.Stats().Used; got != 1 || g.origin.accepted.Load() != 1 {
		t.Errorf("%d descriptors are taken, %d connections were made, want one that is kept", got, g.origin.accepted.Load())
	}
	g.proxy.CloseIdle()
	given(t, opened)
	if !opened.Take(3) {
		t.Fatal("three of four are not left")
	}
	asks()
	for begin := time.Now(); opened.Stats().Used != 3; runtime.Gosched() {
		if time.Since(begin) > patience {
			t.Fatal("the last connection is kept")
		}
	}
}

// TestUpgradesGiveTheirDescriptorBack checks a connection that became a tunnel and one that
// did not.
func TestUpgradesGiveTheirDescriptorBack(t *testing.T) {
	for name, answer := range map[string]string{
		"switched": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"refused":  "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n",
		"nothing":  "close:",
	} {
		t.Run(name, func(t *testing.T) {
			opened := limit.NewDescriptors(1)
			g := newGateway(t, options{descriptors: gw.Descriptors{Opened: opened}})
			g.origin.serve(t, func(request) string { return answer })
			c := g.call(t, "builder")
			c.ask(t, get("http://"+g.at("ws.example")+"/", upgrades("websocket")...))
			_ = c.Close()
			given(t, opened)
		})
	}
}
