package audit

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

func TestARefusedTunnelIsDecidedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{}
		r := newRecorder(t, Config{Sinks: to(out)})
		o := r.Begin(t.Context(), Start{Protocol: "connect"})
		o.Verdict, o.Status, o.Dest, o.Rule = allowlist.Allow, 200, destination(t, "api.example:443"), "api"
		o.Decide = 1
		o.End()
		record := o.Tunnel()
		record.SetHello(Hello{SNI: "Other.example", TLS: TLSMismatch, ECH: true})
		record.Refuse(t.Context(), allowlist.SNIMismatch)
		record.Close(t.Context(), 0, 4, tunnel.Denied, allowlist.SNIMismatch)
		closeNow(t, r)
		got := out.taken()
		if len(got) != 3 {
			t.Fatalf("%d records", len(got))
		}
		hello := Hello{SNI: "Other.example", TLS: TLSMismatch, ECH: true}
		for i, want := range []Record{
			{Event: EventDecision, Verdict: allowlist.Allow, Status: 200},
			{Event: EventDecision, Verdict: allowlist.Deny, Reason: allowlist.SNIMismatch, Stage: StageTLS, Hello: hello},
			{Event: EventTunnelClose, Verdict: allowlist.Allow, Reason: allowlist.SNIMismatch, CloseReason: tunnel.Denied, Hello: hello},
		} {
			want.ID, want.Rule = o.ID, "api"
			if diff := cmp.Diff(said(&want), said(&got[i])); diff != "" {
				t.Errorf("record %d (-want +got):\n%s", i, diff)
			}
		}
	})
}

// said returns the fields in which the records of one tunnel differ.
func said(r *Record) []any {
	return []any{
		r.Event, r.ID, r.Rule, r.Generation, r.Verdict, r.Reason, r.WouldReason, r.Status, r.Stage, r.Hello, r.CloseReason,
	}
}

func TestSpansOfARefusedTunnel(t *testing.T) {
	r, spans := newTraced(t)
	o := r.Begin(t.Context(), Start{Protocol: "connect"})
	o.Verdict, o.Dest = allowlist.Allow, destination(t, "api.example:443")
	o.End()
	record := o.Tunnel()
	record.SetHello(Hello{TLS: TLSAbsent})
	record.Refuse(t.Context(), allowlist.SNIMissing)
	record.Close(t.Context(), 0, 0, tunnel.Denied, allowlist.SNIMissing)
	ended := spans.Ended()
	if len(ended) != 3 {
		t.Fatalf("%d spans, want 3", len(ended))
	}
	for i, name := range []string{"CONNECT", "tls", "tunnel"} {
		span := ended[i]
		got := attributes(span)
		if span.Name() != name || got["egress.decision.id"] != o.ID {
			t.Errorf("span %d is %s of %v", i, span.Name(), got["egress.decision.id"])
		}
		if links := span.Links(); i > 0 && (len(links) != 1 || !links[0].SpanContext.Equal(o.Trace)) {
			t.Errorf("%s: links %v, want %v", name, links, o.Trace)
		}
		if i > 0 && (got["egress.tls.sni_match"] != "absent" || got["egress.tls.ech"] != false) {
			t.Errorf("%s: attributes %v", name, got)
		}
	}
	if got := attributes(ended[1]); got["egress.verdict"] != "deny" || got["egress.reason"] != "sni-missing" {
		t.Errorf("attributes %v", got)
	}
}

// TestAnObservedTunnelIsDecidedTwice checks that the second decision is about the name in
// the first bytes, and that no later record or span says that it is allowed.
func TestAnObservedTunnelIsDecidedTwice(t *testing.T) {
	out := &memory{}
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	defer func() { _ = provider.Shutdown(context.WithoutCancel(t.Context())) }()
	r := newRecorder(t, Config{Sinks: to(out), Tracer: provider.Tracer("test")})
	o := r.Begin(t.Context(), Start{Protocol: "connect"})
	o.Verdict, o.Status, o.Dest, o.Rule, o.Policy, o.Generation = allowlist.Allow, 200, destination(t, "203.0.113.7:443"), "range", "old", 1
	o.End()
	record := o.Tunnel()
	record.Progress(0, 1)
	record.SetHello(Hello{SNI: "evil.example", TLS: TLSMismatch})
	record.Observe(t.Context(), allowlist.Decision{Outcome: allowlist.Outcome{
		Verdict: allowlist.Observe, WouldReason: allowlist.PortNotAllowed, Mode: allowlist.ModeObserve,
	}}, 2)
	record.Progress(1, 1)
	record.Close(t.Context(), 1, 1, tunnel.Client, allowlist.NoReason)
	closeNow(t, r)
	records := out.taken()
	if len(records) != 5 {
		t.Fatalf("%d records", len(records))
	}
	hello := Hello{SNI: "evil.example", TLS: TLSMismatch}
	for i, want := range []Record{
		{Event: EventDecision, Verdict: allowlist.Allow, Rule: "range", Generation: 1, Status: 200},
		{Event: EventTunnelProgress, Verdict: allowlist.Allow, Rule: "range", Generation: 1},
		{Event: EventDecision, Verdict: allowlist.Observe, WouldReason: allowlist.PortNotAllowed, Stage: StageTLS, Hello: hello, Generation: 2},
		{Event: EventTunnelProgress, Verdict: allowlist.Observe, WouldReason: allowlist.PortNotAllowed, Rule: "range", Hello: hello, Generation: 1},
		{Event: EventTunnelClose, Verdict: allowlist.Observe, WouldReason: allowlist.PortNotAllowed, Rule: "range", Hello: hello, Generation: 1, CloseReason: tunnel.Client},
	} {
		want.ID = o.ID
		if diff := cmp.Diff(said(&want), said(&records[i])); diff != "" {
			t.Errorf("record %d (-want +got):\n%s", i, diff)
		}
	}
	got := attributes(spans.Ended()[1])
	if got["egress.verdict"] != "observe" || got["egress.would_reason"] != "port-not-allowed" || got["egress.reason"] != nil || got["egress.tls.sni_match"] != "mismatch" {
		t.Errorf("attributes %v", got)
	}
}
