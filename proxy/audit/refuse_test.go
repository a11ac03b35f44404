package audit

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestARefusedTunnelIsDecidedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out sink
		r := newRecorder(t, Config{Sinks: lineSink(&out)})
		o := r.Begin(t.Context(), Start{Protocol: "connect"})
		o.Verdict, o.Status, o.Dest, o.Rule = allowlist.Allow, 200, destination(t, "api.example:443"), "api"
		o.Decide = 1
		o.End()
		tunnel := o.Tunnel()
		tunnel.Saw(Hello{SNI: "Other.example", TLS: TLSMismatch, ECH: true})
		tunnel.Refuse(t.Context(), allowlist.SNIMismatch)
		tunnel.Close(t.Context(), 0, 4, "denied", allowlist.SNIMismatch)
		closeNow(t, r)
		lines := out.lines(t)
		if len(lines) != 3 {
			t.Fatalf("%d lines", len(lines))
		}
		for i, want := range []map[string]any{
			{"event": "decision", "verdict": "allow", "status": 200.0},
			{
				"event": "decision", "verdict": "deny", "reason": "sni-mismatch", "stage": "tls",
				"sni": "Other.example", "tls": "mismatch", "ech": true,
			},
			{
				"event": "tunnel.close", "reason": "sni-mismatch", "close_reason": "denied",
				"sni": "Other.example", "tls": "mismatch", "ech": true,
			},
		} {
			want["id"], want["rule"] = o.ID, "api"
			got := map[string]any{}
			for _, key := range []string{"event", "id", "rule", "verdict", "reason", "status", "stage", "sni", "tls", "ech", "close_reason"} {
				if v, ok := lines[i][key]; ok {
					got[key] = v
				}
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("line %d: got -, want +\n%s", i, diff)
			}
		}
	})
}

func TestSpansOfARefusedTunnel(t *testing.T) {
	r, spans := newTraced(t)
	o := r.Begin(t.Context(), Start{Protocol: "connect"})
	o.Verdict, o.Dest = allowlist.Allow, destination(t, "api.example:443")
	o.End()
	tunnel := o.Tunnel()
	tunnel.Saw(Hello{TLS: TLSAbsent})
	tunnel.Refuse(t.Context(), allowlist.SNIMissing)
	tunnel.Close(t.Context(), 0, 0, "denied", allowlist.SNIMissing)
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

// TestAnObservedTunnelIsDecidedTwice: the second decision is about the name that
// the first bytes ask for, and no record or span after it calls that allowed.
func TestAnObservedTunnelIsDecidedTwice(t *testing.T) {
	var out sink
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	defer func() { _ = provider.Shutdown(context.WithoutCancel(t.Context())) }()
	r := newRecorder(t, Config{Sinks: lineSink(&out), Tracer: provider.Tracer("test")})
	o := r.Begin(t.Context(), Start{Protocol: "connect"})
	o.Verdict, o.Status, o.Dest, o.Rule, o.Policy, o.Generation = allowlist.Allow, 200, destination(t, "203.0.113.7:443"), "range", "old", 1
	o.End()
	tunnel := o.Tunnel()
	tunnel.Progress(0, 1)
	tunnel.Saw(Hello{SNI: "evil.example", TLS: TLSMismatch})
	tunnel.Observe(t.Context(), allowlist.Decision{Outcome: allowlist.Outcome{
		Verdict: allowlist.Observe, WouldReason: allowlist.PortNotAllowed, Mode: allowlist.ModeObserve,
	}}, 2)
	tunnel.Progress(1, 1)
	tunnel.Close(t.Context(), 1, 1, "client", allowlist.NoReason)
	closeNow(t, r)
	lines := out.lines(t)
	if len(lines) != 5 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, want := range []map[string]any{
		{"event": "decision", "verdict": "allow", "rule": "range", "generation": 1.0},
		{"event": "tunnel.progress", "rule": "range", "generation": 1.0},
		{"event": "decision", "verdict": "observe", "would_reason": "port-not-allowed", "stage": "tls", "sni": "evil.example", "tls": "mismatch", "generation": 2.0},
		{"event": "tunnel.progress", "would_reason": "port-not-allowed", "rule": "range", "sni": "evil.example", "tls": "mismatch", "generation": 1.0},
		{"event": "tunnel.close", "would_reason": "port-not-allowed", "rule": "range", "sni": "evil.example", "tls": "mismatch", "generation": 1.0},
	} {
		got := map[string]any{}
		for _, key := range []string{"event", "rule", "verdict", "reason", "would_reason", "stage", "sni", "tls", "generation"} {
			if v, ok := lines[i][key]; ok {
				got[key] = v
			}
		}
		if diff := cmp.Diff(got, want); diff != "" || lines[i]["id"] != o.ID {
			t.Errorf("line %d of %v: got -, want +\n%s", i, lines[i]["id"], diff)
		}
	}
	got := attributes(spans.Ended()[1])
	if got["egress.verdict"] != "observe" || got["egress.would_reason"] != "port-not-allowed" || got["egress.reason"] != nil || got["egress.tls.sni_match"] != "mismatch" {
		t.Errorf("attributes %v", got)
	}
}
