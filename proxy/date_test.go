package proxy_test

import (
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
)

// TestRuleThatExpiresDuringTheLookUpDenies lets the rule expire while the look-up is under
// way. The state stays the same, so that only the clock shows it: the enforcer has just
// checked the dates, and does not check them again for a minute.
func TestRuleThatExpiresDuringTheLookUpDenies(t *testing.T) {
	looked := make(chan struct{}, 16)
	g := newGateway(t, options{enforced: func(live.Enforcement) { looked <- struct{}{} }})
	spec := g.policy()
	spec.Entries[0].Allow[0].Expires = time.Now().Add(20 * time.Millisecond)
	policy, err := allowlist.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	g.enforcer().put(t.Context(), policy)
	for range 3 { // the first policy, this one, and its date
		<-looked
	}
	ends := time.Now().Add(time.Second)
	for i := range spec.Entries[0].Allow {
		spec.Entries[0].Allow[i].Expires = ends
	}
	g.swap(t, spec)
	c := g.call(t, "builder")
	c.send(t, connectTo(g.at("held.example"))+"early")
	<-g.names.asked
	<-time.After(time.Until(ends) + time.Millisecond)
	close(g.names.answer)

	a := c.answer(t)
	if a.status != 403 || a.reason() != allowlist.RuleExpired.String() {
		t.Errorf("answered %d %s, want 403 rule-expired", a.status, a.reason())
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "deny" || r.Reason != allowlist.RuleExpired.String() {
		t.Errorf("record %+v", r)
	}
	c.ended(t)
	origin := g.origin.next(t)
	if got := readAll(t, origin); got != "" {
		t.Errorf("the origin got %q", got)
	}
	_ = origin.Close()
}

// TestRequestAllowedAgainIsRecordedUnderTheLastState puts both states in force while the
// look-up is under way. The record must describe the second only, and a shutdown must go
// on waiting for the request.
func TestRequestAllowedAgainIsRecordedUnderTheLastState(t *testing.T) {
	g := newGateway(t, options{})
	enforcer := g.enforcer()
	put := func(version string, change func(*allowlist.Spec)) {
		t.Helper()
		spec := g.policy()
		spec.Version = version
		change(&spec)
		policy, err := allowlist.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		enforcer.put(t.Context(), policy)
	}
	c := g.call(t, "builder")
	c.send(t, connectTo(g.at("held.example")))
	<-g.names.asked
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		g.registry.Drain(patience)
	}()
	put("two", func(s *allowlist.Spec) { s.Entries = s.Entries[1:] })
	put("three", func(*allowlist.Spec) {})
	close(g.names.answer)
	<-g.names.asked // the second look-up
	select {
	case <-drained:
		t.Error("a shutdown does not wait for the request any more")
	default:
	}

	if a := c.answer(t); a.status != 200 {
		t.Errorf("answered %s", a.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "allow" || r.Reason != "" || r.Policy != "three" || r.Generation != 3 {
		t.Errorf("record %+v", r)
	}
	if n := g.registry.Len(); n != 1 {
		t.Errorf("%d tunnels registered, want 1", n)
	}
	_ = g.origin.next(t).Close()
	c.ended(t)
	g.next(t, audit.EventTunnelClose)
	<-drained
}

func TestPanicLeavesNothingInTheRegistry(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("panic.example"))); a.status != 500 {
		t.Errorf("answered %s", a.phrase)
	}
	c.ended(t)
	g.next(t, audit.EventDecision)
	if n := g.registry.Len(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}
