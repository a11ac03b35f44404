package live

import (
	"context"
	"crypto/x509"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// must returns v. It is for calls with constant arguments, whose errors cannot occur.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func spiffe(name string) string { return "spiffe://td.example/" + name }

// The following functions make the policies of these tests.

func to(host string) allowlist.Rule {
	return allowlist.Rule{Host: must(allowlist.ParseHostPattern(host))}
}

func until(r allowlist.Rule, end time.Time) allowlist.Rule {
	r.Expires = end
	return r
}

func onlyAt(r allowlist.Rule, ranges ...string) allowlist.Rule {
	for _, cidr := range ranges {
		r.Addresses = append(r.Addresses, netip.MustParsePrefix(cidr))
	}
	return r
}

func entry(name string, allow ...allowlist.Rule) allowlist.Entry {
	return allowlist.Entry{Pattern: must(allowlist.ParseIdentityPattern(spiffe(name))), Allow: allow}
}

func denying(e allowlist.Entry, rules ...allowlist.Rule) allowlist.Entry {
	e.Deny = rules
	return e
}

func observing(e allowlist.Entry, end time.Time) allowlist.Entry {
	e.Mode, e.ObserveUntil = allowlist.ModeObserve, end
	return e
}

// policy allows some hosts to some identities, a few of them until a date.
func policy(entries ...allowlist.Entry) *allowlist.Policy {
	return must(allowlist.Compile(allowlist.Spec{Version: "v", Entries: entries}))
}

func quarantining(p *allowlist.Policy, name string) *allowlist.Policy {
	return p.WithQuarantine(allowlist.NewQuarantineList([]allowlist.Quarantined{
		{Pattern: must(allowlist.ParseIdentityPattern(spiffe(name)))},
	}))
}

// ending is how a tunnel was ended; zero if it was not.
type ending struct {
	Close tunnel.Reason
	Why   allowlist.Reason
}

// flow is a tunnel to a public address, of a caller whose certificate contains its name.
type flow struct {
	*Entry
	told chan ending // has room for one ending; a second one would block the test
}

func newFlow(name, host string) *flow {
	f := &flow{Entry: &Entry{Start: time.Now()}, told: make(chan ending, 1)}
	f.Decided.Request = allowlist.Request{
		ID: spiffeid.RequireFromString(spiffe(name)), Proof: allowlist.ProofX509SVID,
		Dest: must(allowlist.ParseDestination(host + ":443")),
	}
	f.Decided.Addr, f.Decided.FirstBytes = netip.MustParseAddrPort("8.8.8.8:443"), FirstBytesHello
	f.Certificates = []*x509.Certificate{{Raw: []byte(name)}}
	f.End = func(r tunnel.Reason, why allowlist.Reason) { f.told <- ending{r, why} }
	return f
}

func (f *flow) ended() ending {
	select {
	case e := <-f.told:
		return e
	default:
		return ending{}
	}
}

func trustAll([]*x509.Certificate) bool { return true }

// rig is an enforcer that keeps what it has reported.
type rig struct {
	*Enforcer
	current  Current
	registry Registry
	did      []Enforcement // calls of Enforced; to be read while the enforcer does nothing
}

func newRig(t *testing.T, change func(*EnforcerConfig)) *rig {
	t.Helper()
	r := &rig{}
	cfg := EnforcerConfig{
		Current: &r.current, Registry: &r.registry, Trusts: trustAll,
		Enforced: func(_ context.Context, e Enforcement) { r.did = append(r.did, e) },
	}
	if change != nil {
		change(&cfg)
	}
	r.Enforcer = must(NewEnforcer(cfg))
	return r
}

// put puts a policy in force without the checks of Apply and Confirm.
func (r *rig) put(ctx context.Context, p *allowlist.Policy) Enforcement {
	return putBy(ctx, r.Enforcer, p)
}

func putBy(ctx context.Context, e *Enforcer, p *allowlist.Policy) Enforcement {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.put(ctx, OccasionState, p)
}

func (r *rig) open(flows ...*flow) {
	for _, f := range flows {
		r.registry.Add(f.Entry)
	}
}

// run runs the enforcer, in a synctest bubble, until the test ends.
func (r *rig) run(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	synctest.Wait()
}

func TestAnEnforcerNeedsStateAndRegistry(t *testing.T) {
	for _, cfg := range []EnforcerConfig{{}, {Current: &Current{}}, {Registry: &Registry{}}} {
		if e, err := NewEnforcer(cfg); err == nil || e != nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
}

func TestPutEndsWhatIsForbidden(t *testing.T) {
	later := time.Now().Add(time.Hour)
	revoked := func(why allowlist.Reason) ending { return ending{tunnel.Revoked, why} }
	for _, row := range []struct {
		name   string
		next   *allowlist.Policy
		change func(*flow)
		want   ending
	}{
		{name: "the same rule", next: policy(entry("a", to("x.example")))},
		{name: "a wider rule", next: policy(entry("*", to("*.example")))},
		{name: "observed instead of allowed", next: policy(observing(entry("a"), later))},
		{name: "the rule is gone", next: policy(entry("a", to("y.example"))), want: revoked(allowlist.NotOnAllowlist)},
		{name: "the entry is gone", next: policy(entry("b", to("x.example"))), want: revoked(allowlist.IdentityUnknown)},
		{name: "the rule has expired", next: policy(entry("a", until(to("x.example"), time.Now().Add(-time.Hour)))), want: revoked(allowlist.RuleExpired)},
		{name: "a deny rule names the host", next: policy(denying(entry("a", to("x.example")), to("**.example"), to("x.example"))), want: revoked(allowlist.DeniedByRule)},
		{
			name: "a deny rule names the address", next: policy(denying(entry("a", to("x.example")), allowlist.Rule{CIDR: netip.MustParsePrefix("8.8.8.0/24")})),
			want: revoked(allowlist.ResolvedAddressDenied),
		},
		{name: "the rule has other addresses", next: policy(entry("a", onlyAt(to("x.example"), "1.1.1.1/32"))), want: revoked(allowlist.ResolvedAddressDenied)},
		{
			name: "the address is one of this host",
			next: policy(entry("a", to("x.example"))).WithClassifier(allowlist.NewClassifier(allowlist.Local{Addresses: []netip.Addr{netip.MustParseAddr("8.8.8.8")}})),
			want: revoked(allowlist.ResolvedAddressDenied),
		},
		{
			name: "it is still being dialled, address unknown", next: policy(entry("a", onlyAt(to("x.example"), "1.1.1.1/32"))),
			change: func(f *flow) { f.Decided.Addr = netip.AddrPort{} },
		},
		{
			name: "it is still being dialled, the rule is gone", next: policy(entry("a")),
			change: func(f *flow) { f.Decided.Addr = netip.AddrPort{} }, want: revoked(allowlist.NotOnAllowlist),
		},
		{
			name:   "certificates no longer count",
			next:   policy(allowlist.Entry{Pattern: entry("a").Pattern, Accept: allowlist.ProofsOf(allowlist.ProofListener), Allow: []allowlist.Rule{to("x.example")}}),
			change: func(*flow) {}, want: revoked(allowlist.IdentitySourceNotAccepted),
		},
		{name: "the identity is in quarantine", next: quarantining(policy(entry("a", to("x.example"))), "a"), want: ending{tunnel.Quarantined, allowlist.QuarantinedIdentity}},
		{name: "another identity is in quarantine", next: quarantining(policy(entry("a", to("x.example"))), "b")},
		{name: "there is no policy any more", next: nil, want: revoked(allowlist.PolicyUnavailable)},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.put(t.Context(), policy(entry("a", to("x.example"))))
			f := newFlow("a", "x.example")
			if row.change != nil {
				row.change(f)
			}
			r.open(f)
			did := r.put(t.Context(), row.next)
			if got := f.ended(); got != row.want {
				t.Errorf("ended by %s %q, want %s %q", got.Close, got.Why, row.want.Close, row.want.Why)
			}
			closed := 0
			if row.want != (ending{}) {
				closed = 1
			}
			if !did.Held.IsZero() || did.Open != 1 || did.Closed != closed || did.State != r.current.Load() || did.State.Generation != 2 {
				t.Errorf("enforcement %+v of %+v, want 1 open, %d closed by generation 2", did, did.State, closed)
			}
		})
	}
}

// TestAConnectionStaysAsLongAsItsCallerIsKnown checks that a connection for queries
// stays open while its caller is known and trusted, whatever the caller may reach.
func TestAConnectionStaysAsLongAsItsCallerIsKnown(t *testing.T) {
	onlyListeners := allowlist.Entry{Pattern: entry("a").Pattern, Accept: allowlist.ProofsOf(allowlist.ProofListener)}
	for _, row := range []struct {
		name string
		next *allowlist.Policy
		want ending
	}{
		{name: "an entry without rules", next: policy(entry("a"))},
		{name: "a wider entry", next: policy(entry("*"))},
		{name: "no entry", next: policy(entry("b", to("x.example"))), want: ending{tunnel.Revoked, allowlist.IdentityUnknown}},
		{name: "another proof", next: policy(onlyListeners), want: ending{tunnel.Revoked, allowlist.IdentitySourceNotAccepted}},
		{name: "quarantine", next: quarantining(policy(entry("a")), "a"), want: ending{tunnel.Quarantined, allowlist.QuarantinedIdentity}},
		{name: "no policy", want: ending{tunnel.Revoked, allowlist.PolicyUnavailable}},
	} {
		r := newRig(t, nil)
		r.put(t.Context(), policy(entry("a", to("x.example"))))
		f := newFlow("a", "x.example")
		f.Decided.Request.Dest, f.Decided.Addr = allowlist.Destination{}, netip.AddrPort{}
		r.open(f)
		if r.registry.Len() != 1 || r.registry.Tunnels() != 0 {
			t.Errorf("%s: %d open, %d of them tunnels", row.name, r.registry.Len(), r.registry.Tunnels())
		}
		r.put(t.Context(), row.next)
		if got := f.ended(); got != row.want {
			t.Errorf("%s: ended by %s %q, want %s %q", row.name, got.Close, got.Why, row.want.Close, row.want.Why)
		}
	}
	r := newRig(t, func(cfg *EnforcerConfig) { cfg.Trusts = nil })
	r.put(t.Context(), policy(entry("a")))
	f := newFlow("a", "x.example")
	f.Decided.Request.Dest, f.Decided.Addr = allowlist.Destination{}, netip.AddrPort{}
	r.open(f)
	r.TrustChanged(t.Context())
	if got := f.ended(); got.Why != allowlist.IdentityUntrusted {
		t.Errorf("an authority that has gone: ended by %v", got)
	}
	if (*State)(nil).Knows(f.Decided.Request.ID, f.Decided.Request.Proof) != allowlist.PolicyUnavailable {
		t.Error("no state knows somebody")
	}
}

// TestEndedEntryIsNotEndedAgain checks that a second policy and EndAll do not end an
// entry again that has not left yet, and do not count it.
func TestEndedEntryIsNotEndedAgain(t *testing.T) {
	r := newRig(t, nil)
	going, staying := newFlow("a", "x.example"), newFlow("a", "y.example")
	r.open(going, staying)
	for n, want := range [][2]int{{2, 1}, {1, 0}} {
		if did := r.put(t.Context(), policy(entry("a", to("y.example")))); did.Open != want[0] || did.Closed != want[1] {
			t.Errorf("reload %d closed %d of %d, want %d of %d", n+1, did.Closed, did.Open, want[1], want[0])
		}
	}
	r.registry.EndAll(tunnel.Drain)
	if got, want := going.ended(), (ending{tunnel.Revoked, allowlist.NotOnAllowlist}); got != want {
		t.Errorf("the forbidden one was told %v", got)
	}
	if got, want := staying.ended(), (ending{Close: tunnel.Drain}); got != want {
		t.Errorf("the other one was told %v", got)
	}
	if r.registry.Len() != 2 {
		t.Errorf("%d registered, want both until they leave", r.registry.Len())
	}
}

// TestTrustChangedEndsUntrustedTunnels checks that TrustChanged ends the tunnels whose
// certificates are no longer trusted, however many they are, and no tunnel without
// certificates.
func TestTrustChangedEndsUntrustedTunnels(t *testing.T) {
	for _, row := range []struct {
		name   string
		trusts func([]*x509.Certificate) bool
		want   map[string]ending
	}{
		{"everybody is trusted", trustAll, map[string]ending{}},
		{"one is not trusted", func(certs []*x509.Certificate) bool { return string(certs[0].Raw) != "b" }, map[string]ending{
			"b": {tunnel.Revoked, allowlist.IdentityUntrusted},
		}},
		{"without a function that verifies, nobody is trusted", nil, map[string]ending{
			"a": {tunnel.Revoked, allowlist.IdentityUntrusted}, "b": {tunnel.Revoked, allowlist.IdentityUntrusted},
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, func(cfg *EnforcerConfig) { cfg.Trusts, cfg.MaxRevoke = row.trusts, MaxRevoke{Share: 0.01, AtLeast: 1} })
			all := policy(entry("*", to("x.example")))
			r.put(t.Context(), all)
			flows := map[string]*flow{"a": newFlow("a", "x.example"), "b": newFlow("b", "x.example"), "of the listener": newFlow("c", "x.example")}
			flows["of the listener"].Certificates, flows["of the listener"].Decided.Request.Proof = nil, allowlist.ProofListener
			for _, f := range flows {
				r.open(f)
			}
			did := r.TrustChanged(t.Context())
			got := map[string]ending{}
			for name, f := range flows {
				if e := f.ended(); e != (ending{}) {
					got[name] = e
				}
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Error(diff)
			}
			if !did.Held.IsZero() || did.Closed != len(row.want) || did.State.Policy != all || did.State.Generation != 2 {
				t.Errorf("enforcement %+v of %+v", did, did.State)
			}
		})
	}
}

// TestTrustIsAskedOncePerChain checks that trust is verified once for each chain of
// certificates. Chains with the same leaf are different chains if their other
// certificates differ.
func TestTrustIsAskedOncePerChain(t *testing.T) {
	asked := 0
	r := newRig(t, func(cfg *EnforcerConfig) {
		cfg.Trusts = func(certs []*x509.Certificate) bool {
			asked++
			return len(certs) == 1
		}
	})
	r.put(t.Context(), policy(entry("a", to("x.example"))))
	alone, twin, other := newFlow("a", "x.example"), newFlow("a", "x.example"), newFlow("a", "x.example")
	other.Certificates = append(other.Certificates, &x509.Certificate{Raw: []byte("from elsewhere")})
	none := newFlow("a", "x.example")
	none.Certificates = []*x509.Certificate{}
	r.open(alone, twin, other, none)
	if did := r.TrustChanged(t.Context()); did.Closed != 2 || other.ended() == (ending{}) || none.ended() == (ending{}) {
		t.Errorf("%+v, want the other chain and the empty one to end", did)
	}
	if asked > 3 {
		t.Errorf("asked %d times about two chains", asked)
	}
}

func TestTrustChangedBeforeAnyPolicyEndsTunnels(t *testing.T) {
	r := newRig(t, nil)
	f := newFlow("a", "x.example")
	r.open(f)
	r.TrustChanged(t.Context())
	if got := f.ended(); got.Why != allowlist.PolicyUnavailable {
		t.Errorf("ended by %v", got)
	}
}
