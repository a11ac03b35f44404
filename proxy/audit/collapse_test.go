package audit

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// denied returns a denial of a caller at a destination.
func denied(t *testing.T, r *Recorder, dest string) *Pending {
	t.Helper()
	o := decide(t, r, "a", allowlist.Deny, allowlist.NotOnAllowlist)
	o.Dest, o.Client = destination(t, dest), addrPort("192.0.2.1:5")
	return o
}

func TestIdenticalDenialsBecomeTwoRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{}
		var measured counter
		r := newRecorder(t, Config{Sinks: to(out), Collapse: 10 * time.Second, Measure: measured.count})
		begin := time.Now()
		var ids []string
		for range 50 { // 15 seconds: one window, and half of the next
			o := denied(t, r, "api.example:443")
			if err := o.Commit(t.Context()); err != nil {
				t.Error(err)
			}
			ids = append(ids, o.ID) // as the caller sees it
			o.End()
			time.Sleep(300 * time.Millisecond)
		}
		synctest.Wait()
		if n := len(out.taken()); n != 3 {
			t.Errorf("%d records before the end", n)
		}
		closeNow(t, r)
		checkSums(t, r)
		if got := len(slices.Compact(ids)); got != 2 {
			t.Errorf("the callers were told %d ids", got)
		}
		got := out.taken()
		if len(got) != 4 {
			t.Fatalf("%d records", len(got))
		}
		at := func(d time.Duration) time.Time { return begin.Add(d) }
		want := []struct {
			event  Event
			time   time.Time
			merged *Merged
		}{
			{EventDecision, at(0), nil},
			{EventCollapsed, at(10 * time.Second), &Merged{Count: 33, First: at(300 * time.Millisecond), Last: at(9900 * time.Millisecond)}},
			{EventDecision, at(10200 * time.Millisecond), nil},
			{EventCollapsed, at(15 * time.Second), &Merged{Count: 15, First: at(10500 * time.Millisecond), Last: at(14700 * time.Millisecond)}},
		}
		for i, rec := range got {
			if rec.Event != want[i].event || !rec.Time.Equal(want[i].time) || !cmp.Equal(rec.Merged, want[i].merged) {
				t.Errorf("record %d: %s at %s: %+v", i, rec.Event, rec.Time, rec.Merged)
			}
			if rec.ID != got[i/2*2].ID || rec.Dest != got[0].Dest || rec.Reason != allowlist.NotOnAllowlist {
				t.Errorf("record %d is of another denial: %+v", i, rec)
			}
		}
		if stats := r.Stats(); stats.Made != 50 || measured.n != 50 {
			t.Errorf("got %+v, %d measured", stats, measured.n)
		}
	})
}

func TestOnlyIdenticalDenialsAreCollapsed(t *testing.T) {
	rows := []struct {
		name   string
		change func(*Record)
		alone  bool
	}{
		{"the same", func(*Record) {}, false},
		{"from another process of the caller", func(r *Record) { r.Attributed = "pid=2" }, false},
		{"from another port", func(r *Record) { r.Client = addrPort("192.0.2.1:6") }, false},
		{"another identity", func(r *Record) { r.Identity = spiffeid.RequireFromString("spiffe://td.example/b") }, true},
		{"another reason", func(r *Record) { r.Reason = allowlist.DeniedByRule }, true},
		{"another host", func(r *Record) { r.Dest = destination(t, "b.example:443") }, true},
		{"another port", func(r *Record) { r.Dest = destination(t, "api.example:444") }, true},
		{"another listener", func(r *Record) { r.Listener = "other" }, true},
		{"a caller without identity", func(r *Record) { r.Identity = spiffeid.ID{} }, true},
		{"without identity from another address", func(r *Record) { r.Identity, r.Client = spiffeid.ID{}, addrPort("[2001:db8::2]:5") }, true},
		{"another protocol", func(r *Record) { r.Protocol = ProtocolHTTP }, true},
		{"another method", func(r *Record) { r.Method = "DELETE" }, true},
		{"another path", func(r *Record) { r.Path = "/private" }, true},
		{"by source-map", func(r *Record) { r.Proof = allowlist.ProofSourceMap }, true},
		{"by a datagram", func(r *Record) { r.Wire = WireUDP }, true},
		{"by another policy", func(r *Record) { r.Generation++ }, true},
		{"an allowed one", func(r *Record) { r.Verdict = allowlist.Allow }, true},
		{"an observed one", func(r *Record) { r.Verdict = allowlist.Observe }, true},
		{"a failure", func(r *Record) { r.Verdict = allowlist.Fail }, true},
	}
	for _, row := range rows {
		out := &memory{}
		r := newRecorder(t, Config{Sinks: to(out), Collapse: time.Hour})
		denied(t, r, "api.example:443").End()
		o := denied(t, r, "api.example:443")
		row.change(&o.Record)
		o.End()
		closeNow(t, r)
		checkSums(t, r)
		if alone := len(out.of(EventDecision)) == 2; alone != row.alone {
			t.Errorf("%s: has a record of its own: %v", row.name, alone)
		}
		if merged := len(out.of(EventCollapsed)) == 1; merged == row.alone {
			t.Errorf("%s: collapsed: %v", row.name, merged)
		}
	}
}

// TestDenialsBeyondTheWindowsAreAllWritten checks that denials beyond the bound on windows
// are written one by one.
func TestDenialsBeyondTheWindowsAreAllWritten(t *testing.T) {
	out := &memory{}
	c := newCollapser(time.Hour, func(rec *Record) { _ = out.Write(t.Context(), []*Record{rec}) })
	go c.run()
	join := func(port int) bool {
		return c.join(&Record{Event: EventDecision, Dest: allowlist.Destination{Port: uint16(port)}})
	}
	for port := range maxWindows {
		if join(port) {
			t.Fatalf("port %d was seen before", port)
		}
	}
	if !join(7) || join(maxWindows) || join(maxWindows) {
		t.Error("a window beyond the bound, or none within it")
	}
	c.close()
	if join(8) {
		t.Error("merged after close")
	}
	if got := out.of(EventCollapsed); len(got) != 1 || got[0].Dest.Port != 7 || got[0].Merged.Count != 1 {
		t.Errorf("got %+v", got)
	}
}

// TestSummaryCountsAllDenialsOfACollapsedRecord checks that a summary counts all denials
// of a collapsed record for which the queue has no room.
func TestSummaryCountsAllDenialsOfACollapsedRecord(t *testing.T) {
	var ts tallies
	ts.add(&Record{Event: EventDecision, Reason: allowlist.NotOnAllowlist, Time: time.Unix(5, 0)})
	ts.add(&Record{Event: EventCollapsed, Reason: allowlist.NotOnAllowlist, Merged: &Merged{
		Count: 41, First: time.Unix(3, 0), Last: time.Unix(4, 0),
	}})
	taken := ts.take(true)
	all := taken.list()
	want := Merged{
		Count: 42, First: time.Unix(3, 0), Last: time.Unix(5, 0),
		Counts: []Count{{allowlist.Deny, allowlist.NotOnAllowlist, 42}},
	}
	if len(all) != 1 || all[0].records != 2 || !cmp.Equal(all[0].merged, want) {
		t.Errorf("got %+v", all[0])
	}
}
