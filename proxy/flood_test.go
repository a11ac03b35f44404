package proxy_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestFloodOfDenialsHidesNoOtherRecords makes one identity send denied requests as fast as
// it can while the sink takes no records, and another identity open a hundred tunnels.
// Every record of the other identity must be written, and every denial must have a record
// or be counted in a summary.
func TestFloodOfDenialsHidesNoOtherRecords(t *testing.T) {
	const tunnels, floods, each = 100, 2, 400
	e := startEvidence(t, audit.Config{Queue: 2048}, &evidence{stuck: make(chan struct{})})
	g := newGateway(t, options{evidence: e})

	var denied atomic.Uint64
	var flooders sync.WaitGroup
	for range floods {
		c := g.call(t, "reporter")
		flooders.Go(func() {
			for range each { // on one connection, so that no handshake slows the flood
				if a := c.ask(t, get("http://secret.example/")); a.status == 403 {
					denied.Add(1)
				}
			}
			_ = c.Close()
		})
	}
	for range tunnels {
		c := g.call(t, "builder")
		if a := c.ask(t, connectTo(g.at("allowed.example"))); a.status != 200 {
			t.Fatalf("answered %s", a.phrase)
		}
		_ = g.origin.next(t).Close()
		c.ended(t)
	}
	flooders.Wait()
	// A caller may get its answer before its record is queued.
	for end := time.Now().Add(patience); e.recorder.Stats().Sinks[0].Made < floods*each+2*tunnels; {
		if time.Now().After(end) {
			t.Fatalf("records are missing: %+v", e.recorder.Stats())
		}
		runtime.Gosched()
	}
	close(e.stuck)

	var allows, closes, denials, summarised uint64
	for _, r := range e.rest(t) {
		switch {
		case r.Event == string(audit.EventSummary):
			summarised += r.Count
		case r.Identity == id("builder").String() && r.Event == string(audit.EventTunnelClose):
			closes++
		case r.Identity == id("builder").String():
			allows++
		default:
			denials++
		}
	}
	if allows != tunnels || closes != tunnels {
		t.Errorf("%d allows and %d closes of the other identity, want %d each", allows, closes, tunnels)
	}
	if summarised == 0 || denials+summarised != denied.Load() || denied.Load() != floods*each {
		t.Errorf("%d denied; %d records and %d in summaries", denied.Load(), denials, summarised)
	}
}
