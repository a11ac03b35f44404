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

// TestAnAddressThatAppearsLater checks that a new address of the host is refused as soon
// as it is noticed, also while a policy is held.
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

// TestHostAddressesAreReadAgain checks that the addresses of the host are read every few
// seconds, and that the known ones stay in force if reading fails.
func TestHostAddressesAreReadAgain(t *testing.T) {
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
			{"reading fails", nil, errors.New("no addresses today"), 1},
			{"reading works again", addresses, nil, 1},
			{"there is another address", append([]netip.Addr{netip.MustParseAddr("10.77.0.1")}, addresses...), nil, 2},
			{"there is no address any more", nil, nil, 3},
			{"there is still no address", []netip.Addr{}, nil, 3},
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

// TestAPolicyThatIsHeldIsInForce checks that a held policy decides everything new, until
// a confirmation ends what it forbids.
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
	after("a policy would close all tunnels", "two", two, LoadHeld)
	if got, want := r.probes.notes(), []string{"policy: two is in force, and held: 2 that it forbids stay open, of 2 of 2 identities; SIGHUP closes them"}; !slices.Equal(got, want) {
		t.Errorf("notes %q, want %q", got, want)
	}
	if got := r.State().Decide(asked("one.example")).Reason; got != allowlist.NotOnAllowlist {
		t.Errorf("a new request is refused as %q", got)
	}
	r.inForce.loaded(t.Context(), live.Change{Quarantine: cutting("c")}, nil)
	after("an identity without tunnels came into quarantine", "two", two)
	r.host = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil }
	if err := r.Gateway.host.refresh(t.Context(), r.inForce.apply); err != nil {
		t.Fatal(err)
	}
	after("the host has another address", "two", two)
	r.inForce.loaded(t.Context(), live.Change{}, nil)
	after("the files were read again", "two", two)
	r.Reload()
	after("Reload was called, and the files have not been read since", "two", two)
	if len(first) > 0 || len(second) > 0 {
		t.Error("a tunnel has ended")
	}
	r.inForce.loaded(t.Context(), live.Change{}, nil)
	after("the files were read after Reload", "two", live.Hold{}, LoadInForce)
	if <-first != tunnel.Revoked || <-second != tunnel.Revoked {
		t.Error("a tunnel was ended for another reason")
	}
	r.inForce.loaded(t.Context(), live.Change{}, nil)
	after("the files were read once more", "two", live.Hold{})
}

// TestNotesOfHoldAndLog checks that what is held and the problems of the log are both in
// the notes.
func TestNotesOfHoldAndLog(t *testing.T) {
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

// TestOnlyPoliciesCountAsLoads checks that a quarantine list and another address of the
// host put a state in force, but do not count as loads of a policy, nor set the time of
// the last one.
func TestOnlyPoliciesCountAsLoads(t *testing.T) {
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

// TestARepairThatDoesNotLoadConfirmsNothing checks that SIGHUP does not confirm what is
// held if the files have an error, however often it is sent.
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

// TestOneReloadConfirmsOneReading checks that a policy is held again if it is read after
// the reading that Reload confirms.
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

// TestReloadEndsWhatIsHeld checks that Reload ends what is held, through the policy
// provider of a served gateway.
func TestReloadEndsWhatIsHeld(t *testing.T) {
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

// TestHeldPolicyIsEnforcedWhenTunnelsLeave checks that a served gateway ends what is
// held without a further reading when it is no longer too much.
func TestHeldPolicyIsEnforcedWhenTunnelsLeave(t *testing.T) {
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

// TestAQuarantineAloneIsNoPolicy checks that a quarantine list puts nothing in force
// before the first policy.
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

// TestABrokenQuarantineLetsNoFirstPolicyIn checks that a first policy is not used while
// its quarantine list cannot be read.
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

// TestPartWithoutAnErrorIsUsed checks that files with an error change nothing in force,
// and that a quarantine list without an error is used although the policy has one.
func TestPartWithoutAnErrorIsUsed(t *testing.T) {
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

// TestTheRecordsOfStates checks that the record of a state says what has come into force
// and how many tunnels it closed, what is held, or why the state is not used.
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

// TestTheRecordsOfTheQuarantine checks that the records of quarantine lists name the
// identities that were added and released, and that there is no record if nothing has
// changed.
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

// TestAnIdentityIsRotated checks that each new identity of the gateway has a record, and
// that everything ends that depends on a removed authority.
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

// TestAnIdentityIsRotatedBeforeAnyPolicy checks that everything is denied if the
// identity is rotated before the first policy.
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

// TestLimitsOfAPolicyApplyAtOnce checks that the limits of a policy apply as soon as it
// comes into force, also while it is held, and also to requests that the previous policy
// decided.
func TestLimitsOfAPolicyApplyAtOnce(t *testing.T) {
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

// TestWhyAGatewayIsNotReady checks that there is a line for each reason for which a
// gateway is not ready.
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

// TestFailedHandshakeHasARecord checks that a failed handshake has a record, and that a
// connection which is closed without a byte, as health checks do, has none.
func TestFailedHandshakeHasARecord(t *testing.T) {
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
