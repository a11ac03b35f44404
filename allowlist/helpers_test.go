package allowlist

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// must returns v and panics if there is an error. It is for calls whose input is valid.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const (
	checkout = "spiffe://prod.example/ns/payments/sa/checkout"
	builder  = "spiffe://prod.example/ns/ci/sa/builder"
)

func now() time.Time { return time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC) }

// rule parses text such as "api.example", "*.example:443,8000-8999" or "10.0.0.0/8:80"
// into a rule; options set its other fields.
func rule(text string, options ...func(*Rule)) Rule {
	r := Rule{At: "policy.yaml:1"}
	target, ports := text, ""
	if i := strings.LastIndex(text, " port "); i >= 0 {
		target, ports = text[:i], text[i+len(" port "):]
	}
	if strings.Contains(target, "/") {
		r.CIDR = netip.MustParsePrefix(target)
	} else {
		r.Host = must(ParseHostPattern(target))
	}
	if ports != "" {
		for p := range strings.SplitSeq(ports, ",") {
			r.Ports = append(r.Ports, must(ParsePortRange(p)))
		}
	}
	for _, option := range options {
		option(&r)
	}
	return r
}

func named(name string) func(*Rule) { return func(r *Rule) { r.Name = name } }

func expires(at time.Time) func(*Rule) { return func(r *Rule) { r.Expires = at } }

func methods(methods ...string) func(*Rule) { return func(r *Rule) { r.Methods = methods } }

func paths(paths ...string) func(*Rule) {
	return func(r *Rule) {
		for _, p := range paths {
			r.Paths = append(r.Paths, must(ParsePathPattern(p)))
		}
	}
}

func addresses(prefixes ...string) func(*Rule) {
	return func(r *Rule) {
		r.Addresses = []netip.Prefix{}
		for _, p := range prefixes {
			r.Addresses = append(r.Addresses, netip.MustParsePrefix(p))
		}
	}
}

func noTunnel(r *Rule) { r.NoTunnel = true }

func upgrade(r *Rule) { r.Upgrade = true }

// entryOf returns an entry for an identity pattern. Its options follow.
func entryOf(id string, options ...func(*Entry)) Entry {
	e := Entry{}
	if td, ok := strings.CutPrefix(id, "everyone of "); ok {
		e.Pattern = EveryonePattern(spiffeid.RequireTrustDomainFromString(td))
	} else {
		e.Pattern = must(ParseIdentityPattern(id))
	}
	for _, option := range options {
		option(&e)
	}
	return e
}

func allow(rules ...Rule) func(*Entry) {
	return func(e *Entry) { e.Allow = append(e.Allow, rules...) }
}

func deny(rules ...Rule) func(*Entry) {
	return func(e *Entry) { e.Deny = append(e.Deny, rules...) }
}

func observe(until time.Time) func(*Entry) {
	return func(e *Entry) { e.Mode, e.ObserveUntil = ModeObserve, until }
}

func enforce(e *Entry) { e.Mode = ModeEnforce }

func inherit(e *Entry) { e.InheritMode = true }

func force(e *Entry) { e.Mode, e.Force = ModeEnforce, true }

func policyOf(t *testing.T, entries ...Entry) *Policy {
	t.Helper()
	p, err := Compile(Spec{Version: "v1", Entries: entries})
	if err != nil {
		t.Fatalf("compiling: %v", err)
	}
	return p
}

// tunnel returns a CONNECT to dest by id, which a certificate proves.
func tunnel(id, dest string) Request {
	return Request{
		ID: spiffeid.RequireFromString(id), Proof: ProofX509SVID,
		Dest: must(ParseDestination(dest)), Time: now(),
	}
}

func plain(id, method, dest, path string) Request {
	r := tunnel(id, dest)
	r.Method, r.Path = method, path
	return r
}

func at(r Request, t time.Time) Request {
	r.Time = t
	return r
}

// answer returns a decision as text for the rows of tests: "allow" or "allow by NAME" (of
// the rule), "observe REASON", or the reason of a denial.
func answer(d Decision) string {
	switch d.Verdict {
	case Allow:
		if d.Rule != nil && d.Rule.Rule.Name != "" {
			return "allow by " + d.Rule.Name()
		}
		return "allow"
	case Observe:
		return "observe " + d.WouldReason.String()
	case Deny, Fail:
	}
	return d.Reason.String()
}
