package hostile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/native"
)

// record is a record as its reader sees it.
type record struct {
	Event        string `json:"event"`
	ID           string `json:"id"`
	Listener     string `json:"listener"`
	Protocol     string `json:"protocol"`
	Wire         string `json:"wire"`
	Identity     string `json:"identity"`
	Source       string `json:"identity_source"`
	Client       string `json:"client"`
	Host         string `json:"host"`
	Port         uint16 `json:"port"`
	Method       string `json:"method"`
	Path         string `json:"path"`
	Address      string `json:"address"`
	Verdict      string `json:"verdict"`
	Reason       string `json:"reason"`
	WouldReason  string `json:"would_reason"`
	Status       int    `json:"status"`
	Policy       string `json:"policy"`
	Generation   uint64 `json:"generation"`
	AddressClass string `json:"address_class"`
	Dropped      int    `json:"addresses_dropped"`
	Up           int64  `json:"up"`
	Down         int64  `json:"down"`
	CloseReason  string `json:"close_reason"`
	Detail       string `json:"detail"`
	Count        uint64 `json:"count"`
	Stage        string `json:"stage"`
	SNI          string `json:"sni"`
	TLS          string `json:"tls"`
	ECH          bool   `json:"ech"`
	Line         string `json:"-"` // the whole line
}

// evidence receives the records of a gateway, in the order in which they are written.
type evidence struct {
	recorder  *audit.Recorder
	records   chan record
	displaced atomic.Uint64 // connections that were closed for want of a slot, from the summaries of the listeners
	stuck     chan struct{} // the sink does not write until it is closed; nil means that it writes at once
	end       func()        // ends the gateway; nil if it has not started
}

func newEvidence(tb testing.TB, queue int, stuck chan struct{}) *evidence {
	tb.Helper()
	e := &evidence{records: make(chan record, audit.DefaultQueue), stuck: stuck}
	var err error
	e.recorder, err = audit.New(context.Background(), audit.Config{
		Sinks:  []audit.SinkConfig{{Name: "test", Sink: audit.NewLines(e, native.Render)}},
		Tracer: noop.NewTracerProvider().Tracer(""),
		Queue:  queue,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { e.rest(tb) })
	return e
}

// Write receives records in the place of a log file.
func (e *evidence) Write(p []byte) (int, error) {
	if e.stuck != nil {
		<-e.stuck
	}
	for line := range bytes.Lines(p) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return 0, fmt.Errorf("record %q: %w", line, err)
		}
		if r.Line = string(line); audittest.IsObeyed(r.Line, false) {
			return 0, fmt.Errorf("a terminal obeys what is in the record %q", line)
		}
		switch audit.Event(r.Event) { //nolint:exhaustive // the cases know which policies they have put in force
		case audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
			continue
		case audit.EventSummary:
			if r.Listener != "" { // it comes within a second, and no case waits for it
				e.displaced.Add(r.Count)
				continue
			}
		}
		e.records <- r
	}
	return len(p), nil
}

// next waits for the next record, which must have that event.
func (e *evidence) next(tb testing.TB, event audit.Event) record {
	tb.Helper()
	select {
	case r := <-e.records:
		if r.Event != string(event) {
			tb.Fatalf("record %+v, want the event %s", r, event)
		}
		return r
	case <-time.After(patience):
		tb.Fatalf("no record of the event %s", event)
		return record{}
	}
}

// quiet checks that no records are left.
func (e *evidence) quiet(tb testing.TB) {
	tb.Helper()
	for len(e.records) > 0 {
		tb.Errorf("one record too many: %+v", <-e.records)
	}
}

// rest ends the gateway, because an answer may come before its record is made. Then it
// ends the recorder, and returns the records that are left.
func (e *evidence) rest(tb testing.TB) []record {
	tb.Helper()
	if e.end != nil {
		e.end()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := e.recorder.Close(ctx); err != nil {
		tb.Error(err)
	}
	if lost := e.recorder.Stats().Lost(); lost > 0 {
		tb.Errorf("%d records were lost", lost)
	}
	var left []record
	for len(e.records) > 0 {
		left = append(left, <-e.records)
	}
	return left
}
