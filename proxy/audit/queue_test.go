package audit

import (
	"context"
	"errors"
	"fmt"
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

// TestFlooderLeavesRoomForOthers denies one identity's requests at full speed while
// another identity opens a hundred tunnels and the sink hangs. Every record of the other
// identity must be written, and the flooder's must be counted exactly.
func TestFlooderLeavesRoomForOthers(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out), Queue: 1024})
	const flooders, each, tunnels = 4, 5000, 100
	var running sync.WaitGroup
	for range flooders {
		running.Go(func() {
			for i := range each {
				reason := allowlist.NotOnAllowlist
				if i%5 == 0 {
					reason = allowlist.PortNotAllowed
				}
				decide(t, r, "flooder", allowlist.Deny, reason).End()
			}
		})
	}
	running.Go(func() {
		for range tunnels {
			o := decide(t, r, "quiet", allowlist.Allow, allowlist.NoReason)
			o.End()
			o.Tunnel().Close(t.Context(), 1, 1, tunnel.Client, allowlist.NoReason)
			decide(t, r, "quiet", allowlist.Deny, allowlist.NotOnAllowlist).End()
		}
	})
	running.Wait()
	close(out.let)
	closeNow(t, r)

	checkSums(t, r)
	stats := r.Stats()
	if stats.Made != flooders*each+3*tunnels || stats.Lost() != 0 || stats.Sinks[0].Summarised == 0 {
		t.Errorf("got %+v", stats)
	}
	quiet := map[Event]int{}
	flood := map[allowlist.Reason]uint64{}
	for _, rec := range out.taken() {
		switch {
		case rec.Identity.Path() == "/quiet":
			quiet[rec.Event]++
		case rec.Merged == nil:
			flood[rec.Reason]++
		default:
			var sum uint64
			for _, c := range rec.Merged.Counts {
				flood[c.Reason] += c.Count
				sum += c.Count
			}
			if sum != rec.Merged.Count || rec.Identity.Path() != "/flooder" || rec.Event != EventSummary {
				t.Errorf("summary %+v of %s counts %d", *rec.Merged, rec.Identity, sum)
			}
		}
	}
	if diff := cmp.Diff(map[Event]int{EventDecision: 2 * tunnels, EventTunnelClose: tunnels}, quiet); diff != "" {
		t.Errorf("records of the other (-want +got):\n%s", diff)
	}
	want := map[allowlist.Reason]uint64{allowlist.PortNotAllowed: flooders * each / 5, allowlist.NotOnAllowlist: flooders * each * 4 / 5}
	if diff := cmp.Diff(want, flood); diff != "" {
		t.Errorf("records of the flooder (-want +got):\n%s", diff)
	}
}

// TestSharesOfTheQueue fills a queue of sixteen behind a Write that does not return. Each
// identity has room for one or two denials, all identities have room for twelve, and the
// rest is for other records, which displace denials.
func TestSharesOfTheQueue(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out), Queue: 16})
	r.Event(Record{Event: EventPolicyReload})
	<-out.entered // the queue is empty now
	for i := range 8 {
		for range 5 {
			decide(t, r, fmt.Sprint("flooder-", i), allowlist.Deny, allowlist.NotOnAllowlist).End()
		}
	}
	for i := range 6 {
		r.Event(Record{Event: EventTunnelClose, Identity: spiffeid.RequireFromString(fmt.Sprint("spiffe://td.example/", i))})
	}
	got := r.Stats().Sinks[0]
	if want := (SinkStats{Name: "a", Made: 47, Waiting: 47}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for i := range 20 { // more than denials give way for
		r.Event(Record{Event: EventTunnelClose, Identity: spiffeid.RequireFromString(fmt.Sprint("spiffe://td.example/more-", i))})
	}
	if got := r.Stats().Sinks[0].Dropped; got != 12 {
		t.Errorf("%d are dropped", got)
	}
	if f := r.Failing(); len(f) != 1 || f[0].Sink != "a" || !errors.Is(f[0].Err, errOverflow) {
		t.Errorf("failing: %+v", f)
	}
	close(out.let)
	closeNow(t, r)
	checkSums(t, r)
	if decisions, sums := len(out.of(EventDecision)), len(out.of(EventSummary)); decisions != 2 || sums != 8 {
		t.Errorf("%d decisions and %d summaries", decisions, sums)
	}
	if f := r.Failing(); f != nil {
		t.Errorf("still failing: %+v", f)
	}
}

// TestABusyIdentityLeavesRoomForOthers checks records that are not denials: however many
// of them one identity has, there is room for those of others.
func TestABusyIdentityLeavesRoomForOthers(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out), Queue: 1024})
	r.Event(Record{Event: EventPolicyReload})
	<-out.entered // the queue is empty now
	for range 5000 {
		decide(t, r, "busy", allowlist.Observe, allowlist.NoReason).End()
	}
	for range 8 {
		o := decide(t, r, "quiet", allowlist.Allow, allowlist.NoReason)
		o.End()
		o.Tunnel().Close(t.Context(), 1, 1, tunnel.Client, allowlist.NoReason)
		r.Event(Record{Event: EventPolicyReload})
	}
	close(out.let)
	closeNow(t, r)
	checkSums(t, r)
	count := map[string]int{}
	for _, rec := range out.taken() {
		count[rec.Identity.Path()]++
	}
	busy := 1024 - 1024/lateParts + 1024/lateShareParts
	if diff := cmp.Diff(map[string]int{"/busy": busy, "/quiet": 16, "": 9}, count); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if q := r.workers[0].queue; q.ring.late.root.count != 0 || q.ring.denials.root.count != 0 {
		t.Errorf("an empty queue counts %d and %d", q.ring.late.root.count, q.ring.denials.root.count)
	}
}

// TestAFloodFromOneIPv6Network checks that failed handshakes from one IPv6 network share
// one summary, although each comes from another address, and leave room for the records of
// another address.
func TestAFloodFromOneIPv6Network(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out), Queue: 1024})
	r.Event(Record{Event: EventPolicyReload})
	<-out.entered // the queue is empty now
	handshake := func(addr netip.Addr) {
		r.Event(Record{Event: EventHandshake, Reason: allowlist.TLSHandshakeFailed, Client: netip.AddrPortFrom(addr, 1)})
	}
	addr := netip.MustParseAddr("2001:db8::")
	for range 2 * maxTallies {
		addr = addr.Next()
		handshake(addr)
	}
	other := netip.MustParseAddr("192.0.2.1")
	for range 100 {
		handshake(other)
	}
	close(out.let)
	closeNow(t, r)
	checkSums(t, r)
	own := 0
	for _, rec := range out.of(EventHandshake) {
		if rec.Client.Addr() == other {
			own++
		}
	}
	if own != 100 {
		t.Errorf("%d of 100 records of the other are there", own)
	}
	sums := out.of(EventSummary)
	if len(sums) != 1 || sums[0].Merged.Other || sums[0].Client != addrPort("[2001:db8::]:0") {
		t.Errorf("%d summaries, the first of %v", len(sums), sums[0].Client)
	}
}

// TestFailedHandshakesShareByAddress checks that failed handshakes share the queue by
// address, because their callers have no identity yet.
func TestFailedHandshakesShareByAddress(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out), Queue: 16})
	for port := range uint16(50) {
		r.Event(Record{
			Event: EventHandshake, Reason: allowlist.TLSHandshakeFailed,
			Client: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 1000+port),
		})
	}
	close(out.let)
	closeNow(t, r)
	checkSums(t, r)
	sums := out.of(EventSummary)
	if len(sums) != 1 {
		t.Fatalf("%d summaries", len(sums))
	}
	if got := sums[0]; got.Client != addrPort("192.0.2.1:0") || got.Merged.Count != uint64(50-len(out.of(EventHandshake))) {
		t.Errorf("got %+v of %s", *got.Merged, got.Client)
	}
}

// TestSummariesAreWrittenEverySecond checks the summaries of a flood of 2.5 seconds that
// is faster than the sink.
func TestSummariesAreWrittenEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{delay: 50 * time.Millisecond}
		r := newRecorder(t, Config{Sinks: to(out), Queue: 8})
		begin := time.Now()
		for range 25 {
			for range 10 {
				decide(t, r, "a", allowlist.Deny, allowlist.NotOnAllowlist).End()
				decide(t, r, "b", allowlist.Fail, allowlist.DialFailed).End()
			}
			time.Sleep(100 * time.Millisecond)
		}
		closeNow(t, r)
		checkSums(t, r)
		count := map[string]uint64{}
		last, until := map[string]time.Time{}, map[string]time.Time{}
		for _, rec := range out.of(EventSummary) {
			who := rec.Identity.Path()
			m := rec.Merged
			if since := rec.Time.Sub(last[who]); since < time.Second && rec.Time.Before(begin.Add(2*time.Second)) {
				t.Errorf("%s: a summary %s after the one before", who, since)
			}
			if m.First.Before(until[who]) || m.Last.Before(m.First) || m.Last.After(rec.Time) {
				t.Errorf("%s: from %s to %s, at %s", who, m.First, m.Last, rec.Time)
			}
			last[who], until[who] = rec.Time, m.Last
			count[who] += m.Count
		}
		if n := len(out.of(EventSummary)); n != 6 {
			t.Errorf("%d summaries", n)
		}
		for _, rec := range out.of(EventDecision) {
			count[rec.Identity.Path()]++
		}
		if diff := cmp.Diff(map[string]uint64{"/a": 250, "/b": 250}, count); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestFailedSummaryIsWrittenLater checks that the counts of a summary are not lost if it
// cannot be written.
func TestFailedSummaryIsWrittenLater(t *testing.T) {
	for _, recovers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			out := &memory{delay: time.Millisecond}
			r := newRecorder(t, Config{Sinks: to(out), Queue: 8})
			for range 100 {
				decide(t, r, "a", allowlist.Deny, allowlist.NotOnAllowlist).End()
			}
			time.Sleep(10 * time.Millisecond)
			written := uint64(len(out.taken()))
			out.fail(errors.New("disk full"))
			time.Sleep(5 * summaryEvery / 2)
			synctest.Wait()
			if got := r.Stats().Sinks[0]; got.Waiting != 100-written || got.Failed != 0 {
				t.Errorf("got %+v", got)
			}
			if recovers {
				out.fail(nil)
				time.Sleep(summaryEvery)
				synctest.Wait()
			}
			closeNow(t, r)
			checkSums(t, r)
			stats := r.Stats().Sinks[0]
			sums := out.of(EventSummary)
			switch {
			case !recovers && (stats.Failed != 100-written || len(sums) != 0):
				t.Errorf("got %+v, %d summaries", stats, len(sums))
			case recovers && (len(sums) != 1 || sums[0].Merged.Count != 100-written || stats.Failed != 0):
				t.Errorf("got %+v, %d summaries", stats, len(sums))
			}
		})
	}
}

// TestDenialsBeyondTheBoundsShareSummaries checks that denials beyond the bounds are in
// summaries of their networks, then of their listeners, and only then in one of all
// others, also when the summaries are written later. Identities have summaries of their
// own in any case.
func TestDenialsBeyondTheBoundsShareSummaries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{}
		r := newRecorder(t, Config{Sinks: to(out), Queue: 8})
		out.fail(errors.New("not yet"))
		const fullNetworks = maxTallies / maxNetworkSources // networks whose sources use all the room for sources
		named := spiffeid.RequireFromString("spiffe://td.example/named")
		flood := func() {
			q := r.workers[0].queue
			q.mu.Lock() // the worker must not make room
			defer q.mu.Unlock()
			add := func(rec Record) {
				q.stats.Made++
				rec.Event, rec.Time = EventDecision, time.Now()
				q.tallies.add(&rec)
			}
			addr := func(network, host int) netip.AddrPort {
				return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(network >> 8), byte(network), byte(host)}), 1)
			}
			for network := range fullNetworks + maxNetworks + 5 {
				for host := range maxNetworkSources + 2 {
					add(Record{Client: addr(network, host), Listener: "main"})
				}
			}
			for i := range maxListeners {
				add(Record{Client: addr(20000, 1), Listener: fmt.Sprint("more-", i)})
			}
			add(Record{Identity: named, Client: addr(1, 1), Listener: "main"})
			q.wake()
		}
		flood()
		time.Sleep(3 * summaryEvery / 2) // the first attempt fails
		out.fail(nil)
		time.Sleep(summaryEvery)
		closeNow(t, r)
		checkSums(t, r)
		type group struct{ summaries, records int }
		got := map[string]group{}
		for _, rec := range out.of(EventSummary) {
			kind := "source"
			switch {
			case rec.Identity == named && !rec.Merged.Other:
				kind = "identity"
			case rec.Merged.Other && rec.Client.IsValid():
				if kind = "network"; rec.Client.Addr().As4()[3] != 0 {
					t.Errorf("the network %s", rec.Client)
				}
			case rec.Merged.Other && rec.Listener != "":
				kind = "listener"
			case rec.Merged.Other:
				kind = "other"
			}
			g := got[kind]
			got[kind] = group{g.summaries + 1, g.records + int(rec.Merged.Count)}
		}
		each := maxNetworkSources + 2
		want := map[string]group{
			"identity": {1, 1},
			"source":   {maxTallies, maxTallies},
			// Two of each full network, and all of the later ones.
			"network":  {maxNetworks, 2*fullNetworks + each*(maxNetworks-fullNetworks)},
			"listener": {maxListeners, each*(fullNetworks+5) + maxListeners - 1},
			"other":    {1, 1},
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(group{})); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestCountsOfEverySinkAddUp records from many goroutines over small queues to a slow
// sink, one that fails at times, and one with a filter, and closes the recorder meanwhile.
func TestCountsOfEverySinkAddUp(t *testing.T) {
	slow, filtered := newSlow(), &memory{}
	flaky := &flaky{}
	sinks := to(slow, NewLines(flaky, render), filtered)
	sinks[2].Keep = func(r *Record) bool { return r.Verdict == allowlist.Deny }
	var measured counter
	r := newRecorder(t, Config{Sinks: sinks, Queue: 32, Measure: measured.count})
	const workers, each = 8, 400
	var running sync.WaitGroup
	half := make(chan struct{}, workers)
	for w := range workers {
		running.Go(func() {
			for i := range each {
				if i == each/2 {
					half <- struct{}{}
				}
				decide(t, r, fmt.Sprint(w), allowlist.Verdict(i%4), allowlist.NotOnAllowlist).End()
			}
		})
	}
	for range workers / 2 {
		<-half
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Close(ctx); !errors.Is(err, context.Canceled) { // one sink hangs
		t.Errorf("Close returned %v", err)
	}
	running.Wait()
	close(slow.let)
	closeNow(t, r)
	checkSums(t, r)
	stats := r.Stats()
	if stats.Made != workers*each || measured.n != workers*each {
		t.Errorf("%d made, %d measured", stats.Made, measured.n)
	}
	for i, has := range []uint64{uint64(len(slow.taken())), flaky.lines, uint64(len(filtered.taken()))} {
		if got := stats.Sinks[i].Written; got != has {
			t.Errorf("sink %d: %d written, it has %d", i, got, has)
		}
	}
	for i, want := range []uint64{workers * each, workers * each, workers * each / 4} {
		s := stats.Sinks[i]
		if got := s.Made - uint64(len(summaries(t, i, slow, filtered, flaky))); got != want {
			t.Errorf("sink %d: %d made, want %d", i, got, want)
		}
	}
}

// summaries returns the ids of the summaries in a sink of TestCountsOfEverySinkAddUp.
func summaries(t *testing.T, sink int, slow *slow, filtered *memory, flaky *flaky) []string {
	t.Helper()
	var ids []string
	records := slow.of(EventSummary)
	switch sink {
	case 1:
		return flaky.summaries
	case 2:
		records = filtered.of(EventSummary)
	}
	for _, rec := range records {
		ids = append(ids, rec.ID)
	}
	return ids
}

// counter counts calls.
type counter struct {
	mu sync.Mutex
	n  uint64
}

func (c *counter) count(*Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func TestKeyIsTheIdentityOrElseTheAddress(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://td.example/a")
	client := addrPort("192.0.2.1:5")
	for _, row := range []struct {
		name string
		a, b Record
		same bool
	}{
		{"one identity from two addresses", Record{Identity: id, Client: client}, Record{Identity: id}, true},
		{"two ports of an address", Record{Client: client}, Record{Client: addrPort("192.0.2.1:6")}, true},
		{"two addresses", Record{Client: client}, Record{Client: addrPort("192.0.2.2:5")}, false},
		{"two addresses of one IPv6 network", Record{Client: addrPort("[2001:db8::1]:5")}, Record{Client: addrPort("[2001:db8::ffff:0:2]:5")}, true},
		{"two IPv6 networks", Record{Client: addrPort("[2001:db8::1]:5")}, Record{Client: addrPort("[2001:db8:0:1::1]:5")}, false},
		{"an IPv4 address, also mapped", Record{Client: client}, Record{Client: addrPort("[::ffff:192.0.2.1]:5")}, true},
		{"an identity and its address without it", Record{Identity: id, Client: client}, Record{Client: client}, false},
		{"nothing is known of either", Record{}, Record{}, true},
	} {
		if got := keyOf(&row.a) == keyOf(&row.b); got != row.same {
			t.Errorf("%s: same %v", row.name, got)
		}
	}
}
