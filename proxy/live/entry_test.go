package live

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestChangedEntryIsJudgedAsItIsNow checks that an entry is judged by its current
// destination and address, and not by those of its beginning.
func TestChangedEntryIsJudgedAsItIsNow(t *testing.T) {
	r := newRig(t, nil)
	f := newFlow("a", "x.example")
	f.Decided.Addr = netip.AddrPort{}
	r.open(f)
	f.Change(func(d *Decided) { d.Request.Dest.Host = must(allowlist.ParseHost("y.example")) })
	r.put(t.Context(), policy(entry("a", onlyAt(to("y.example"), "8.8.8.8/32"))))
	if got := f.ended(); got != (ending{}) {
		t.Fatalf("allowed as what it is, and ended by %v", got)
	}
	f.Change(func(d *Decided) { d.Addr = netip.MustParseAddrPort("1.1.1.1:443") })
	r.put(t.Context(), policy(entry("a", onlyAt(to("y.example"), "8.8.8.8/32"))))
	if got, want := f.ended(), (ending{tunnel.Revoked, allowlist.ResolvedAddressDenied}); got != want {
		t.Errorf("at another address: ended by %v, want %v", got, want)
	}
	if got := f.Why(); got != allowlist.ResolvedAddressDenied {
		t.Errorf("why: %q", got)
	}
}

// TestTheNameOfTheFirstBytesIsDecidedAsWell checks that a tunnel to an address ends if
// either the address or the server name of its first bytes is forbidden.
func TestTheNameOfTheFirstBytesIsDecidedAsWell(t *testing.T) {
	r := newRig(t, nil)
	f := newFlow("a", "8.8.8.8")
	r.open(f)
	f.Change(func(d *Decided) { d.Name = must(allowlist.ParseHost("x.example")) })
	address := allowlist.Rule{CIDR: netip.MustParsePrefix("8.8.8.8/32")}
	r.put(t.Context(), policy(entry("a", address, to("x.example"))))
	if got := f.ended(); got != (ending{}) {
		t.Fatalf("both are allowed, and ended by %v", got)
	}
	r.put(t.Context(), policy(entry("a", address)))
	if got, want := f.ended(), (ending{tunnel.Revoked, allowlist.NotOnAllowlist}); got != want {
		t.Errorf("the name is not allowed: ended by %v, want %v", got, want)
	}
}

// TestEndedBy checks how a tunnel ends for each kind of reason. A reason without a word
// of its own ends it as revoked.
func TestEndedBy(t *testing.T) {
	for why, want := range map[allowlist.Reason]tunnel.Reason{
		allowlist.QuarantinedIdentity: tunnel.Quarantined, allowlist.Draining: tunnel.Drain, allowlist.UploadLimit: tunnel.Limit,
		allowlist.NotOnAllowlist: tunnel.Revoked, allowlist.IdentityUntrusted: tunnel.Revoked, allowlist.PolicyUnavailable: tunnel.Revoked,
	} {
		if got := EndedBy(why); got != want {
			t.Errorf("%s ends it by %s, want %s", why, got, want)
		}
	}
}

// TestConnectionBecomesATunnel checks that a connection counts as a tunnel, and is
// judged as one, when its destination is known.
func TestConnectionBecomesATunnel(t *testing.T) {
	r := newRig(t, nil)
	f := newFlow("a", "x.example")
	dest := f.Decided.Request.Dest
	f.Decided = Decided{Request: allowlist.Request{ID: f.Decided.Request.ID, Proof: f.Decided.Request.Proof}}
	r.open(f)
	if r.registry.Tunnels() != 0 || r.registry.Len() != 1 {
		t.Errorf("%d tunnels of %d entries, want none of 1", r.registry.Tunnels(), r.registry.Len())
	}
	r.put(t.Context(), policy(entry("a")))
	if f.ended() != (ending{}) {
		t.Error("a connection of a known caller ended")
	}
	f.Change(func(d *Decided) { d.Request.Dest = dest })
	if r.registry.Tunnels() != 1 {
		t.Errorf("%d tunnels, want 1", r.registry.Tunnels())
	}
	r.put(t.Context(), policy(entry("a")))
	if got := f.ended(); got.Why != allowlist.NotOnAllowlist {
		t.Errorf("ended by %v", got)
	}
}

// TestPromote checks that a promoted entry is ended once, by its new End. If the entry
// was ended before, only the old End is called, and Why tells the reason.
func TestPromote(t *testing.T) {
	for name, before := range map[string]bool{"told afterwards": false, "told before": true} {
		t.Run(name, func(t *testing.T) {
			var registry Registry
			var first, second int
			e := &Entry{End: func(tunnel.Reason, allowlist.Reason) { first++ }}
			registry.Add(e)
			if before {
				registry.EndAll(tunnel.Drain)
			}
			e.Promote(func(reason tunnel.Reason, why allowlist.Reason) {
				second++
				if reason != tunnel.Drain || why != allowlist.NoReason {
					t.Errorf("ended by %s %q", reason, why)
				}
			}, func() (up, down int64) { return 3, 4 })
			if got := registry.List(); len(got) != 1 || got[0].Up != 3 || got[0].Down != 4 || got[0].Ending != before {
				t.Errorf("listed as %+v", got)
			}
			registry.EndAll(tunnel.Drain)
			if before && (first != 1 || second != 0) || !before && (first != 0 || second != 1) {
				t.Errorf("the first end was told %d times, the second %d times", first, second)
			}
			if got := e.Why(); got != allowlist.Draining {
				t.Errorf("why: %q, want %q", got, allowlist.Draining)
			}
		})
	}
}

// TestEntryKnowsWhyItWasEnded checks that Why returns the reason for which an entry was
// ended, also if the entry was added after EndAll.
func TestEntryKnowsWhyItWasEnded(t *testing.T) {
	r := newRig(t, nil)
	stays, goes, cut := newFlow("a", "x.example"), newFlow("a", "y.example"), newFlow("b", "x.example")
	r.open(stays, goes, cut)
	r.put(t.Context(), quarantining(policy(entry("*", to("x.example"))), "b"))
	for f, want := range map[*flow]allowlist.Reason{stays: allowlist.NoReason, goes: allowlist.NotOnAllowlist, cut: allowlist.QuarantinedIdentity} {
		if got := f.Why(); got != want {
			t.Errorf("%s to %s: why %q, want %q", f.Decided.Request.ID, f.Decided.Request.Dest, got, want)
		}
	}
	r.registry.EndAll(tunnel.Drain)
	late := newFlow("a", "x.example")
	r.open(late)
	for f, want := range map[*flow]allowlist.Reason{stays: allowlist.Draining, goes: allowlist.NotOnAllowlist, late: allowlist.Draining} {
		if got := f.Why(); got != want {
			t.Errorf("after the shutdown: why %q, want %q", got, want)
		}
	}
}

// TestList checks that List returns every entry as it is now, the oldest first, and
// entries of the same age in the order of their ids.
func TestList(t *testing.T) {
	var r Registry
	if got := r.List(); len(got) != 0 {
		t.Errorf("without any entry: %+v", got)
	}
	start := time.Now()
	add := func(id string, age time.Duration) *flow {
		f := newFlow("a", "x.example")
		f.ID, f.Start = id, start.Add(-age)
		r.Add(f.Entry)
		return f
	}
	second, _, oldest, connection := add("d-2", time.Minute), add("d-9", 0), add("d-5", time.Hour), add("", time.Minute)
	second.Promote(second.End, func() (up, down int64) { return 1 << 40, 7 })
	second.Change(func(d *Decided) { d.Name = must(allowlist.ParseHost("name.example")) })
	connection.Change(func(d *Decided) { d.Request.Dest = allowlist.Destination{} })
	r.End("d-5", tunnel.Revoked, allowlist.RuleExpired)
	want := []EntrySnapshot{
		{ID: "d-5", Start: oldest.Start, Decided: oldest.Decided, Ending: true},
		{ID: "", Start: connection.Start, Decided: connection.Decided},
		{ID: "d-2", Start: second.Start, Decided: second.Decided, Up: 1 << 40, Down: 7},
		{ID: "d-9", Start: start, Decided: oldest.Decided},
	}
	compared := cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, allowlist.Host{}, allowlist.Request{})}
	if diff := cmp.Diff(want, r.List(), compared); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	if want[2].Decided.Name.String() != "name.example" {
		t.Errorf("what it has become is not shown: %+v", want[2].Decided)
	}
	listed := r.List()
	second.Change(func(d *Decided) { d.Name = allowlist.Host{} })
	if listed[2].Decided.Name.IsZero() {
		t.Error("what was listed changes with its entry")
	}
	r.Remove(oldest.Entry)
	if got := r.List(); len(got) != 3 || got[0].ID == "d-5" {
		t.Errorf("after the oldest has left: %+v", got)
	}
}

// TestEndById checks that End ends the one entry with exactly that id, once.
func TestEndById(t *testing.T) {
	var r Registry
	flows := map[string]*flow{"d-1": newFlow("a", "x.example"), "d-2": newFlow("a", "x.example"), "": newFlow("a", "x.example")}
	for id, f := range flows {
		f.ID = id
		r.Add(f.Entry)
	}
	for _, row := range []struct {
		name, id string
		done     bool
	}{
		{"an id that nothing has", "d-3", false},
		{"no id, as connections have", "", false},
		{"a part of an id", "d-", false},
		{"an entry", "d-1", true},
		{"the same entry again", "d-1", false},
	} {
		if got := r.End(row.id, tunnel.Quarantined, allowlist.QuarantinedIdentity); got != row.done {
			t.Errorf("%s: ended %v, want %v", row.name, got, row.done)
		}
	}
	for id, f := range flows {
		want, why := ending{}, allowlist.NoReason
		if id == "d-1" {
			want, why = ending{tunnel.Quarantined, allowlist.QuarantinedIdentity}, allowlist.QuarantinedIdentity
		}
		if got := f.ended(); got != want || f.Why() != why {
			t.Errorf("%q was told %v because of %q, want %v", id, got, f.Why(), want)
		}
	}
	r.Remove(flows["d-2"].Entry)
	if r.End("d-2", tunnel.Revoked, allowlist.RuleExpired) || flows["d-2"].ended() != (ending{}) {
		t.Error("one that has left was told to end")
	}
	r.EndAll(tunnel.Drain)
	if flows["d-1"].ended() != (ending{}) || flows[""].ended() == (ending{}) {
		t.Error("the shutdown tells the one that was told before, or not the one that was not")
	}
}

// TestEndMayRemoveItsEntry checks that an entry may remove itself from the registry
// while End ends it.
func TestEndMayRemoveItsEntry(t *testing.T) {
	var r Registry
	e := &Entry{ID: "d-1"}
	e.End = func(tunnel.Reason, allowlist.Reason) { r.Remove(e) }
	r.Add(e)
	if !r.End("d-1", tunnel.Revoked, allowlist.RuleExpired) || r.Len() != 0 {
		t.Errorf("%d entries, want none", r.Len())
	}
}

// TestEachEntryIsEndedOnce checks that each entry is ended exactly once, if two calls of
// End, a state and the shutdown end it at the same time, while it changes, is promoted
// and is listed.
func TestEachEntryIsEndedOnce(t *testing.T) {
	const entries = 200
	r := newRig(t, nil)
	told := make([]atomic.Int32, entries)
	flows := make([]*flow, entries)
	for i := range flows {
		f := newFlow("a", "x.example")
		f.ID = "d-" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		f.End = func(tunnel.Reason, allowlist.Reason) { told[i].Add(1) }
		flows[i] = f
	}
	r.open(flows...)
	var ended atomic.Int32
	var running sync.WaitGroup
	start := make(chan struct{})
	each := func(do func(i int, f *flow)) {
		running.Go(func() {
			<-start
			for i, f := range flows {
				do(i, f)
				runtime.Gosched()
			}
		})
	}
	for range 2 {
		each(func(_ int, f *flow) {
			if r.registry.End(f.ID, tunnel.Revoked, allowlist.RuleExpired) {
				ended.Add(1)
			}
		})
	}
	each(func(_ int, f *flow) {
		f.Change(func(d *Decided) { d.Addr = netip.MustParseAddrPort("1.1.1.1:443") })
	})
	each(func(i int, f *flow) {
		f.Promote(func(tunnel.Reason, allowlist.Reason) { told[i].Add(1) }, func() (up, down int64) { return 1, 2 })
	})
	running.Go(func() {
		<-start
		for range 20 {
			if got := len(r.registry.List()); got != entries {
				t.Errorf("%d are listed, want %d", got, entries)
			}
		}
	})
	running.Go(func() {
		<-start
		r.put(t.Context(), policy(entry("a", to("y.example"))))
		r.registry.EndAll(tunnel.Drain)
	})
	close(start)
	running.Wait()
	closed := int(ended.Load()) + r.did[0].Closed
	for i, f := range flows {
		if n := told[i].Load(); n != 1 || f.Why() == allowlist.NoReason {
			t.Errorf("%s was told %d times because of %q, want once", f.ID, n, f.Why())
		}
	}
	if closed != entries {
		t.Errorf("%d were counted as ended by id or by the state, want %d", closed, entries)
	}
}
