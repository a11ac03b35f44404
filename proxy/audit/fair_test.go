package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// paced is a memory that writes 400 records a second.
type paced struct{ memory }

func (p *paced) Write(ctx context.Context, records []*Record) error {
	time.Sleep(time.Duration(len(records)) * time.Second / 400)
	return p.memory.Write(ctx, records)
}

// TestFloodOfDenialsRefusesNoAllowedRequest denies 1,500 connections continuously with
// required records, while the sink writes 400 records a second. All allowed requests of
// another caller must be recorded in time, also while other records fill the queue.
func TestFloodOfDenialsRefusesNoAllowedRequest(t *testing.T) {
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 1)
	}
	for name, flood := range map[string]func(rec *Record, i int){
		"one identity": func(rec *Record, _ int) { rec.Identity = spiffeid.RequireFromString("spiffe://td.example/flood") },
		"one identity from many networks": func(rec *Record, i int) {
			rec.Identity, rec.Client = spiffeid.RequireFromString("spiffe://td.example/flood"), addr(i)
		},
		"many identities from one source": func(rec *Record, i int) {
			rec.Identity, rec.Client = spiffeid.RequireFromString(fmt.Sprint("spiffe://td.example/flood/", i)), addr(1)
		},
		"no identity from many networks": func(rec *Record, i int) { rec.Client = addr(i) },
	} {
		for _, queue := range []int{0, 1000} {
			synctest.Test(t, func(t *testing.T) {
				out := &paced{}
				r := newRecorder(t, Config{Sinks: to(out), Required: true, Queue: queue})
				ctx, stop := context.WithCancel(t.Context())
				var running sync.WaitGroup
				for i := range 1500 {
					running.Go(func() {
						for ctx.Err() == nil {
							o := r.Begin(t.Context(), Start{Listener: "main", Protocol: ProtocolConnect})
							o.Verdict, o.Reason, o.Status = allowlist.Deny, allowlist.NotOnAllowlist, 403
							flood(&o.Record, i)
							if o.Commit(t.Context()) != nil {
								o.Verdict, o.Reason, o.Status = allowlist.Fail, allowlist.AuditUnavailable, 503
							}
							o.End()
							time.Sleep(500 * time.Millisecond) // the pause after each denial
						}
					})
				}
				time.Sleep(time.Second)
				for i := range 8 {
					o := decide(t, r, "quiet", allowlist.Allow, allowlist.NoReason)
					o.Client = addrPort("192.0.2.1:1")
					if err := o.Commit(t.Context()); err != nil {
						t.Fatalf("%s, queue of %d: the allowed request %d: %v", name, queue, i, err)
					}
					o.End()
					o.Tunnel().Close(t.Context(), 1, 1, tunnel.Client, allowlist.NoReason)
				}
				stop()
				running.Wait()
				closeNow(t, r)
				checkSums(t, r)
				decided := map[string]bool{}
				for _, rec := range out.taken() {
					switch {
					case rec.Identity.Path() != "/quiet":
					case rec.Event == EventDecision:
						decided[rec.ID] = true
					case rec.Event == EventTunnelClose && !decided[rec.ID]:
						t.Error("a tunnel ends before its decision")
					case rec.Event == EventTunnelClose:
						delete(decided, rec.ID)
					}
				}
				if len(decided) != 0 {
					t.Errorf("%s, queue of %d: %d tunnels have no end", name, queue, len(decided))
				}
			})
		}
	}
}

// TestCountsAddUpInAnyInterleaving lets callers commit, give up, and queue records without
// Commit, at random, over small queues. A successful Commit must mean that the record is
// written, and every lost record must be counted.
func TestCountsAddUpInAnyInterleaving(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			slowest := &memory{delay: 3 * time.Millisecond}
			sinks := to(&memory{delay: time.Millisecond}, slowest, NewLines(&flaky{}, render))
			r := newRecorder(t, Config{Sinks: sinks, Required: true, Queue: 4 + rng.IntN(40)})
			var mu sync.Mutex
			committed := map[string]bool{}
			var running sync.WaitGroup
			for range 200 {
				rec := party(rng)
				rec.Verdict = allowlist.Verdict(rng.IntN(4))
				patience, begin := time.Duration(rng.IntN(20))*time.Millisecond, time.Duration(rng.IntN(300))*time.Millisecond
				waits := rng.IntN(3) > 0
				running.Go(func() {
					time.Sleep(begin)
					o := r.Begin(t.Context(), Start{Listener: rec.Listener, Protocol: ProtocolConnect})
					o.Identity, o.Client, o.Verdict = rec.Identity, rec.Client, rec.Verdict
					if waits {
						ctx, cancel := context.WithTimeout(t.Context(), patience)
						defer cancel()
						if o.Commit(ctx) == nil {
							mu.Lock()
							committed[o.ID] = true
							mu.Unlock()
						}
					}
					o.End()
				})
			}
			running.Wait()
			closeNow(t, r)
			checkSums(t, r)
			written := map[string]int{}
			for _, rec := range slowest.taken() {
				written[rec.ID]++
			}
			for id := range committed {
				if written[id] != 1 {
					t.Errorf("seed %d: a committed record was written %d times", seed, written[id])
				}
			}
			if got, want := r.Stats().Sinks[1].Written, uint64(len(slowest.taken())); got != want {
				t.Errorf("seed %d: %d written, the sink has %d", seed, got, want)
			}
			for _, w := range r.workers {
				q := w.queue
				if q.ring.count+q.waiting.count()+q.ring.denials.root.count+q.ring.late.root.count+q.waiting.networks.root.count != 0 {
					t.Errorf("seed %d: the empty queue of %s is not", seed, w.cfg.Name)
				}
			}
		})
	}
}

// TestRecordOfACallerThatGaveUpIsRemoved checks that the record of a caller that has given
// up leaves the queue, and does not delay the others.
func TestRecordOfACallerThatGaveUpIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSlow()
		r := newRecorder(t, Config{Sinks: to(out), Required: true})
		r.Event(Record{})
		synctest.Wait() // the sink's Write does not return
		ctx, leave := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for range 1000 {
			running.Go(func() {
				if err := decide(t, r, "a", allowlist.Deny, allowlist.NotOnAllowlist).Commit(ctx); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		if n := r.workers[0].queue.waiting.count(); n != 1000 {
			t.Errorf("%d wait", n)
		}
		leave()
		running.Wait()
		if got := r.Stats().Sinks[0]; r.workers[0].queue.waiting.count() != 0 || got.Dropped != 1000 || got.Waiting != 1 {
			t.Errorf("got %+v", got)
		}
		close(out.let)
	})
}

// TestForgedSourcesHideNoOtherDenials sends 13,000 denials of as many sources without an
// identity to a sink that hangs. The first denial of an identity must be written, and so
// must that of a caller on another listener, and that of a caller in another network
// unless the forged sources have more networks than there is room for.
func TestForgedSourcesHideNoOtherDenials(t *testing.T) {
	v4 := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	v6 := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	for name, row := range map[string]struct {
		addr     func(i int) netip.Addr
		networks bool // there are more networks than there is room for
	}{
		"one after another":           {v4, false},
		"in 1,300 networks":           {func(i int) netip.Addr { return v4(i/10<<8 | i%10) }, false},
		"in 1,300 networks, in turn":  {func(i int) netip.Addr { return v4(i%1300<<8 | i/1300) }, false},
		"each from another network":   {func(i int) netip.Addr { return v4(i << 8) }, true},
		"from a few IPv6 sites":       {v6, false},
		"each from another IPv6 site": {func(i int) netip.Addr { return v6(i << 8) }, true},
		"two from each address":       {func(i int) netip.Addr { return v4(i / 2) }, false},
	} {
		out := newSlow()
		r := newRecorder(t, Config{Sinks: to(out)})
		r.Event(Record{Event: EventPolicyReload})
		<-out.entered // the queue is empty now
		deny := func(listener, identity string, addr netip.Addr) string {
			o := r.Begin(t.Context(), Start{Listener: listener, Protocol: ProtocolDNS, Wire: WireUDP})
			o.Verdict, o.Reason, o.Client = allowlist.Deny, allowlist.IdentityMissing, netip.AddrPortFrom(addr, 53)
			if identity != "" {
				o.Identity = spiffeid.RequireFromString(identity)
			}
			o.End()
			return o.ID
		}
		const forged = 13000
		for i := range forged {
			deny("udp", "", row.addr(i))
		}
		victims := map[string]string{
			deny("udp", "spiffe://td.example/a", row.addr(0)): "an identity",
			deny("tcp", "", row.addr(1)):                      "a caller on another listener",
		}
		if !row.networks {
			victims[deny("udp", "", netip.MustParseAddr("192.0.2.1"))] = "a caller in another network"
			victims[deny("udp", "", netip.MustParseAddr("2001:db9::1"))] = "a caller in another IPv6 network"
		}
		for i := range forged { // the flood continues
			deny("udp", "", row.addr(forged-i))
		}
		close(out.let)
		closeNow(t, r)
		checkSums(t, r)
		var counted uint64
		for _, rec := range out.taken() {
			if rec.Merged != nil {
				counted += rec.Merged.Count
			} else if rec.Event == EventDecision {
				counted++
			}
			delete(victims, rec.ID)
		}
		for _, who := range victims {
			t.Errorf("%s: the first denial of %s has no line", name, who)
		}
		if want := r.Stats().Made - 1; counted != want || r.Stats().Lost() != 0 {
			t.Errorf("%s: %d of %d are counted", name, counted, want)
		}
	}
}

// TestFloodOfDenialsLeavesWindowsForOthers checks that identical denials are merged even
// while another caller sends distinct ones.
func TestFloodOfDenialsLeavesWindowsForOthers(t *testing.T) {
	var put []Record
	c := newCollapser(time.Hour, func(rec *Record) { put = append(put, *rec) })
	join := func(who string, port int) bool {
		return c.join(&Record{
			Event: EventDecision, Identity: spiffeid.RequireFromString("spiffe://td.example/" + who),
			Dest: allowlist.Destination{Port: uint16(port)},
		})
	}
	for port := range 2 * maxWindows {
		join("flood", port)
		join("flood", maxWindows-1) // the last window merges a denial
	}
	if join("quiet", 1) || !join("quiet", 1) || !join("quiet", 1) {
		t.Error("identical denials are not merged")
	}
	if len(c.open) != maxWindows || c.callers.root.count != maxWindows {
		t.Errorf("%d windows, %d are counted", len(c.open), c.callers.root.count)
	}
	merged := uint64(0)
	go c.run()
	c.close()
	for _, rec := range put {
		merged += rec.Merged.Count
	}
	if want := uint64(2*maxWindows - 1 + 1 + 2); merged != want {
		t.Errorf("%d are merged, want %d", merged, want)
	}
	if len(c.open) != 0 || c.first != nil || c.last != nil || c.callers.root.count != 0 {
		t.Error("windows are left")
	}
}
