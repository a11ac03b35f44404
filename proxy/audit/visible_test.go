package audit_test

import (
	"context"
	"encoding/json"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/ecs"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/audit/ocsf"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestRecordHasNoTerminalControls puts each character that a terminal obeys into every
// field with a text, of every kind of record, in every rendering.
func TestRecordHasNoTerminalControls(t *testing.T) {
	for _, text := range audittest.Obeyed() {
		for form, render := range map[string]audit.Render{"native": native.Render, "ocsf": ocsf.Render, "ecs": ecs.Render} {
			for n, event := range []audit.Event{
				audit.EventDecision, audit.EventTunnelClose, audit.EventHandshake, audit.EventPolicyReload, audit.EventSummary,
			} {
				r := audittest.Hostile(event, text, uint64(n))
				r.Path = text
				for _, r.Protocol = range []audit.Protocol{audit.Protocol(text), audit.ProtocolHTTP, audit.ProtocolDNS} {
					line, err := render(nil, &r)
					if err != nil || audittest.IsObeyed(string(line), true) || !json.Valid(line) {
						t.Fatalf("%q in the form %s of %s: %q, %v", text, form, event, line, err)
					}
				}
			}
		}
		line, err := native.Render(nil, &audit.Record{Hello: audit.Hello{SNI: text}, Method: text, Path: text, Detail: text})
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ SNI, Method, Path, Detail string }
		if err := json.Unmarshal(line, &got); err != nil || got.SNI != text || got.Method != text || got.Path != text || got.Detail != text {
			t.Errorf("%q: a reader of JSON has %+v, %v", text, got, err)
		}
	}
}

// TestSpanHasNoTerminalControls puts each character that a terminal obeys into the
// attributes of the three spans.
func TestSpanHasNoTerminalControls(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	defer func() { _ = provider.Shutdown(context.WithoutCancel(t.Context())) }()
	r, err := audit.New(t.Context(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "none", Sink: nothing{}, Keep: func(*audit.Record) bool { return false }}}, Tracer: provider.Tracer("test"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close(context.WithoutCancel(t.Context())) }()
	for _, text := range audittest.Obeyed() {
		for _, protocol := range []audit.Protocol{audit.ProtocolConnect, audit.ProtocolHTTP, audit.ProtocolDNS} {
			o := r.Begin(t.Context(), audit.Start{Protocol: protocol})
			trace, id := o.Trace, o.ID
			o.Record = audittest.Hostile(audit.EventDecision, text, 1)
			o.Trace, o.ID, o.Path, o.Protocol = trace, id, text, protocol
			o.DNS = audit.DNS{Code: text, Origin: text}
			o.End()
			record := o.Tunnel()
			record.SetHello(audit.Hello{SNI: text, TLS: audit.TLSMismatch})
			record.Refuse(t.Context(), allowlist.SNIMismatch)
			record.Close(t.Context(), 0, 0, tunnel.Denied, allowlist.SNIMismatch)
		}
	}
	ended := spans.Ended()
	if want := 3 * 3 * len(audittest.Obeyed()); len(ended) != want {
		t.Fatalf("%d spans, want %d", len(ended), want)
	}
	for _, span := range ended {
		for _, kv := range span.Attributes() {
			if text := kv.Value.String(); audittest.IsObeyed(text, true) {
				t.Fatalf("%s of the span %s: %q", kv.Key, span.Name(), text)
			}
		}
	}
}

// nothing is a sink that drops records.
type nothing struct{}

func (nothing) Write(context.Context, []*audit.Record) error { return nil }
