package live

import (
	"context"
	"crypto/x509"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// The following functions make the changes of these tests.

func another(p *allowlist.Policy) Change { return Change{Policy: p} }

func sameRules(p *allowlist.Policy) Change { return Change{Policy: p, SameRules: true} }

func cutting(names ...string) Change {
	lines := make([]allowlist.Quarantined, 0, len(names))
	for _, name := range names {
		lines = append(lines, allowlist.Quarantined{Pattern: must(allowlist.ParseIdentityPattern(spiffe(name)))})
	}
	return Change{Quarantine: allowlist.NewQuarantineList(lines)}
}

// hostAt returns a change after which an address belongs to the gateway's host.
func hostAt(addr string) Change {
	return Change{Classifier: allowlist.NewClassifier(allowlist.Local{Addresses: []netip.Addr{netip.MustParseAddr(addr)}})}
}

// together returns one change that contains all of changes.
func together(changes ...Change) Change {
	var all Change
	for _, c := range changes {
		if c.Policy != nil {
			all.Policy, all.SameRules = c.Policy, c.SameRules
		}
		if c.Quarantine != nil {
			all.Quarantine = c.Quarantine
		}
		if c.Classifier != nil {
			all.Classifier = c.Classifier
		}
	}
	return all
}

func named(version string, entries ...allowlist.Entry) *allowlist.Policy {
	return must(allowlist.Compile(allowlist.Spec{Version: version, Entries: entries}))
}

// asks returns the reason for which the state in force refuses a new request like that
// of a flow.
func (r *rig) asks(f *flow) allowlist.Reason {
	req := f.Decided.Request
	req.Time = time.Now()
	d := r.current.Load().Decide(req)
	if d.Allowed() && d.CheckAddr(f.Decided.Addr) != nil {
		return allowlist.ResolvedAddressDenied
	}
	return d.Reason
}

// inForce returns the version of the policy in force, or "" if there is none.
func (r *rig) inForce() string {
	if s := r.current.Load(); s != nil {
		return s.Policy.Version()
	}
	return ""
}

// TestNothingIsInForceBeforePolicyAndQuarantineHaveCome checks that the first state is
// put in force only when a policy and a quarantine list have both come, in either order,
// even if Confirm brings the first of them.
func TestNothingIsInForceBeforePolicyAndQuarantineHaveCome(t *testing.T) {
	first, host := another(named("one", entry("*", to("*.example")))), hostAt("8.8.8.8")
	for _, row := range []struct {
		name         string
		before, last Change
	}{
		{"a quarantine list alone is no policy", together(cutting("a"), host), first},
		{"a policy whose quarantine was never read lets nobody in", together(first, host), cutting("a")},
	} {
		for name, put := range map[string]func(*Enforcer, context.Context, Change) Effect{
			"applied": (*Enforcer).Apply, "confirmed": (*Enforcer).Confirm,
		} {
			t.Run(row.name+", "+name, func(t *testing.T) {
				r := newRig(t, nil)
				if got := put(r.Enforcer, t.Context(), row.before); got != Unchanged || r.current.Load() != nil || len(r.did) > 0 {
					t.Fatalf("effect %d, in force %+v, told of %+v", got, r.current.Load(), r.did)
				}
				if got := put(r.Enforcer, t.Context(), row.last); got != InForce || r.inForce() != "one" {
					t.Fatalf("effect %d, in force %q; want %d and the policy", got, r.inForce(), InForce)
				}
				// The state contains what came before it could be made.
				if got := r.asks(newFlow("a", "x.example")); got != allowlist.QuarantinedIdentity {
					t.Errorf("a is refused as %q, want its quarantine", got)
				}
				if got := r.asks(newFlow("b", "x.example")); got != allowlist.ResolvedAddressDenied {
					t.Errorf("an address of the host is refused as %q", got)
				}
			})
		}
	}
}

// holding configures an enforcer so that it holds a change that ends something of more
// than one identity and of more than three identities of ten.
func holding(cfg *EnforcerConfig) { cfg.MaxRevoke = MaxRevoke{Share: 0.3, AtLeast: 1} }

// TestWhatAChangeDoes puts changes in force, one after the other, over a policy "one"
// that allows x.example. It checks the effect of each on what is in force and on two
// open tunnels to x.example, one of a and one of b.
func TestWhatAChangeDoes(t *testing.T) {
	one, two, three := named("one", entry("*", to("x.example"))), named("two", entry("*", to("y.example"))), named("three", entry("*", to("*.example")))
	type step struct {
		confirm bool
		change  Change
		left    int // how many of the tunnels, counted from the last, have left before this step
		effect  Effect
		inForce string           // version
		refused allowlist.Reason // why a new request like those of the tunnels is refused; NoReason if it is allowed
		told    int              // number of calls of Enforced
		a, b    ending           // how the tunnels are ended in this step
	}
	const denied = allowlist.NotOnAllowlist
	revoked := ending{tunnel.Revoked, denied}
	cut := ending{tunnel.Quarantined, allowlist.QuarantinedIdentity}
	inner := ending{tunnel.Revoked, allowlist.ResolvedAddressDenied}
	held := step{change: another(two), effect: Held, inForce: "two", refused: denied, told: 1}
	for _, row := range []struct {
		name  string
		steps []step
	}{
		{"an empty change has no effect", []step{{inForce: "one"}, {confirm: true, inForce: "one"}}},
		{"another version of the same rules is reported only with the next effective change", []step{
			{change: sameRules(three), inForce: "one"},
			{confirm: true, change: sameRules(three), inForce: "one"},
			{change: cutting("c"), effect: InForce, inForce: "three", told: 1},
		}},
		{"a quarantine list comes with another version of the same rules", []step{
			{change: together(sameRules(named("one-b", entry("*", to("x.example")))), cutting("c")), effect: InForce, inForce: "one-b", told: 1},
		}},
		{"a policy that closes nothing", []step{{change: another(three), effect: InForce, inForce: "three", told: 1}}},
		{"a policy that ends a tunnel of one identity only is not held", []step{
			{change: another(named("two", denying(entry("a"), to("x.example")), entry("*", to("x.example")))), effect: InForce, inForce: "two", refused: allowlist.DeniedByRule, told: 1, a: ending{tunnel.Revoked, allowlist.DeniedByRule}},
		}},
		{"a policy that ends tunnels of too many identities is in force, and ends nothing", []step{held}},
		{"a quarantine is never held, however much it closes", []step{
			{change: cutting("a", "b"), effect: InForce, inForce: "one", refused: allowlist.QuarantinedIdentity, told: 1, a: cut, b: cut},
		}},
		{"a quarantine in the policy is never held", []step{
			{change: another(must(allowlist.Compile(allowlist.Spec{
				Version: "two", Entries: []allowlist.Entry{entry("*", to("x.example"))},
				Quarantine: []allowlist.Quarantined{{Pattern: must(allowlist.ParseIdentityPattern(spiffe("*")))}},
			}))), effect: InForce, inForce: "two", refused: allowlist.QuarantinedIdentity, told: 1, a: cut, b: cut},
		}},
		{"an address of the host is never held", []step{
			{change: hostAt("8.8.8.8"), effect: InForce, inForce: "one", refused: allowlist.ResolvedAddressDenied, told: 1, a: inner, b: inner},
		}},
		{"a confirmed policy is not held", []step{
			{confirm: true, change: another(two), effect: InForce, inForce: "two", refused: denied, told: 1, a: revoked, b: revoked},
		}},
		{"a held policy is confirmed", []step{
			held,
			{confirm: true, effect: InForce, inForce: "two", refused: denied, told: 1, a: revoked, b: revoked},
			{confirm: true, inForce: "two", refused: denied}, // a second confirmation has no effect
		}},
		{"neither an empty change nor another version of the held policy is a confirmation", []step{
			held,
			{inForce: "two", refused: denied},
			{change: sameRules(two), inForce: "two", refused: denied},
			{change: sameRules(named("two-b", entry("*", to("y.example")))), inForce: "two", refused: denied},
			{confirm: true, effect: InForce, inForce: "two-b", refused: denied, told: 1, a: revoked, b: revoked},
		}},
		{"a quarantine ends so much of what is held that the rest is no longer too much", []step{
			held,
			{change: cutting("a"), effect: InForce, inForce: "two", refused: allowlist.QuarantinedIdentity, told: 1, a: cut, b: revoked},
		}},
		{"a quarantine of an identity without tunnels leaves the policy held", []step{
			held,
			{change: cutting("c"), effect: Held, inForce: "two", refused: denied, told: 1},
		}},
		{"an address of the host ends what is held", []step{
			held,
			{change: hostAt("8.8.8.8"), effect: InForce, inForce: "two", refused: denied, told: 1, a: revoked, b: revoked},
		}},
		{"a quarantine that comes with the policy counts before the policy is judged", []step{
			{change: together(another(two), cutting("a")), effect: InForce, inForce: "two", refused: allowlist.QuarantinedIdentity, told: 1, a: cut, b: revoked},
		}},
		{"the next change judges held tunnels again", []step{
			held,
			{left: 1, change: cutting("c"), effect: InForce, inForce: "two", refused: denied, told: 1, a: revoked},
		}},
		{"a policy that restores what was allowed takes the place of the one that is held", []step{
			held,
			{change: another(three), effect: InForce, inForce: "three", told: 1},
			{confirm: true, inForce: "three"}, // nothing is held
			{change: cutting("c"), effect: InForce, inForce: "three", told: 1},
		}},
		{"while a second policy is held over a held one, tunnels stay open that the last enforced policy allows", []step{
			held,
			{change: another(named("four", entry("*", to("z.example")))), effect: Held, inForce: "four", refused: denied, told: 1},
			{change: another(named("five", entry("*", to("x.example")))), effect: InForce, inForce: "five", told: 1},
			{change: another(named("six", entry("*", to("z.example")))), effect: Held, inForce: "six", refused: denied, told: 1},
			{confirm: true, effect: InForce, inForce: "six", refused: denied, told: 1, a: revoked, b: revoked},
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, holding)
			if got := r.Confirm(t.Context(), together(another(one), cutting())); got != InForce {
				t.Fatalf("the first policy: effect %d", got)
			}
			flows := []*flow{newFlow("a", "x.example"), newFlow("b", "x.example")}
			r.open(flows...)
			for i, s := range row.steps {
				for _, f := range flows[len(flows)-s.left:] {
					r.registry.Remove(f.Entry)
				}
				r.did = nil
				put := r.Apply
				if s.confirm {
					put = r.Confirm
				}
				if got := put(t.Context(), s.change); got != s.effect {
					t.Errorf("step %d: effect %d, want %d", i, got, s.effect)
				}
				if got := r.inForce(); got != s.inForce {
					t.Errorf("step %d: %q is in force, want %q", i, got, s.inForce)
				}
				if got := r.asks(flows[0]); got != s.refused {
					t.Errorf("step %d: the next one is refused as %q, want %q", i, got, s.refused)
				}
				if got := [2]ending{flows[0].ended(), flows[1].ended()}; got != [2]ending{s.a, s.b} {
					t.Errorf("step %d: the tunnels were ended by %v, want %v and %v", i, got, s.a, s.b)
				}
				if len(r.did) != s.told {
					t.Errorf("step %d: told of %+v, want %d enforcements", i, r.did, s.told)
				}
				for _, did := range r.did {
					if did.Held.IsZero() == (s.effect == Held) || did.Held != r.Held() {
						t.Errorf("step %d: told of %+v, held %+v", i, did, r.Held())
					}
				}
			}
		})
	}
}

// TestTrustChangedKeepsAPolicyHeld checks that a change of the trust bundles while a
// policy is held ends the tunnels of untrusted callers, and leaves the others held.
func TestTrustChangedKeepsAPolicyHeld(t *testing.T) {
	gone := ""
	r := newRig(t, func(cfg *EnforcerConfig) {
		holding(cfg)
		cfg.Trusts = func(certs []*x509.Certificate) bool { return string(certs[0].Raw) != gone }
	})
	r.Confirm(t.Context(), together(another(named("one", entry("*", to("x.example")))), cutting()))
	flows := []*flow{newFlow("a", "x.example"), newFlow("b", "x.example"), newFlow("c", "x.example")}
	r.open(flows...)
	if got := r.Apply(t.Context(), another(named("two", entry("*", to("y.example"))))); got != Held {
		t.Fatalf("effect %d, want %d", got, Held)
	}
	gone = "a"
	did := r.TrustChanged(t.Context())
	if want := (Hold{Entries: 2, Identities: 2, OfIdentities: 2}); did.Held != want || did.State.Policy.Version() != "two" || did.State.Generation != 3 {
		t.Errorf("%+v of %+v, want %+v held", did, did.State, want)
	}
	if got, want := flows[0].ended(), (ending{tunnel.Revoked, allowlist.IdentityUntrusted}); got != want {
		t.Errorf("who is not trusted: ended by %v, want %v", got, want)
	}
	if got := r.Confirm(t.Context(), Change{}); got != InForce || flows[1].ended() == (ending{}) || flows[2].ended() == (ending{}) {
		t.Errorf("effect %d", got)
	}
}

// TestChangesAtTheSameTime checks concurrent changes by the goroutines that follow
// policy, identity and addresses: each is reported with a generation of its own, and the
// last change of each kind is in force at the end.
func TestChangesAtTheSameTime(t *testing.T) {
	const times = 50
	r := newRig(t, nil)
	r.Confirm(t.Context(), together(another(named("one", entry("*", to("x.example")))), cutting()))
	done := make(chan struct{})
	for _, change := range []func(n int){
		func(n int) {
			r.Apply(t.Context(), another(named("p", entry("*", to([]string{"x.example", "y.example"}[n%2])))))
		},
		func(n int) { r.Apply(t.Context(), cutting([]string{"a", "b"}[n%2])) },
		func(int) { r.Confirm(t.Context(), hostAt("8.8.4.4")) },
		func(int) { r.TrustChanged(t.Context()) },
	} {
		go func() {
			defer func() { done <- struct{}{} }()
			for n := range times {
				change(n)
			}
		}()
	}
	for range 4 {
		<-done
	}
	generations := make([]uint64, 0, len(r.did))
	for _, did := range r.did {
		generations = append(generations, did.State.Generation)
	}
	if len(r.did) != 4*times+1 || !slices.IsSorted(generations) || generations[len(generations)-1] != 4*times+1 {
		t.Errorf("told %d times, of the generations %v", len(r.did), generations)
	}
	for name, want := range map[string]allowlist.Reason{"a": allowlist.NoReason, "b": allowlist.QuarantinedIdentity} {
		if got := r.asks(newFlow(name, "y.example")); got != want {
			t.Errorf("%s is refused as %q, want %q", name, got, want)
		}
	}
}
