package allowlist

import (
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// remedied returns the policy with a rule added for one identity.
func remedied(spec *Spec, id spiffeid.ID, r Rule) *Policy {
	pattern := must(ParseIdentityPattern(id.String()))
	with := Spec{Version: "v2", Quarantine: spec.Quarantine, Entries: slices.Clone(spec.Entries)}
	i := slices.IndexFunc(with.Entries, func(e Entry) bool { return e.Pattern == pattern })
	if i < 0 {
		i = len(with.Entries)
		with.Entries = append(with.Entries, Entry{Pattern: pattern})
	}
	with.Entries[i].Allow = append(slices.Clone(with.Entries[i].Allow), r)
	return must(Compile(with))
}

// neighbours returns requests that differ from req in one field.
func neighbours(req Request) []Request {
	var all []Request
	add := func(change func(*Request)) {
		next := req
		change(&next)
		all = append(all, next)
	}
	for _, id := range []string{"spiffe://td/a", "spiffe://td/b", "spiffe://td/a/b", "spiffe://td.x/a"} {
		add(func(r *Request) { r.ID = spiffeid.RequireFromString(id) })
	}
	for _, port := range []uint16{80, 443, 444, 8080} {
		add(func(r *Request) { r.Dest.Port = port })
	}
	for _, host := range []string{"x", "a.x", "b.a.x", "y", "8.8.8.8", "10.0.0.1"} {
		add(func(r *Request) { r.Dest.Host = must(ParseHost(host)) })
	}
	for _, method := range []string{"GET", "HEAD", "POST"} {
		for _, path := range []string{"/p", "/p/", "/p/q", "/p/q/r", "/q", Asterisk} {
			for _, upgrade := range []Upgrade{NoUpgrade, MustUpgrade} {
				add(func(r *Request) { r.Method, r.Path, r.Upgrade = method, path, upgrade })
			}
		}
	}
	add(func(r *Request) { r.Method, r.Path, r.Upgrade = "", "", NoUpgrade })
	return all
}

// comesAlong reports whether every rule that allows the request of d also allows the
// request other: a rule for a tunnel admits plain requests, a rule for upgrades admits
// the request without one, and if only the upgrade was missing the new rule admits what
// the rule that missed admits.
func comesAlong(d *Decision, why Reason, other Request) bool {
	switch {
	case other.ID != d.ID:
		return false
	case why == IdentityUnknown: // with an entry the rules for everyone apply to the identity
		return true
	case other.Dest != d.Dest:
		return false
	case d.Method == "":
		return other.Upgrade == NoUpgrade
	case d.Upgrade == NoUpgrade:
		return false
	case other.Method == d.Method && other.Path == d.Path:
		return true
	}
	other.Upgrade = NoUpgrade
	return why == UpgradeNotAllowed && d.missed.miss(&other) == NoReason
}

// TestARemedyOpensTheDeniedRequest checks that the rule of a remedy allows the denied
// request, and no other request that was denied before.
func TestARemedyOpensTheDeniedRequest(t *testing.T) {
	offered := map[Reason]int{}
	eachPolicy(t, func(g generator, spec *Spec, p *Policy) {
		for range 10 {
			req := g.request()
			d := p.Decide(req)
			why := max(d.Reason, d.WouldReason)
			r := d.Remedy(why).Rule
			if r == nil {
				continue
			}
			offered[why]++
			after := remedied(spec, req.ID, *r)
			if now := after.Decide(req); now.Verdict != Allow {
				t.Errorf("%s %s to %s %s was %s, and with %+v it is %s", req.ID, req.Method, req.Dest, req.Path, why, r, answer(now))
			}
			for _, other := range neighbours(req) {
				before, now := p.Decide(other), after.Decide(other)
				if now.Verdict == Allow && before.Verdict != Allow && other != req && other != d.Request && !comesAlong(&d, why, other) {
					t.Errorf("%s %s to %s %s (%d) was %s: %+v opens %s %s to %s %s (%d), too", req.ID, req.Method, req.Dest, req.Path, req.Upgrade, why, r, other.ID, other.Method, other.Dest, other.Path, other.Upgrade)
				}
			}
		}
	})
	for _, why := range []Reason{IdentityUnknown, NotOnAllowlist, PortNotAllowed, RuleExpired, UpgradeNotAllowed, MethodNotAllowed, PathNotAllowed, IPNotOnAllowlist} {
		if offered[why] == 0 {
			t.Errorf("no rule was offered for %s", why)
		}
	}
}

// TestARemedyOfAName checks that the rule of a name's remedy allows no connection, and no
// other query type that was denied before.
func TestARemedyOfAName(t *testing.T) {
	offered := map[Reason]int{}
	eachPolicy(t, func(g generator, spec *Spec, p *Policy) {
		for range 10 {
			req := g.request()
			if req.Dest.Host.IsAddr() {
				continue
			}
			ask := NameRequest{ID: req.ID, Proof: req.Proof, Host: req.Dest.Host, Type: pick(g, TypeA, TypeTXT, TypeSRV, TypeHTTPS), Time: req.Time}
			d := p.DecideName(ask)
			why := max(d.Reason, d.WouldReason)
			r := d.Remedy(why).Rule
			if r == nil {
				continue
			}
			offered[why]++
			after := remedied(spec, req.ID, *r)
			if now := after.DecideName(ask); now.Verdict != Allow {
				t.Errorf("%s of %s was %s, and with %+v it is %s", ask.Type, ask.Host, why, r, now.Reason)
			}
			if why == IdentityUnknown { // with an entry the rules for everyone apply to it
				continue
			}
			for _, other := range neighbours(req) {
				if before := p.Decide(other); after.Decide(other).Verdict == Allow && before.Verdict != Allow {
					t.Errorf("%s of %s was %s: %+v opens %s to %s", ask.Type, ask.Host, why, r, other.Method, other.Dest)
				}
			}
			for _, kind := range QueryTypes() {
				other := ask
				other.Type = kind
				if before := p.DecideName(other); after.DecideName(other).Verdict == Allow && before.Verdict != Allow && kind != ask.Type && !ruleTypes.has(kind) {
					t.Errorf("%s of %s was %s: %+v opens %s, too", ask.Type, ask.Host, why, r, kind)
				}
			}
		}
	})
	for _, why := range []Reason{IdentityUnknown, NotOnAllowlist, RuleExpired, TypeNotAllowed, SpecialName} {
		if offered[why] == 0 {
			t.Errorf("no rule was offered for %s", why)
		}
	}
}
