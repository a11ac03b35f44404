package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/ecs"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/audit/ocsf"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestAttributionIsBoundedAndEscaped checks what every form shows of an attribution, which
// a caller chooses freely.
func TestAttributionIsBoundedAndEscaped(t *testing.T) {
	long := strings.Repeat("x", 512)
	for _, row := range []struct{ name, sent, read, raw string }{
		{"a dictionary", `process="curl", pid=4711`, `process="curl", pid=4711`, `process=\"curl\", pid=4711`},
		{"the longest", long, long, long},
		{"one byte more", long + "x", long + "...", long + "..."},
		{"a text of any length", strings.Repeat("é", 1<<20), strings.Repeat("é", 256) + "...", "é..."},
		{"a cut inside a character", "x" + strings.Repeat("é", 1<<10), "x" + strings.Repeat("é", 255) + "?...", "é?..."},
		{"what a terminal obeys", "a\u009b31mb\u202ec\td", "a\u009b31mb\u202ec\td", `a\u009b31mb\u202ec\td`},
		{"no UTF-8", "a\xffb", "a?b", "a?b"},
		{"what would end the text", `","verdict":"allow`, `","verdict":"allow`, `\",\"verdict\":\"allow`},
	} {
		r := audit.Record{Event: audit.EventDecision, Protocol: audit.ProtocolConnect}
		r.SetAttributed(row.sent)
		for form, render := range map[string]audit.Render{"native": native.Render, "ocsf": ocsf.Render, "ecs": ecs.Render} {
			line, err := render(nil, &r)
			if err != nil {
				t.Fatal(err)
			}
			var got struct{ Native, Unmapped, Exeat struct{ Attributed string } }
			err = errors.Join(json.Unmarshal(line, &got), json.Unmarshal(line, &got.Native))
			if read := got.Native.Attributed + got.Unmapped.Attributed + got.Exeat.Attributed; err != nil || read != row.read {
				t.Errorf("%s in the form %s is read as %q, %v", row.name, form, read, err)
			}
			if !strings.Contains(string(line), row.raw) {
				t.Errorf("%s in the form %s is written as %q", row.name, form, line)
			}
		}
		again := r
		if again.SetAttributed(r.Attributed); again.Attributed != r.Attributed {
			t.Errorf("%s: %q is cut again", row.name, r.Attributed)
		}
	}
}

// TestAttributionKeepsNoHeadInMemory checks that a record keeps a copy of the attribution,
// and not the text of the head that it is a part of, and nothing without one.
func TestAttributionKeepsNoHeadInMemory(t *testing.T) {
	var r audit.Record
	for text, want := range map[string]float64{"pid=1": 1, "": 0} {
		if n := testing.AllocsPerRun(100, func() { r.SetAttributed(text) }); n != want {
			t.Errorf("%v allocations for %q, want %v", n, text, want)
		}
	}
}

// TestRecordsOfATunnelRepeatTheAttribution checks which records of a tunnel, and of
// collapsed denials, have the attribution of their decision.
func TestRecordsOfATunnelRepeatTheAttribution(t *testing.T) {
	const mine = `process="curl", pid=4711`
	out := make(attributions, 100)
	r, err := audit.New(t.Context(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "test", Sink: out}}, Tracer: noop.NewTracerProvider().Tracer(""), Collapse: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	o := r.Begin(t.Context(), audit.Start{Protocol: audit.ProtocolConnect, Attributed: mine})
	o.SetDecision(allowlist.Decision{Outcome: allowlist.Outcome{Verdict: allowlist.Allow}})
	o.End()
	open := o.Tunnel()
	open.Progress(1, 1)
	open.Refuse(t.Context(), allowlist.SNIMismatch)
	open.Close(t.Context(), 1, 1, tunnel.Denied, allowlist.SNIMismatch)
	for range 2 {
		denied := r.Begin(t.Context(), audit.Start{Protocol: audit.ProtocolHTTP, Attributed: mine})
		denied.Verdict, denied.Reason = allowlist.Deny, allowlist.NotOnAllowlist
		denied.End()
	}
	if err := r.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, event := range []audit.Event{
		audit.EventDecision, audit.EventTunnelProgress, audit.EventDecision, audit.EventTunnelClose, audit.EventDecision,
	} {
		if got, want := <-out, (attribution{event, mine}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got, want := <-out, (attribution{audit.EventCollapsed, ""}); got != want { // it may stand for several processes
		t.Errorf("got %q, want %q", got, want)
	}
}

// attribution is what one record says of who asked.
type attribution struct {
	event audit.Event
	text  string
}

// attributions is a sink that keeps the attributions.
type attributions chan attribution

func (a attributions) Write(_ context.Context, records []*audit.Record) error {
	for _, r := range records {
		a <- attribution{r.Event, r.Attributed}
	}
	return nil
}
