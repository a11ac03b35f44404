package live

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// What changes, as sentences.

func another(p *allowlist.Policy) Change { return Change{Policy: p} }

func sameRules(p *allowlist.Policy) Change { return Change{Policy: p, SameRules: true} }

func cutting(names ...string) Change {
	lines := make([]allowlist.Quarantined, 0, len(names))
	for _, name := range names {
		lines = append(lines, allowlist.Quarantined{Pattern: must(allowlist.ParseIdentityPattern(spiffe(name)))})
	}
	return Change{Quarantine: allowlist.NewQuarantineList(lines)}
}

// hostAt says that an address is one of this host.
func hostAt(addr string) Change {
	return Change{Classifier: allowlist.NewClassifier(allowlist.Local{Addresses: []netip.Addr{netip.MustParseAddr(addr)}})}
}

// together is several things that have come at the same time.
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

// asks returns why the state in force refuses what a flow is for.
func (r *rig) asks(f *flow) allowlist.Reason {
	req := f.Decided.Request
	req.Time = time.Now()
	d := r.current.Load().Decide(req)
	if d.Allowed() && d.CheckAddr(f.Decided.Addr) != nil {
		return allowlist.ResolvedAddressDenied
	}
	return d.Reason
}

// inForce returns the version of the policy in force; "" is none.
func (r *rig) inForce() string {
	if s := r.current.Load(); s != nil {
		return s.Policy.Version()
	}
	return ""
}

// TestNothingIsInForceBeforePolicyAndQuarantineHaveCome, whatever comes first and
// however sure somebody is of it.
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
				// What came before the state could be made counts in it.
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

// TestWhatAChangeDoes puts changes in force over a policy "one" that allows
// x.example, one after the other. A tunnel to it is open.
func TestWhatAChangeDoes(t *testing.T) {
	one, two, three := named("one", entry("*", to("x.example"))), named("two", entry("*", to("y.example"))), named("three", entry("*", to("*.example")))
	type step struct {
		confirm  bool
		change   Change
		effect   Effect
		inForce  string           // version
		refused  allowlist.Reason // why the next one like the tunnel is refused; NoReason if it is not
		told     int              // enforcements
		ended    ending           // of the tunnel, in this step
		isClosed bool             // the tunnel has left before
	}
	revoked := ending{tunnel.Revoked, allowlist.NotOnAllowlist}
	cut := ending{tunnel.Quarantined, allowlist.QuarantinedIdentity}
	inner := ending{tunnel.Revoked, allowlist.ResolvedAddressDenied}
	held := step{change: another(two), effect: Held, inForce: "one", told: 1}
	for _, row := range []struct {
		name  string
		steps []step
	}{
		{"nothing has come", []step{{inForce: "one"}, {confirm: true, inForce: "one"}}},
		{"another version of the same rules says nothing, until something else does", []step{
			{change: sameRules(three), inForce: "one"},
			{confirm: true, change: sameRules(three), inForce: "one"},
			{change: cutting("b"), effect: InForce, inForce: "three", told: 1},
		}},
		{"a quarantine list comes with another version of the same rules", []step{
			{change: together(sameRules(named("one-b", entry("*", to("x.example")))), cutting("b")), effect: InForce, inForce: "one-b", told: 1},
		}},
		{"a policy that closes nothing", []step{{change: another(three), effect: InForce, inForce: "three", told: 1}}},
		{"a policy that closes too much", []step{held}},
		{"a quarantine is never held, however much it closes", []step{
			{change: cutting("a"), effect: InForce, inForce: "one", refused: allowlist.QuarantinedIdentity, told: 1, ended: cut},
		}},
		{"an address of the host is never held", []step{
			{change: hostAt("8.8.8.8"), effect: InForce, inForce: "one", refused: allowlist.ResolvedAddressDenied, told: 1, ended: inner},
		}},
		{"somebody is sure of what comes", []step{
			{confirm: true, change: another(two), effect: InForce, inForce: "two", refused: allowlist.NotOnAllowlist, told: 1, ended: revoked},
		}},
		{"somebody is sure of what is held", []step{
			held,
			{confirm: true, effect: InForce, inForce: "two", refused: allowlist.NotOnAllowlist, told: 1, ended: revoked},
			{confirm: true, inForce: "two", refused: allowlist.NotOnAllowlist}, // it is not held any more
		}},
		{"nothing new is no confirmation, nor is another version of what is held", []step{
			held, {inForce: "one"}, {change: sameRules(two), inForce: "one"},
		}},
		{"a quarantine goes over the policy that stays", []step{
			held,
			{change: cutting("a"), inForce: "one", refused: allowlist.QuarantinedIdentity, told: 1, ended: cut},
		}},
		{"an address of the host goes over the policy that stays", []step{
			held,
			{change: hostAt("8.8.8.8"), inForce: "one", refused: allowlist.ResolvedAddressDenied, told: 1, ended: inner},
		}},
		{"a quarantine that comes with the policy that is held", []step{
			{change: together(another(two), cutting("a")), effect: Held, inForce: "one", refused: allowlist.QuarantinedIdentity, told: 2, ended: cut},
		}},
		{"what is held stays so when it would close nothing any more", []step{
			held,
			{isClosed: true, change: cutting("b"), inForce: "one", told: 1},
			{change: hostAt("1.1.1.1"), inForce: "one", told: 1},
			{confirm: true, effect: InForce, inForce: "two", refused: allowlist.NotOnAllowlist, told: 1},
		}},
		{"yet another policy takes the place of the one that is held", []step{
			held,
			{change: another(three), effect: InForce, inForce: "three", told: 1},
			{confirm: true, inForce: "three"}, // nothing is held
			{change: cutting("b"), effect: InForce, inForce: "three", told: 1},
		}},
		{"yet another policy is held, too", []step{
			held,
			{change: another(named("four", entry("*", to("z.example")))), effect: Held, inForce: "one", told: 1},
			{confirm: true, effect: InForce, inForce: "four", refused: allowlist.NotOnAllowlist, told: 1, ended: revoked},
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, func(cfg *EnforcerConfig) { cfg.MaxRevoke = 0.3 })
			if got := r.Confirm(t.Context(), together(another(one), cutting())); got != InForce {
				t.Fatalf("the first policy: effect %d", got)
			}
			f := newFlow("a", "x.example")
			r.open(f)
			for i, s := range row.steps {
				if s.isClosed {
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
				if got := r.asks(f); got != s.refused {
					t.Errorf("step %d: the next one is refused as %q, want %q", i, got, s.refused)
				}
				if got := f.ended(); got != s.ended {
					t.Errorf("step %d: the tunnel was ended by %v, want %v", i, got, s.ended)
				}
				if len(r.did) != s.told || s.told > 0 && r.did[0].Held != (s.effect == Held) {
					t.Errorf("step %d: told of %+v, want %d enforcements", i, r.did, s.told)
				}
			}
		})
	}
}

// TestThePolicyThatStaysKeepsWhatGoesOverIt: one that is confirmed has the
// quarantine and the addresses that came while it was held, and one that is put in
// force has those that came before it.
func TestThePolicyThatStaysKeepsWhatGoesOverIt(t *testing.T) {
	r := newRig(t, func(cfg *EnforcerConfig) { cfg.MaxRevoke = 0.3 })
	r.Confirm(t.Context(), together(another(named("one", entry("*", to("x.example")))), cutting("b")))
	r.open(newFlow("a", "x.example"))
	r.Apply(t.Context(), another(named("two", entry("*", to("y.example")))))
	r.Apply(t.Context(), together(cutting("b", "c"), hostAt("8.8.4.4")))
	r.Confirm(t.Context(), Change{})
	there := newFlow("d", "y.example")
	there.Decided.Addr = netip.MustParseAddrPort("8.8.4.4:443")
	for name, want := range map[string]allowlist.Reason{"b": allowlist.QuarantinedIdentity, "c": allowlist.QuarantinedIdentity, "d": allowlist.NoReason} {
		if got := r.asks(newFlow(name, "y.example")); got != want {
			t.Errorf("%s is refused as %q, want %q", name, got, want)
		}
	}
	if got := r.asks(there); got != allowlist.ResolvedAddressDenied {
		t.Errorf("an address of the host is refused as %q", got)
	}
}

// TestTrustChangedHoldsNothingAndReleasesNothing while a policy is held: the one
// that stays is put in force once more.
func TestTrustChangedHoldsNothingAndReleasesNothing(t *testing.T) {
	r := newRig(t, func(cfg *EnforcerConfig) { cfg.MaxRevoke = 0.3 })
	r.Confirm(t.Context(), together(another(named("one", entry("*", to("x.example")))), cutting()))
	r.open(newFlow("a", "x.example"))
	if got := r.Apply(t.Context(), another(named("two", entry("*", to("y.example"))))); got != Held {
		t.Fatalf("effect %d, want %d", got, Held)
	}
	if did := r.TrustChanged(t.Context()); did.Held || did.State.Policy.Version() != "one" || did.State.Generation != 2 {
		t.Errorf("%+v of %+v", did, did.State)
	}
	if got := r.Confirm(t.Context(), Change{}); got != InForce || r.inForce() != "two" {
		t.Errorf("effect %d, in force %q", got, r.inForce())
	}
}

// TestThePolicyThatIsHeldIsTheFirst: connections may stand before there is any
// policy. Then nothing is in force until it is confirmed, whatever else comes.
func TestThePolicyThatIsHeldIsTheFirst(t *testing.T) {
	r := newRig(t, func(cfg *EnforcerConfig) { cfg.MaxRevoke = 0.3 })
	f := newFlow("a", "x.example")
	r.open(f)
	if got := r.Apply(t.Context(), together(another(named("one", entry("*", to("y.example")))), Change{})); got != Unchanged {
		t.Errorf("without a quarantine list: effect %d", got)
	}
	if got := r.Apply(t.Context(), together(another(named("one", entry("*", to("y.example")))), cutting())); got != Held {
		t.Errorf("effect %d, want %d", got, Held)
	}
	if got := r.asks(newFlow("b", "y.example")); got != allowlist.PolicyUnavailable {
		t.Errorf("while it is held: refused as %q", got)
	}
	if got := r.Confirm(t.Context(), Change{}); got != InForce || r.asks(newFlow("b", "y.example")) != allowlist.NoReason {
		t.Errorf("confirmed: effect %d, refused as %q", got, r.asks(newFlow("b", "y.example")))
	}
}

// TestChangesAtTheSameTime come from the goroutines that follow policy, identity
// and addresses. Each is told with a generation of its own, and the last of each
// kind counts at the end.
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
