package proxy_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// fact holds what a record and its span must agree on.
type fact struct{ Verdict, Reason, Host, Status, Trace, Span string }

// TestRecordsAndSpansAreTheSameDecisions makes 500 decisions with every reason, half of
// them under a context that asks not to be sampled. A case that waits for a deadline is
// decided once with such a context and once without.
func TestRecordsAndSpansAreTheSameDecisions(t *testing.T) {
	const total, slowShare = 500, 2
	w := newWorld(t)
	cases := wireCases()
	slow := 0
	for _, c := range cases {
		if c.slow {
			slow++
		}
	}
	fast, made := total-slow*slowShare, 0
	shares := make([]int, len(cases))
	for i := 0; made < fast; i = (i + 1) % len(cases) {
		if !cases[i].slow {
			shares[i]++
			made++
		}
	}
	answered := make([][]answer, len(cases))
	t.Run("decide", func(t *testing.T) {
		for i, c := range cases {
			if c.slow {
				shares[i] = slowShare
			}
			t.Run(c.reason.String(), func(t *testing.T) {
				t.Parallel()
				for n := range shares[i] {
					var fields []string
					if n%2 == 0 {
						fields = []string{fmt.Sprintf("Traceparent: 00-%032x-%016x-00", i*total+n+1, n+1)}
					}
					answered[i] = append(answered[i], c.decide(t, w, fields...))
				}
			})
		}
	})
	fromRecords, unseen, linked := map[string]fact{}, 0, 0
	count := map[string]int{}
	tunnels, closes := 0, shares[0]
	for i, c := range cases {
		if c.plain {
			closes += shares[i]
		}
	}
	for _, r := range w.until(t, total+closes) {
		switch r.Event {
		case string(audit.EventTunnelClose):
			tunnels++
			continue
		case string(audit.EventHandshake):
			unseen++ // no door has seen the request, so that it has no span
		default:
			fromRecords[r.ID] = fact{r.Verdict, r.Reason, r.Host, strconv.Itoa(r.Status), r.TraceID, r.SpanID}
		}
		if r.CallerTraceID != "" {
			linked++
		}
		count[r.Reason]++
	}
	for i, c := range cases {
		count[c.reason.String()] -= shares[i]
		for _, a := range answered[i] {
			if a.id() != "" && fromRecords[a.id()].Reason != c.reason.String() {
				t.Errorf("the answer has the id %s for %s, the record says %q", a.id(), c.reason, fromRecords[a.id()].Reason)
			}
		}
	}
	for reason, n := range count {
		if n != 0 {
			t.Errorf("%d records too many with reason %q", n, reason)
		}
	}
	if len(fromRecords)+unseen != total || tunnels != closes || linked < total/3 {
		t.Errorf("%d decisions, %d failed handshakes, %d tunnels, %d with the caller's trace", len(fromRecords), unseen, tunnels, linked)
	}
	if diff := cmp.Diff(fromRecords, decisionSpans(t, w.spans.GetSpans())); diff != "" {
		t.Errorf("records (-) and spans (+) differ: %s", diff)
	}
}

// until waits for the given number of records.
func (e *evidence) until(t *testing.T, n int) []record {
	t.Helper()
	all := make([]record, 0, n)
	for len(all) < n {
		select {
		case r := <-e.records:
			all = append(all, r)
		case <-time.After(patience):
			t.Fatalf("%d records, want %d", len(all), n)
		}
	}
	return append(all, e.rest(t)...)
}

// decisionSpans returns the facts of the decisions' spans by decision id.
func decisionSpans(t *testing.T, spans tracetest.SpanStubs) map[string]fact {
	t.Helper()
	facts := map[string]fact{}
	for _, s := range spans {
		if s.Name != "CONNECT" && s.Name != "http" { // tunnels, exchanges, and the steps that were slow or failed
			continue
		}
		attrs := map[attribute.Key]string{}
		for _, kv := range s.Attributes {
			attrs[kv.Key] = kv.Value.String()
		}
		id := attrs["egress.decision.id"]
		if _, twice := facts[id]; twice || s.Parent.IsValid() || !s.SpanContext.IsSampled() {
			t.Errorf("span %s of decision %s: twice %v, parent %v, sampled %v", s.Name, id, twice, s.Parent.IsValid(), s.SpanContext.IsSampled())
		}
		status := attrs["http.response.status_code"]
		if status == "" {
			status = "0"
		}
		facts[id] = fact{
			attrs["egress.verdict"], attrs["egress.reason"], attrs["server.address"], status,
			s.SpanContext.TraceID().String(), s.SpanContext.SpanID().String(),
		}
	}
	return facts
}
