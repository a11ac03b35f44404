package allowlist

import (
	"testing"
	"time"
)

// TestBothDecisionsCountANameTheSame checks that a Decision and a NameDecision count a name
// under the same key.
func TestBothDecisionsCountANameTheSame(t *testing.T) {
	p := policyOf(t,
		entryOf(checkout, allow(rule("exact.example", named("exact")), rule("*.example.org", named("one")), rule("**.example.net", named("many")))),
		entryOf(builder, observe(now().Add(time.Hour))))
	for _, row := range []struct{ id, name, want string }{
		{checkout, "exact.example", ""},
		{checkout, "a.example.org", "one"},
		{checkout, "a.b.example.net", "many"},
		{builder, "exact.example", "*"},
	} {
		conn, name := p.Decide(tunnel(row.id, row.name+":443")), p.DecideName(lookup(row.id, row.name))
		if got := conn.Wildcard(); got != row.want {
			t.Errorf("a connection to %s is counted under %q, want %q", row.name, got, row.want)
		}
		if got := name.Wildcard(); got != row.want {
			t.Errorf("a question for %s is counted under %q, want %q", row.name, got, row.want)
		}
	}
	if got := (Outcome{}).Wildcard(); got != "" {
		t.Errorf("the zero value is counted under %q", got)
	}
}
