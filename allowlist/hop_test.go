package allowlist

import (
	"testing"
	"time"
)

// TestAliasesOfADecision checks which aliases the modes trust and inspect accept on the
// way to an address.
func TestAliasesOfADecision(t *testing.T) {
	p := policyOf(t,
		entryOf(checkout, allow(rule("api.example"), rule("*.cdn.example"), rule("cdn.example port 8443")), deny(rule("denied.cdn.example"), rule("half.example port 22"))),
		entryOf(builder, observe(now().Add(time.Hour)), deny(rule("denied.cdn.example"))))
	for _, row := range []struct {
		name           string
		id, hop        string
		trust, inspect Reason
	}{
		{"allowed by itself", checkout, "a.cdn.example", NoReason, NoReason},
		{"without a rule", checkout, "other.example", NoReason, NotOnAllowlist},
		{"allowed on another port", checkout, "cdn.example", NoReason, PortNotAllowed},
		{"denied", checkout, "denied.cdn.example", DeniedByRule, DeniedByRule},
		{"denied on another port", checkout, "half.example", NoReason, NotOnAllowlist},
		{"without a rule, under observe", builder, "other.example", NoReason, NoReason},
		{"denied, under observe", builder, "denied.cdn.example", DeniedByRule, DeniedByRule},
		{"an address", checkout, "192.0.2.1", MalformedTarget, MalformedTarget},
	} {
		d := p.Decide(tunnel(row.id, "api.example:443"))
		hop := must(ParseHost(row.hop))
		if trust, inspect := d.CheckHop(hop, false), d.CheckHop(hop, true); trust != row.trust || inspect != row.inspect {
			t.Errorf("%s: trust %q, inspect %q; want %q, %q", row.name, trust, inspect, row.trust, row.inspect)
		}
	}
	denied := p.Decide(tunnel(checkout, "evil.example:443"))
	for _, d := range []Decision{{}, {Outcome: Outcome{Verdict: Allow}}, denied} {
		if got := d.CheckHop(must(ParseHost("a.cdn.example")), false); got == NoReason {
			t.Errorf("%v follows an alias", d.Verdict)
		}
	}
	if d := p.Decide(tunnel(checkout, "api.example:443")); d.CheckHop(Host{}, false) == NoReason {
		t.Error("the zero host was followed")
	}
}

func TestWildcardPatterns(t *testing.T) {
	for text, want := range map[string]bool{"a.example": false, "*.example.org": true, "**.example.org": true} {
		if got := must(ParseHostPattern(text)).isWildcard(); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	if (HostPattern{}).isWildcard() {
		t.Error("the zero pattern is a wildcard")
	}
}
