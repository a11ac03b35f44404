package audit

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// forged returns a denial that came in a datagram, from an address that is mapped to
// caller a.
func forged(t *testing.T, r *Recorder) *Pending {
	t.Helper()
	o := decide(t, r, "a", allowlist.Deny, allowlist.NotOnAllowlist)
	o.Proof, o.Wire = allowlist.ProofSourceMap, WireUDP
	return o
}

// TestForgedDenialsLeaveRoomForProvenRecords checks that every record of the identity by a
// certificate is written, and that the summary of the forged denials says that nothing is
// proven.
func TestForgedDenialsLeaveRoomForProvenRecords(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out), Queue: 16})
	r.Event(Record{Event: EventPolicyReload})
	<-out.entered // the queue is empty now
	const flood = 100
	for range flood {
		forged(t, r).End()
	}
	for range 2 { // the whole share of an identity
		o := decide(t, r, "a", allowlist.Deny, allowlist.NotOnAllowlist)
		o.Proof = allowlist.ProofX509SVID
		o.End()
	}
	for range flood { // without an identity
		r.Event(Record{Event: EventDecision, Client: addrPort("192.0.2.1:5"), Wire: WireUDP, Reason: allowlist.IdentityMissing})
	}
	for range 2 {
		r.Event(Record{Event: EventHandshake, Client: addrPort("192.0.2.1:5"), Reason: allowlist.TLSHandshakeFailed})
	}
	close(out.let)
	closeNow(t, r)
	checkSums(t, r)
	if lost := r.Stats().Lost(); lost != 0 {
		t.Errorf("%d records are lost", lost)
	}
	lines := map[string]int{}
	for _, rec := range out.taken() {
		who := rec.Identity.Path() + rec.Client.Addr().String()
		switch {
		case rec.Event == EventSummary && (rec.Merged.Count != flood-2 || !rec.Unproven() || (rec.Proof == allowlist.ProofSourceMap) != !rec.Identity.IsZero()):
			t.Errorf("a summary of %d of %s, by %q over %q", rec.Merged.Count, who, rec.Proof, rec.Wire)
		case rec.Event == EventSummary:
			lines["summary of "+who]++
		case !rec.Unproven() && rec.Event != EventPolicyReload:
			lines["record of "+who]++
		}
	}
	for _, what := range []string{"summary of /ainvalid IP", "summary of 192.0.2.1"} {
		if lines[what] != 1 {
			t.Errorf("%v, want one %s", lines, what)
		}
	}
	for _, what := range []string{"record of /ainvalid IP", "record of 192.0.2.1"} {
		if lines[what] != 2 {
			t.Errorf("%v, want two of %s", lines, what)
		}
	}
}

// TestSummaryOfForgedDenialsStaysUnproven checks that forged and proven denials of one
// identity have a summary each, also if a summary could not be written and is counted
// again.
func TestSummaryOfForgedDenialsStaysUnproven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{err: errors.New("no space"), delay: time.Millisecond}
		r := newRecorder(t, Config{Sinks: to(out), Queue: 16})
		for range 50 {
			forged(t, r).End()
			o := decide(t, r, "a", allowlist.Deny, allowlist.NotOnAllowlist)
			o.Proof = allowlist.ProofListener
			o.End()
		}
		time.Sleep(3 * time.Second)
		out.fail(nil)
		time.Sleep(3 * time.Second)
		closeNow(t, r)
		checkSums(t, r)
		of := map[bool]int{}
		for _, rec := range out.of(EventSummary) {
			if of[rec.Unproven()]++; rec.Unproven() != (rec.Proof == allowlist.ProofSourceMap) {
				t.Errorf("a summary by %q over %q", rec.Proof, rec.Wire)
			}
		}
		if of[true] != 1 || of[false] != 1 {
			t.Errorf("%v summaries, one of what is unproven and one of what is not", of)
		}
	})
}

// TestRecordsOfOtherProofsHaveTheirOwnKeys checks that records of an identity by
// source-map, or in a datagram, share neither a key nor a window with those of its
// certificate; see proof.
func TestRecordsOfOtherProofsHaveTheirOwnKeys(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://td.example/a")
	base := Record{Identity: id, Proof: allowlist.ProofX509SVID, Wire: WireDoT}
	for _, row := range []struct {
		name   string
		change func(*Record)
		same   bool
	}{
		{"by a listener", func(r *Record) { r.Proof = allowlist.ProofListener }, true},
		{"over another wire", func(r *Record) { r.Wire = WireH1 }, true},
		{"by source-map over a connection", func(r *Record) { r.Proof, r.Wire = allowlist.ProofSourceMap, WireTCP }, false},
		{"by source-map in a datagram", func(r *Record) { r.Proof, r.Wire = allowlist.ProofSourceMap, WireUDP }, false},
		{"by a listener in a datagram", func(r *Record) { r.Proof, r.Wire = allowlist.ProofListener, WireUDP }, false},
	} {
		rec := base
		row.change(&rec)
		if same := keyOf(&rec) == keyOf(&base); same != row.same {
			t.Errorf("%s: the key is the same: %v", row.name, same)
		}
		if same := denialKeyOf(&rec) == denialKeyOf(&base); same != row.same {
			t.Errorf("%s: collapsed: %v", row.name, same)
		}
		if rec.Unproven() != (rec.Wire == WireUDP) {
			t.Errorf("%s: unproven: %v", row.name, rec.Unproven())
		}
	}
}

// TestSpanSaysThatItsCallerIsUnproven checks that the span has the attribute
// egress.unproven.
func TestSpanSaysThatItsCallerIsUnproven(t *testing.T) {
	for _, wire := range []Wire{WireUDP, WireTCP, WireDoT, WireDoH, WireH1} {
		r, spans := newTraced(t)
		r.Begin(t.Context(), Start{Protocol: ProtocolDNS, Wire: wire}).End()
		if said := attributes(one(t, spans))["egress.unproven"]; (said == true) != (wire == WireUDP) {
			t.Errorf("%s: the span says unproven: %v", wire, said)
		}
	}
}

// TestForgedDenialsLeaveWindowsForOthers checks that identical denials of other callers
// are still merged, however many identities are forged.
func TestForgedDenialsLeaveWindowsForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCollapser(time.Minute, func(*Record) {})
		go c.run()
		defer c.close()
		denial := func(name string, port int, source allowlist.Proof, wire Wire) *Record {
			id := spiffeid.RequireFromString("spiffe://td.example/" + name)
			return &Record{
				Event: EventDecision, Reason: allowlist.NotOnAllowlist, Identity: id, Proof: source, Wire: wire,
				Dest: allowlist.Destination{Port: uint16(port)},
			}
		}
		const identities, each = 512, 2 * maxWindows / 512
		for port := range each {
			for i := range identities {
				c.join(denial(fmt.Sprintf("forged-%d", i), port, allowlist.ProofSourceMap, WireUDP))
			}
		}
		if len(c.open) != maxWindows {
			t.Fatalf("%d windows are open, want %d", len(c.open), maxWindows)
		}
		for port := range 2 * each { // more than each forged identity has
			if c.join(denial("victim", port, allowlist.ProofX509SVID, WireDoT)) || !c.join(denial("victim", port, allowlist.ProofX509SVID, WireDoT)) {
				t.Fatalf("denial %d: forged denials take all windows", port)
			}
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(c.open) != 0 {
			t.Errorf("%d windows when all have ended", len(c.open))
		}
	})
}
