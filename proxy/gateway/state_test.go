package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestAnAddressThatAppearsLater: a new address of the host is refused as soon as it is
// noticed, also while a policy is held.
func TestAnAddressThatAppearsLater(t *testing.T) {
	later := netip.MustParseAddr("10.77.0.1")
	for name, held := range map[string]bool{"": false, "while a policy is held": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, allowing("one", to("a.example"), to("b.example")), holding)
			r.inForce.first(t.Context())
			version := "one"
			check := func() error {
				d := r.State().Decide(asked("a.example"))
				return d.CheckAddr(netip.AddrPortFrom(later, 443))
			}
			look := func() {
				t.Helper()
				if err := r.Gateway.host.refresh(t.Context(), r.inForce.apply); err != nil {
					t.Fatal(err)
				}
			}
			if err := check(); err != nil {
				t.Fatalf("before it appears: %v", err)
			}
			if held {
				version = "two"
				r.registerOf("a", "b.example")
				r.registerOf("b", "b.example")
				r.inForce.loaded(t.Context(), live.Change{Policy: allowing(version, to("a.example"))}, nil)
				if got := r.told(); !slices.Equal(got, []Load{LoadInForce, LoadHeld}) {
					t.Fatalf("loads %v", got)
				}
			}
			generation := r.State().Generation
			r.host = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.7"), later}, nil }
			look()
			if check() == nil {
				t.Error("an own address can be reached")
			}
			r.host = func() ([]netip.Addr, error) { return []netip.Addr{later, netip.MustParseAddr("192.0.2.7")}, nil }
			look() // the same addresses in another order
			if got := r.State(); got.Generation != generation+1 || got.Policy.Version() != version {
				t.Errorf("generation %d of policy %s, want one more than %d of the same policy", got.Generation, got.Policy.Version(), generation)
			}
			r.host = nil
			look()
			if err := check(); err != nil {
				t.Errorf("after it has gone: %v", err)
			}
		})
	}
}

// TestTheAddressesAreLookedAt: they are read every few seconds. If reading fails the
// known ones stay.
func TestTheAddressesAreLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards the variables below
		addresses, failure := []netip.Addr{netip.MustParseAddr("192.0.2.7")}, error(nil)
		h := host{cfg: &Config{
			Log: slog.New(slog.DiscardHandler), HostAddresses: func() ([]netip.Addr, error) {
				mu.Lock()
				defer mu.Unlock()
				return addresses, failure
			},
		}}
		applied := 0
		apply := func(_ context.Context, c live.Change) {
			applied++
			if c.Classifier == nil || c.Policy != nil || c.Quarantine != nil {
				t.Errorf("applied %+v", c)
			}
		}
		if err := h.refresh(t.Context(), apply); err != nil || applied != 1 {
			t.Fatalf("the first look: %v, %d changes", err, applied)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.follow(ctx, apply)
		}()
		for _, step := range []struct {
			name      string
			addresses []netip.Addr
			failure   error
			want      int
		}{
			{"nothing has changed", addresses, nil, 1},
			{"nobody knows", nil, errors.New("no addresses today"), 1},
			{"it is known again", addresses, nil, 1},
			{"there is another one", append([]netip.Addr{netip.MustParseAddr("10.77.0.1")}, addresses...), nil, 2},
			{"there is none any more", nil, nil, 3},
			{"there is still none", []netip.Addr{}, nil, 3},
		} {
			mu.Lock()
			addresses, failure = step.addresses, step.failure
			mu.Unlock()
			<-time.After(addressesEvery)
			synctest.Wait()
			if applied != step.want {
				t.Errorf("%s: %d changes, want %d", step.name, applied, step.want)
			}
		}
		stop()
		<-done
	})
}

// TestAPolicyThatIsHeldIsInForce: it decides everything new, until what it forbids has
// ended because of a confirmation, or because there is no longer too much of it.
func TestAPolicyThatIsHeldIsInForce(t *testing.T) {
	r := newRig(t, allowing("one", to("one.example")), holding)
	r.inForce.first(t.Context())
	_, first := r.registerOf("a", "one.example")
	_, second := r.registerOf("b", "one.example")
	after := func(step, version string, held live.Hold, loads ...Load) {
		t.Helper()
		if got := r.version(); got != version || r.Stats().Held != held {
			t.Errorf("%s: policy %q is in force and %+v held, want %q and %+v", step, got, r.Stats().Held, version, held)
		}
		if got := r.told(); !slices.Equal(got, loads) {
			t.Errorf("%s: loads %v, want %v", step, got, loads)
		}
		notes := r.probes.notes()
		if (len(notes) == 1) != (held != live.Hold{}) || len(r.probes.notReady()) > 0 {
			t.Errorf("%s: notes %q, not ready because of %q", step, notes, r.probes.notReady())
		}
	}
	two := live.Hold{Entries: 2, Identities: 2, OfIdentities: 2}
	after("at the start", "one", live.Hold{}, LoadInForce)
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("two", to("two.example"))}, nil)
	after("it would close all tunnels", "two", two, LoadHeld)
	if got, want := r.probes.notes(), []string{"policy: two is in force, and held: 2 that it forbids stay open, of 2 of 2 identities; SIGHUP closes them"}; !slices.Equal(got, want) {
		t.Errorf("notes %q, want %q", got, want)
	}
	if got := r.State().Decide(asked("one.example")).Reason; got != allowlist.NotOnAllowlist {
		t.Errorf("a new request is refused as %q", got)
	}
	r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting("c")}, nil)
	after("a quarantine of another one came", "two", two)
	r.host = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil }
	if err := r.Gateway.host.refresh(t.Context(), r.inForce.apply); err != nil {
		t.Fatal(err)
	}
	after("the host has another address", "two", two)
	r.inForce.loaded(t.Context(), live.Change{}, nil)
	after("the files were read again", "two", two)
	r.Reload()
	after("nobody has read them since it was meant", "two", two)
	if len(first) > 0 || len(second) > 0 {
		t.Error("a tunnel has ended")
	}
	r.inForce.loaded(t.Context(), live.Change{}, nil)
	after("it is meant", "two", live.Hold{}, LoadInForce)
	if <-first != tunnel.Revoked || <-second != tunnel.Revoked {
		t.Error("a tunnel was ended for another reason")
	}
	r.inForce.loaded(t.Context(), live.Change{}, nil)
	after("the files were read once more", "two", live.Hold{})
}

// TestNotesStandTogether: what is held, and the problems of the log, are both notes.
func TestNotesStandTogether(t *testing.T) {
	r := newRig(t, allowing("one", to("one.example")), func(c *Config) {
		holding(c)
		c.Admin.Notes = func() []string { return []string{"log: lines are lost"} }
	})
	r.inForce.first(t.Context())
	r.registerOf("a", "one.example")
	r.registerOf("b", "one.example")
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("two")}, nil)
	if got := r.probes.notes(); len(got) != 2 || !strings.HasPrefix(got[0], "policy: ") || got[1] != "log: lines are lost" {
		t.Errorf("notes %q", got)
	}
}

// TestOnlyPoliciesAreLoads: a quarantine list and another address of the host put a
// state in force. They do not count as loads of a policy, nor set the time of the last
// one.
func TestOnlyPoliciesAreLoads(t *testing.T) {
	r := newRig(t, allowing("one", to("one.example")), nil)
	r.inForce.first(t.Context())
	since := r.State().Since
	check := func(step string, generation uint64, same bool, loads ...Load) {
		t.Helper()
		s := r.State()
		if got := r.told(); !slices.Equal(got, loads) || s.Generation != generation {
			t.Errorf("%s: loads %v and generation %d, want %v and %d", step, got, s.Generation, loads, generation)
		}
		if s.Since.Equal(since) != same {
			t.Errorf("%s: in force since %s, the first one since %s", step, s.Since, since)
		}
	}
	check("the start", 1, true, LoadInForce)
	r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting("c")}, nil)
	check("a quarantine", 2, true)
	r.inForce.loaded(t.Context(), live.Change{Policy: r.policies.Loaded().Policy, SameRules: true, Quarantine: cutting()}, nil)
	check("a quarantine, read along with the policy", 3, true)
	r.host = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil }
	if err := r.Gateway.host.refresh(t.Context(), r.inForce.apply); err != nil {
		t.Fatal(err)
	}
	check("an address", 4, true)
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("one", to("one.example"))}, nil)
	check("the same policy with other comments", 5, true, LoadInForce)
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("two", to("one.example"))}, nil)
	check("another policy", 6, false, LoadInForce)
}

// TestARepairThatDoesNotLoadConfirmsNothing: SIGHUP for a repair that has an error does
// not confirm what is held, however often it is sent.
func TestARepairThatDoesNotLoadConfirmsNothing(t *testing.T) {
	r := newRig(t, allowing("one", to("one.example")), holding)
	r.inForce.first(t.Context())
	_, first := r.registerOf("a", "one.example")
	_, second := r.registerOf("b", "one.example")
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("two", to("two.example"))}, nil)
	r.told()
	held := live.Hold{Entries: 2, Identities: 2, OfIdentities: 2}
	for _, row := range []struct {
		err  error
		told []Load
	}{{errors.New("the files are broken"), []Load{LoadRefused}}, {nil, nil}} { // nil: the files have not changed
		r.Reload()
		r.inForce.loaded(t.Context(), live.Change{}, row.err)
		if got := r.Stats().Held; got != held {
			t.Errorf("%+v is held, want %+v", got, held)
		}
		if !r.Stats().PolicyRefused {
			t.Error("the files have an error, and the statistics do not say so")
		}
		if got := r.told(); !slices.Equal(got, row.told) {
			t.Errorf("loads %v, want %v", got, row.told)
		}
	}
	r.Reload()
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("one", to("one.example"))}, nil)
	if got := r.Stats().Held; got != (live.Hold{}) || r.version() != "one" || len(first)+len(second) > 0 {
		t.Errorf("%+v is held by policy %q, and %d tunnels have ended", got, r.version(), len(first)+len(second))
	}
	if r.Stats().PolicyRefused {
		t.Error("the files are mended, and the statistics say that they have an error")
	}
}

// TestOneReloadConfirmsOneReading: a policy that is read later is held again.
func TestOneReloadConfirmsOneReading(t *testing.T) {
	r := newRig(t, allowing("one", to("one.example")), holding)
	r.inForce.first(t.Context())
	r.Reload()
	r.inForce.loaded(t.Context(), live.Change{}, errors.New("the files are broken"))
	r.registerOf("a", "one.example")
	r.registerOf("b", "one.example")
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("two", to("two.example"))}, nil)
	if got, want := r.told(), []Load{LoadInForce, LoadRefused, LoadHeld}; !slices.Equal(got, want) || r.version() != "two" {
		t.Errorf("loads %v and policy %q, want %v and the second", got, r.version(), want)
	}
}

// TestReload: Reload ends what is held, through the policy source of a served gateway.
func TestReload(t *testing.T) {
	r := newRig(t, allowing("one", to("one.example")), holding)
	r.serve(t)
	if got := r.load(t); got != LoadInForce {
		t.Fatalf("the first policy is %s", got)
	}
	_, first := r.registerOf("a", "one.example")
	_, second := r.registerOf("b", "one.example")
	r.policies.Put(allowing("two", to("two.example")))
	if got := r.load(t); got != LoadHeld || r.version() != "two" || len(first)+len(second) > 0 {
		t.Fatalf("the policy is %s, and %q in force", got, r.version())
	}
	r.Reload()
	if got := r.load(t); got != LoadInForce || r.version() != "two" {
		t.Errorf("the policy is %s, and %q in force", got, r.version())
	}
	if <-first != tunnel.Revoked || <-second != tunnel.Revoked {
		t.Error("a tunnel was ended for another reason")
	}
}

// TestPoliciesAndAddressesChangeAtTheSameTime checks, under the race detector, that a load
// is counted while the host has another address.
func TestPoliciesAndAddressesChangeAtTheSameTime(t *testing.T) {
	r := newRig(t, allowing("one"), nil)
	r.inForce.first(t.Context())
	var changing sync.WaitGroup
	changing.Go(func() {
		r.inForce.loaded(t.Context(), live.Change{Policy: allowing("two")}, nil)
	})
	changing.Go(func() {
		r.inForce.apply(t.Context(), live.Change{Classifier: allowlist.NewClassifier(allowlist.Local{})})
	})
	changing.Wait()
	if got := r.told(); !slices.Equal(got, []Load{LoadInForce, LoadInForce}) || r.version() != "two" {
		t.Errorf("loads %v, in force %q", got, r.version())
	}
}

// TestWhatIsHeldEndsAsItBecomesLess: a served gateway needs no further reading for
// that.
func TestWhatIsHeldEndsAsItBecomesLess(t *testing.T) {
	r := newRig(t, allowing("one", to("one.example")), holding)
	r.serve(t)
	r.load(t)
	r.next(t, audit.EventPolicyReload)
	leaves, _ := r.registerOf("a", "one.example")
	_, stays := r.register("one.example")
	r.policies.Put(allowing("two"))
	if got := r.load(t); got != LoadHeld {
		t.Fatalf("the policy is %s", got)
	}
	if got := r.next(t, audit.EventPolicyReload); got.Detail != "closed 0 of 2 tunnels; held: 2 that it forbids stay open, of 2 of 2 identities" || got.Policy != "two" {
		t.Errorf("record %+v", got)
	}
	r.Registry().Remove(leaves)
	if got := <-stays; got != tunnel.Revoked {
		t.Errorf("the tunnel was ended by %s", got)
	}
	if got := r.next(t, audit.EventPolicyReload); got.Detail != "closed 1 of 1 tunnels; what was held was judged again" || got.Policy != "two" || got.Generation != 2 {
		t.Errorf("record %+v", got)
	}
	if left := r.rest(t); len(left) > 0 || len(r.told()) > 0 {
		t.Errorf("too many records: %+v", left)
	}
}

// TestAQuarantineAloneIsNoPolicy: before the first policy a quarantine list puts
// nothing in force.
func TestAQuarantineAloneIsNoPolicy(t *testing.T) {
	r := newRig(t, nil, nil)
	r.inForce.first(t.Context())
	r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting("a")}, nil)
	r.Reload()
	r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting("a", "b")}, nil)
	if s := r.State(); s != nil || len(r.told()) > 0 {
		t.Errorf("in force: %+v", s)
	}
}

// TestABrokenQuarantineLetsNoFirstPolicyIn: a first policy with an unreadable
// quarantine list is not used.
func TestABrokenQuarantineLetsNoFirstPolicyIn(t *testing.T) {
	r := newRig(t, nil, nil)
	r.inForce.first(t.Context())
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("one", to("a.example"))}, errors.New("quarantine.yaml: nobody can read it"))
	if s := r.State(); s != nil {
		t.Errorf("in force without its quarantine: policy %s", s.Policy.Version())
	}
	if got := r.next(t, audit.EventPolicyReload); got.Detail != "refused: quarantine.yaml: nobody can read it" || got.Policy != "" || got.Generation != 0 {
		t.Errorf("record %+v", got)
	}
	r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting()}, nil)
	if got := r.version(); got != "one" {
		t.Errorf("policy %q is in force though both are good", got)
	}
	if got, want := r.told(), []Load{LoadRefused, LoadInForce}; !slices.Equal(got, want) {
		t.Errorf("loads %v, want %v", got, want)
	}
}

// TestWhatDoesNotLoadChangesNothing: a part without an error is used by itself.
func TestWhatDoesNotLoadChangesNothing(t *testing.T) {
	r := newRig(t, allowing("one", to("a.example")), nil)
	r.inForce.first(t.Context())
	before := r.State()
	r.inForce.loaded(t.Context(), live.Change{}, errors.New("policy.yaml:2:1: unknown key"))
	if r.State() != before {
		t.Error("an error has put another state in force")
	}
	r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting("sidecar")}, errors.New("policy.yaml:2:1: unknown key"))
	if got := r.State().Decide(asked("a.example")).Reason; got != allowlist.QuarantinedIdentity || r.version() != "one" {
		t.Errorf("refused as %q by %q, want the quarantine over the first policy", got, r.version())
	}
}

// TestTheRecordsOfStates: each says what has come into force and how many tunnels it
// closed, what is held, or why it is not used.
func TestTheRecordsOfStates(t *testing.T) {
	var enforced []live.Enforcement
	r := newRig(t, allowing("one", to("*.example")), func(c *Config) {
		holding(c)
		c.Metrics.Enforced = func(e live.Enforcement) { enforced = append(enforced, e) }
	})
	type said struct {
		policy     string
		generation uint64
		detail     string
	}
	check := func(want ...said) {
		t.Helper()
		for _, w := range want {
			rec := r.next(t, audit.EventPolicyReload)
			if got := (said{rec.Policy, rec.Generation, rec.Detail}); got != w {
				t.Errorf("record %+v, want %+v", got, w)
			}
			if rec.Duration == 0 && !strings.HasPrefix(w.detail, "refused") {
				t.Errorf("%s took %s", w.detail, rec.Duration)
			}
		}
	}
	load := func(p *allowlist.Policy) {
		t.Helper()
		r.inForce.loaded(t.Context(), live.Change{Policy: p}, nil)
	}
	r.inForce.first(t.Context())
	check(said{"one", 1, "closed 0 of 0 tunnels"})
	r.registerOf("a", "a.example")
	r.registerOf("a", "b.example")
	r.registerOf("b", "a.example")
	r.registerOf("c", "b.example")
	load(allowing("two", to("b.example")))
	check(said{"two", 2, "closed 0 of 4 tunnels; held: 2 that it forbids stay open, of 2 of 3 identities"})
	r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting("c")}, nil)
	check(said{"two", 3, "closed 1 of 4 tunnels; held: 2 that it forbids stay open, of 2 of 2 identities"})
	r.next(t, audit.EventQuarantine)
	load(allowing("three", to("a.example")))
	check(said{"three", 4, "closed 1 of 3 tunnels"})
	r.inForce.loaded(t.Context(), live.Change{}, errors.New("the files are broken"))
	check(said{"", 0, "refused: the files are broken"})
	r.inForce.loaded(t.Context(), live.Change{Policy: allowing("four", to("a.example")), SameRules: true}, nil)
	load(allowing("five", to("a.example")))
	check(said{"five", 5, "closed 0 of 2 tunnels"})
	if left := r.rest(t); len(enforced) != 5 || len(left) > 0 {
		t.Errorf("told of %+v, too many records: %+v", enforced, left)
	}
}

// TestTheRecordsOfTheQuarantine: they name the identities that were added and released.
// There is no record if nothing has changed.
func TestTheRecordsOfTheQuarantine(t *testing.T) {
	r := newRig(t, allowing("one", to("a.example")), nil)
	r.inForce.first(t.Context())
	r.next(t, audit.EventPolicyReload)
	many := make([]string, 12)
	for i := range many {
		many[i] = fmt.Sprintf("m-%02d", i)
	}
	names := func(all []string) string {
		var long []string
		for _, name := range all {
			long = append(long, "spiffe://test.example/"+name)
		}
		return strings.Join(long, ", ")
	}
	for _, row := range []struct {
		cut  []string
		want string // "" means no record
	}{
		{[]string{"b"}, "1 in force; added: " + names([]string{"b"})},
		{[]string{"b"}, ""},
		{[]string{"a", "c"}, "2 in force; added: " + names([]string{"a", "c"}) + "; released: " + names([]string{"b"})},
		{many, "12 in force; added: " + names(many[:10]) + ", 2 more; released: " + names([]string{"a", "c"})},
		{nil, "0 in force; released: " + names(many[:10]) + ", 2 more"},
		{nil, ""},
	} {
		r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting(row.cut...)}, nil)
		reload := r.next(t, audit.EventPolicyReload)
		version := r.State().Policy.QuarantineVersion()
		if (version != "") != (len(row.cut) > 0) || reload.Quarantine != version {
			t.Errorf("record %+v, of the quarantine %q", reload, version)
		}
		if row.want == "" {
			continue
		}
		got := r.next(t, audit.EventQuarantine)
		if got.Detail != row.want || got.Policy != "one" || got.Quarantine != version || got.Generation != reload.Generation {
			t.Errorf("record %+v, want %q of generation %d", got, row.want, reload.Generation)
		}
	}
	if left := r.rest(t); len(left) > 0 {
		t.Errorf("too many records: %+v", left)
	}
}

// TestAnIdentityIsRotated: each new one has a record, and everything that depends on a
// removed authority ends.
func TestAnIdentityIsRotated(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	source := gatewaytest.NewIdentity(snapshot(t, 1, first))
	r := newRig(t, allowing("one", to("a.example")), func(c *Config) { c.Identity = source })
	both := snapshot(t, 2, first, second)
	source.Set(both) // set while New runs
	r.serve(t)
	enforced := func(detail string) {
		t.Helper()
		if got := r.next(t, audit.EventPolicyReload); got.Detail != detail || got.Policy != "one" {
			t.Errorf("record %+v, want %q", got, detail)
		}
	}
	rotated := func(until time.Time) {
		t.Helper()
		got := r.next(t, audit.EventIdentityRotate)
		if want := "valid until " + until.UTC().Format(time.RFC3339); got.Detail != want || got.Identity != id("gateway") {
			t.Errorf("record %+v, want %q", got, want)
		}
	}
	enforced("closed 0 of 0 tunnels")
	rotated(both.NotAfter())
	enforced("closed 0 of 0 tunnels; other authorities are trusted") // another authority is trusted now

	stays := resting(t, r, second)
	ends := resting(t, r, first)
	source.Tell() // the snapshot is known already
	again := snapshot(t, 3, first, second)
	source.Set(again)
	source.Tell()
	rotated(again.NotAfter())
	last := snapshot(t, 4, second)
	source.Set(last)
	source.Tell()
	rotated(last.NotAfter())
	enforced("closed 1 of 2 tunnels; other authorities are trusted")
	if got := <-ends; got != tunnel.Revoked || len(stays) > 0 {
		t.Errorf("the tunnel of the authority that has gone was ended by %s", got)
	}
	if left := r.rest(t); r.State().Generation != 3 || len(left) > 0 {
		t.Errorf("generation %d, too many records: %+v", r.State().Generation, left)
	}
}

// resting registers an entry whose caller has a certificate of an authority.
func resting(t *testing.T, r *rig, ca *authority.Authority) <-chan tunnel.Reason {
	t.Helper()
	svid, err := ca.Mint(authority.Options{ID: id("sidecar")})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan tunnel.Reason, 1)
	req := asked("a.example")
	req.Proof = allowlist.ProofX509SVID
	var entry *live.Entry
	entry = &live.Entry{Decided: live.Decided{Request: req, FirstBytes: live.FirstBytesHello}, End: func(reason tunnel.Reason, _ allowlist.Reason) {
		r.Registry().Remove(entry)
		told <- reason
	}}
	entry.Certificates = append(entry.Certificates, svid.TLS().Leaf)
	r.Registry().Add(entry)
	return told
}

// TestAnIdentityIsRotatedBeforeAnyPolicy: the state that follows denies everything, as
// no state does.
func TestAnIdentityIsRotatedBeforeAnyPolicy(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	source := gatewaytest.NewIdentity(snapshot(t, 1, first))
	r := newRig(t, nil, func(c *Config) { c.Identity = source })
	r.serve(t)
	source.Set(snapshot(t, 2, second))
	source.Tell()
	r.next(t, audit.EventIdentityRotate)
	if got := r.next(t, audit.EventPolicyReload); got.Policy != "" || got.Generation != 1 {
		t.Errorf("record %+v", got)
	}
	if got := r.State().Decide(asked("a.example")).Reason; got != allowlist.PolicyUnavailable {
		t.Errorf("refused as %q", got)
	}
	if got := r.probes.notReady(); !slices.Equal(got, []string{"policy: none is loaded"}) {
		t.Errorf("not ready because of %q", got)
	}
	r.policies.Put(allowing("one", to("a.example")))
	if got := r.State(); got.Generation != 2 || !got.Decide(asked("a.example")).Allowed() {
		t.Errorf("generation %d does not allow what its policy does", got.Generation)
	}
}

// TestAPolicyHasItsLimits: they apply from when it comes into force, also while it is
// held, and also to requests that the previous policy decided.
func TestAPolicyHasItsLimits(t *testing.T) {
	limited := func(version string, tunnels int, rules ...allowlist.Rule) *allowlist.Policy {
		return must(allowlist.Compile(allowlist.Spec{Version: version, Entries: []allowlist.Entry{{
			Pattern: must(allowlist.ParseIdentityPattern("spiffe://test.example/**")), Allow: rules, Limits: allowlist.Limits{Tunnels: tunnels},
		}}}))
	}
	r := newRig(t, limited("one", 1, to("one.example")), holding)
	r.inForce.first(t.Context())
	// opens returns how many further tunnels can be opened now, for requests that the
	// first policy decided. They stay open.
	first := r.State().Policy
	opens := func() (n int) {
		for {
			lease, reason, _ := r.Parts().Budgets.Open(first, allowlist.HolderOf(id("sidecar"), allowlist.ProofListener))
			if reason != allowlist.NoReason {
				return n
			}
			t.Cleanup(lease.Close)
			n++
		}
	}
	if n := opens(); n != 1 {
		t.Errorf("the first policy allows %d tunnels, want 1", n)
	}
	r.registerOf("a", "one.example")
	r.registerOf("b", "one.example")
	r.inForce.loaded(t.Context(), live.Change{Policy: limited("two", 3, to("two.example"))}, nil)
	if n := opens(); n != 2 || r.Stats().Held.IsZero() {
		t.Errorf("the second policy allows %d tunnels more, want 2; held %+v", n, r.Stats().Held)
	}
}

// TestWhyAGatewayIsNotReady: there is a line for each cause.
func TestWhyAGatewayIsNotReady(t *testing.T) {
	ca := newAuthority(t)
	r := newRig(t, nil, func(c *Config) { c.Identity = gatewaytest.NewIdentity(snapshot(t, 1, ca)) })
	notReady := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, r.probes.notReady()); diff != "" {
			t.Errorf("not ready because of (-want +got):\n%s", diff)
		}
	}
	notReady("policy: none is loaded")
	r.inForce.loaded(t.Context(), gatewaytest.Only(allowing("one")), nil)
	notReady()
	r.probes.stopping.Store(true)
	notReady("draining: the gateway is shutting down")
}

// TestAHandshakeThatDies: it has a record, and a connection that is closed without a
// byte, as health checks do, has none.
func TestAHandshakeThatDies(t *testing.T) {
	r := newRig(t, nil, func(c *Config) {
		c.Identity = gatewaytest.NewIdentity(snapshot(t, 1, newAuthority(t)))
		c.Listeners = []Listener{{Name: "main", Address: "127.0.0.1:0"}}
	})
	r.serve(t)
	_ = r.call(t).Close()
	c := r.call(t)
	if _, err := io.WriteString(c, "CONNECT a.example:443 HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Error(err)
	}
	got := r.next(t, audit.EventHandshake)
	if got.Listener != "main" || got.Client.String() != c.LocalAddr().String() || got.Reason != allowlist.TLSHandshakeFailed || got.Detail == "" {
		t.Errorf("record %+v", got)
	}
	if left := r.rest(t); len(left) > 0 {
		t.Errorf("too many records: %+v", left)
	}
}
