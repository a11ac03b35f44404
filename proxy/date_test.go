package proxy_test

import (
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestADateThatPassesBetweenDecisionAndTunnel ends the rule while the lookup
// is under way. The state is the same, so only the clock can say it.
func TestADateThatPassesBetweenDecisionAndTunnel(t *testing.T) {
	g := newGateway(t, options{})
	spec := g.policy()
	ends := time.Now().Add(300 * time.Millisecond)
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
