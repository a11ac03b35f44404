// Package collector tests exeat with a real OpenTelemetry Collector: 20,000 decisions are
// exported, once to a collector that stays and once to one that is killed and started
// again.
//
// The collector is otelcol below this directory, a module of its own that takes
// most of a minute to build. Without the flag for its path the tests are skipped.
//
//	make collector
package collector

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/e2e/site"
)

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// decisions is the number of decisions in each test.
const decisions = 20_000

var (
	otelcol = flag.String("otelcol", "", "path of the collector; without it the tests are skipped")
	exeat   = flag.String("exeat", "", "path of the program under test; it is built if there is none")
)

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "exeat-collector-")
	if err == nil && *exeat == "" && *otelcol != "" {
		*exeat = filepath.Join(dir, "exeat")
		err = site.Build(context.Background(), dir, site.Program)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// TestEveryDecisionArrivesAsASpanAndALogRecord checks that every decision arrives as a
// span and as a log record of the same trace, and every tunnel as well.
func TestEveryDecisionArrivesAsASpanAndALogRecord(t *testing.T) {
	w := newWorld(t)
	w.startCollector(t)
	p := w.startExeat(t)
	start := time.Now()
	made := w.decide(t, p, asking{workers: 4})
	t.Logf("%d decisions in %v", decisions, time.Since(start))
	p.finalCounts(t, w.spans(t, made), w.records(t, made))
	p.Stop()

	native := w.native(t)
	got := w.collected(t)
	if n := len(native.decisions); n != decisions {
		t.Errorf("%d decisions in the record file, want %d", n, decisions)
	}
	for _, id := range made.refused {
		if _, ok := native.decisions[id]; !ok {
			t.Fatalf("the decision %s that a caller saw was not recorded", id)
		}
	}
	if n, want := w.lines(t, "denials.json"), decisions-made.allowed; n != want {
		t.Errorf("%d denials in the file of denials, want %d", n, want)
	}
	for name, diff := range map[string]string{
		"spans of decisions": cmp.Diff(got.spans, native.decisions),
		"logs of decisions":  cmp.Diff(got.logs, native.decisions),
		"spans of tunnels":   cmp.Diff(keys(got.tunnelSpans), keys(native.tunnels)),
		"logs of tunnels":    cmp.Diff(keys(got.tunnelLogs), keys(native.tunnels)),
		"twice":              cmp.Diff(got.twice, []string(nil)),
	} {
		if diff != "" {
			t.Errorf("%s (-collector +record file):\n%.2000s", name, diff)
		}
	}
	t.Logf("%d decisions and %d tunnels arrived as spans and as logs, joined by id, trace and span",
		len(got.spans), len(got.tunnelSpans))
}

// Numbers of the decision at which the collector is killed, and of the one at which it is
// started again. pace is the number of decisions a second.
const (
	killedAt, backAt = decisions * 3 / 10, decisions * 7 / 10
	pace             = 1000
)

// TestEverySpanIsCountedWhenTheCollectorIsKilled runs without the collector for eight
// seconds, with queues that are too short for that time. Every span must be counted as
// exported, dropped or failed, and the record file must have every decision.
func TestEverySpanIsCountedWhenTheCollectorIsKilled(t *testing.T) {
	w := newWorld(t)
	c := w.startCollector(t)
	p := w.startExeat(t, "OTEL_BSP_MAX_QUEUE_SIZE=4096")
	made := w.decide(t, p, asking{workers: 4, pace: pace, at: map[int]func(){
		killedAt: c.Kill,
		backAt:   func() { w.startCollector(t) },
	}})
	spans, records := w.spans(t, made), w.records(t, made)
	counts := p.finalCounts(t, spans, records)
	p.Stop()

	sum := counts.spans["exported"] + counts.spans["dropped"] + counts.spans["failed"]
	t.Logf("%d spans were made: %v", spans, counts.spans)
	t.Logf("%d records for the collector were made: %v", records, counts.records)
	if sum != spans {
		t.Errorf("exported, dropped and failed are %d, want %d", sum, spans)
	}
	// Every span that is counted as exported has arrived. One that is counted as failed
	// may have arrived, if the answer was lost when the collector was killed.
	got := w.collected(t)
	arrived := len(got.spans) + len(got.tunnelSpans) + got.steps
	if arrived < counts.spans["exported"] || arrived > counts.spans["exported"]+counts.spans["failed"] {
		t.Errorf("%d spans arrived, %v were counted", arrived, counts.spans)
	}
	if n := len(w.native(t).decisions); n != decisions {
		t.Errorf("%d decisions in the record file, want %d: one sink delays the other", n, decisions)
	}
	compareDelays(t, made)
}

// compareDelays compares the times of denials with and without a collector.
func compareDelays(t *testing.T, made *outcome) {
	t.Helper()
	const bar = time.Millisecond
	before, away, after := made.delays(0, killedAt), made.delays(killedAt, backAt), made.delays(backAt, decisions)
	added := away.p99 - max(before.p99, after.p99)
	t.Logf("a denial before the collector is killed: %v; while it is away: %v; after: %v; added at p99: %v (bar %v)",
		before, away, after, added, bar)
	if added > 5*bar { // the machine may be busy with other work
		t.Errorf("a decision takes %v longer at p99 without a collector, more than five times the bar of %v", added, bar)
	}
}
