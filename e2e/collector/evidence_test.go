package collector

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// entry has the fields that must be equal in all forms of a decision.
type entry struct{ Trace, Span, Verdict, Reason string }

// evidence is what the record file has, by the ID of the decision.
type evidence struct {
	decisions map[string]entry
	tunnels   map[string]bool
	steps     int // lookups and dials that were slow or failed, which have spans of their own
}

// native reads the record file.
func (w *world) native(t *testing.T) evidence {
	t.Helper()
	e := evidence{decisions: map[string]entry{}, tunnels: map[string]bool{}}
	all, err := site.ReadRecords(w.Path("records.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		switch r.Event {
		case "decision":
			e.decisions[r.ID] = entry{Trace: r.TraceID, Span: r.SpanID, Verdict: r.Verdict, Reason: r.Reason}
		case "tunnel.close":
			e.tunnels[r.ID] = true
		}
		for _, ms := range []float64{r.ResolveMS, r.DialMS} {
			if ms > 50 {
				e.steps++
			}
		}
	}
	return e
}

// collected is what the collectors of a site have received.
type collected struct {
	spans, logs             map[string]entry
	tunnelSpans, tunnelLogs map[string]bool
	steps                   int
	twice                   []string
}

// The parts of OTLP/JSON that the tests read.
type (
	otlpAttributes []struct {
		Key   string
		Value struct{ StringValue string }
	}
	otlpItem struct {
		Name       string // name of a span
		TraceID    string `json:"traceId"`
		SpanID     string `json:"spanId"`
		Body       struct{ StringValue string }
		Attributes otlpAttributes
	}
	otlpRequest struct {
		ResourceSpans []struct {
			ScopeSpans []struct{ Spans []otlpItem }
		}
		ResourceLogs []struct {
			ScopeLogs []struct{ LogRecords []otlpItem }
		}
	}
)

func (a otlpAttributes) get(key string) string {
	for _, kv := range a {
		if kv.Key == key {
			return kv.Value.StringValue
		}
	}
	return ""
}

// collected reads the files of every collector of the site.
func (w *world) collected(t *testing.T) *collected {
	t.Helper()
	c := &collected{
		spans: map[string]entry{}, logs: map[string]entry{},
		tunnelSpans: map[string]bool{}, tunnelLogs: map[string]bool{},
	}
	for _, signal := range []string{"traces", "logs"} {
		files, err := filepath.Glob(w.Path(signal + "-*.jsonl"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no file of %s: %v", signal, err)
		}
		for _, file := range files {
			forEachLine(t, file, c.request)
		}
	}
	return c
}

func (c *collected) request(line []byte) error {
	var r otlpRequest
	if err := json.Unmarshal(line, &r); err != nil {
		return err
	}
	for _, resource := range r.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			for _, item := range scope.Spans {
				c.span(item)
			}
		}
	}
	for _, resource := range r.ResourceLogs {
		for _, scope := range resource.ScopeLogs {
			for _, item := range scope.LogRecords {
				c.log(item)
			}
		}
	}
	return nil
}

func (c *collected) span(item otlpItem) {
	switch item.Name {
	case "CONNECT":
		c.decision(c.spans, item)
	case "tunnel":
		c.tunnel(c.tunnelSpans, item)
	default:
		c.steps++
	}
}

func (c *collected) log(item otlpItem) {
	switch item.Body.StringValue {
	case "decision":
		c.decision(c.logs, item)
	case "tunnel.close":
		c.tunnel(c.tunnelLogs, item)
	}
}

func (c *collected) decision(all map[string]entry, item otlpItem) {
	id := item.Attributes.get("egress.decision.id")
	if _, ok := all[id]; ok {
		c.twice = append(c.twice, id)
	}
	all[id] = entry{
		Trace: item.TraceID, Span: item.SpanID,
		Verdict: item.Attributes.get("egress.verdict"), Reason: item.Attributes.get("egress.reason"),
	}
}

func (c *collected) tunnel(all map[string]bool, item otlpItem) {
	id := item.Attributes.get("egress.decision.id")
	if all[id] {
		c.twice = append(c.twice, id)
	}
	all[id] = true
}

// forEachLine calls each for the whole lines of a file. It skips an incomplete line at
// the end, which a killed process may have left.
func forEachLine(t *testing.T, path string, each func(line []byte) error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := each(line); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
}

// spans returns the number of spans that must have been made.
func (w *world) spans(t *testing.T, made *outcome) int {
	t.Helper()
	return decisions + made.allowed + w.completeNative(t, made).steps
}

// records returns the number of records that the collector must get: as many as are in
// the native file, which loses none.
func (w *world) records(t *testing.T, made *outcome) int {
	t.Helper()
	w.completeNative(t, made)
	return w.lines(t, "records.jsonl")
}

// lines returns the number of lines in a file of the site.
func (w *world) lines(t *testing.T, name string) int {
	t.Helper()
	n := 0
	forEachLine(t, w.Path(name), func([]byte) error { n++; return nil })
	return n
}

// completeNative waits until every tunnel has ended and is in the record file.
func (w *world) completeNative(t *testing.T, made *outcome) evidence {
	t.Helper()
	late := time.After(patience)
	for {
		e := w.native(t)
		if len(e.decisions) >= decisions && len(e.tunnels) >= made.allowed {
			return e
		}
		select {
		case <-late:
			t.Fatalf("%d decisions and %d tunnels in the record file, want %d and %d",
				len(e.decisions), len(e.tunnels), decisions, made.allowed)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// counts are the metrics of spans and of the collector's records, by result.
type counts struct{ spans, records map[string]int }

// finalCounts waits until the metrics count a result for every span and every record. The
// number of spans must be exact.
func (p *gateway) finalCounts(t *testing.T, spans, records int) counts {
	t.Helper()
	late := time.After(patience)
	for {
		c := p.counts(t)
		s, r := sum(c.spans), sum(c.records)
		if s == spans && r >= records {
			return c
		}
		if s > spans {
			t.Fatalf("the results of spans add up to %d, %d were made: %v", s, spans, c.spans)
		}
		select {
		case <-late:
			t.Fatalf("%d spans were made, %v is counted; %d records, %v", spans, c.spans, records, c.records)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func sum(results map[string]int) int {
	n := 0
	for _, v := range results {
		n += v
	}
	return n
}

// counts reads the metrics from /metrics.
func (p *gateway) counts(t *testing.T) counts {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://%s/metrics", p.admin))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	read := func(pattern string) map[string]int {
		results := map[string]int{}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			n, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				t.Fatal(err)
			}
			results[m[1]] = int(n)
		}
		return results
	}
	return counts{
		spans:   read(`(?m)^egress_spans_total\{result="(\w+)"\} (\S+)$`),
		records: read(`(?m)^egress_records_total\{result="(\w+)",sink="collector"\} (\S+)$`),
	}
}

func keys(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }
