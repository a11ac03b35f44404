package audit

import (
	"context"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// newTraced returns a recorder and a recorder of its ended spans.
func newTraced(t *testing.T) (*Recorder, *tracetest.SpanRecorder) {
	t.Helper()
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithSpanProcessor(spans))
	t.Cleanup(func() { _ = provider.Shutdown(context.WithoutCancel(t.Context())) })
	return newRecorder(t, Config{Sinks: lineSink(&sink{}), Tracer: provider.Tracer("test")}), spans
}

// one returns the only ended span.
func one(t *testing.T, spans *tracetest.SpanRecorder) sdktrace.ReadOnlySpan {
	t.Helper()
	ended := spans.Ended()
	if len(ended) != 1 {
		t.Fatalf("%d spans, want 1", len(ended))
	}
	return ended[0]
}

func attributes(span sdktrace.ReadOnlySpan) map[string]any {
	all := make(map[string]any)
	for _, kv := range span.Attributes() {
		all[string(kv.Key)] = kv.Value.AsInterface()
	}
	return all
}

const callerTrace = "0af7651916cd43dd8448eb211c80319c"

// TestADecisionWithoutASpanHasItsRecord checks that the record of a decision without a
// span has no ids of a trace.
func TestADecisionWithoutASpanHasItsRecord(t *testing.T) {
	r, spans := newTraced(t)
	o := r.Begin(t.Context(), Start{Protocol: ProtocolDNS, NoSpan: true})
	o.Verdict = allowlist.Allow
	o.Dialed(t.Context(), time.Now(), time.Second, 0, allowlist.NoReason)
	o.End()
	if o.TraceID() != "" || len(spans.Ended()) != 0 || o.ID == "" || r.Stats().Made != 1 {
		t.Errorf("trace %q, %d spans, id %q, %d records", o.TraceID(), len(spans.Ended()), o.ID, r.Stats().Made)
	}
}

// TestContextOfTheCallerIsOnlyLinked checks that the span is a sampled root whatever the
// caller sends, and that a well-formed context is linked.
func TestContextOfTheCallerIsOnlyLinked(t *testing.T) {
	rows := []struct {
		name, traceparent string
		linked            bool
	}{
		{"no context", "", false},
		{"a sampled context", "00-" + callerTrace + "-b7ad6b7169203331-01", true},
		{"one that asks not to be sampled", "00-" + callerTrace + "-b7ad6b7169203331-00", true},
		{"a zero trace id", "00-00000000000000000000000000000000-b7ad6b7169203331-01", false},
		{"version ff", "ff-" + callerTrace + "-b7ad6b7169203331-01", false},
		{"upper case", "00-" + strings.ToUpper(callerTrace) + "-b7ad6b7169203331-01", false},
		{"half a context", "00-" + callerTrace, false},
		{"garbage", "\x00\r\nx", false},
		{"a long text", strings.Repeat("0", 60_000), false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r, spans := newTraced(t)
			// Our own context has a span, which is neither the parent nor linked as the
			// caller's.
			ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
				TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled,
			}))
			o := r.Begin(ctx, Start{Protocol: "connect", TraceParent: row.traceparent})
			o.End()
			span := one(t, spans)
			if span.Parent().IsValid() || span.SpanContext().TraceID().String() == callerTrace || !span.SpanContext().IsSampled() {
				t.Errorf("the span is no sampled root: parent %v, context %v", span.Parent(), span.SpanContext())
			}
			want := ""
			if row.linked {
				want = callerTrace
			}
			got := ""
			for _, l := range span.Links() {
				got += l.SpanContext.TraceID().String()
			}
			if got != want {
				t.Errorf("linked to %q, want %q", got, want)
			}
			if o.CallerTrace.IsValid() != row.linked || o.CallerTrace.IsValid() && o.CallerTrace.String() != callerTrace {
				t.Errorf("the record has the caller's trace %s", o.CallerTrace)
			}
			if o.TraceID() != span.SpanContext().TraceID().String() {
				t.Errorf("the caller is told %s, the span is of %s", o.TraceID(), span.SpanContext().TraceID())
			}
		})
	}
}

// TestAnAcceptedContextIsTheParent checks that an accepted context is the parent even if
// it is not sampled, and that a malformed one is not used.
func TestAnAcceptedContextIsTheParent(t *testing.T) {
	for _, row := range []struct {
		traceparent string
		parent      bool
	}{
		{"00-" + callerTrace + "-b7ad6b7169203331-01", true},
		{"00-" + callerTrace + "-b7ad6b7169203331-00", true},
		{"00-" + callerTrace, false},
		{"", false},
	} {
		r, spans := newTraced(t)
		ours := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1},
		}))
		o := r.Begin(ours, Start{Protocol: "connect", TraceParent: row.traceparent, Accept: true})
		o.End()
		span := one(t, spans)
		parent, ctx := span.Parent(), span.SpanContext()
		if row.parent != (parent.SpanID().String() == "b7ad6b7169203331") || row.parent != (ctx.TraceID().String() == callerTrace) ||
			parent.IsValid() != row.parent || !ctx.IsSampled() || len(span.Links()) != 0 || ctx.TraceState().Len() != 0 {
			t.Errorf("%q: parent %v, context %v, %d links", row.traceparent, parent, ctx, len(span.Links()))
		}
		if o.TraceID() != ctx.TraceID().String() {
			t.Errorf("%q: the caller is told %s", row.traceparent, o.TraceID())
		}
	}
}

// TestSlowOrFailedStepHasASpan checks that a look-up or a dial which was slow or failed
// has a span, as a child of the decision's.
func TestSlowOrFailedStepHasASpan(t *testing.T) {
	const fast, late = slowStep, slowStep + 1
	rows := []struct {
		name          string
		resolve, dial time.Duration
		why           allowlist.Reason
		want          map[string]codes.Code
	}{
		{"all was fast", fast, fast, allowlist.NoReason, nil},
		{"a slow lookup", late, fast, allowlist.NoReason, map[string]codes.Code{"resolve": codes.Unset}},
		{"both were slow", late, late, allowlist.NoReason, map[string]codes.Code{"resolve": codes.Unset, "dial": codes.Unset}},
		{"a fast failure", 1, 0, allowlist.ResolveFailed, map[string]codes.Code{"resolve": codes.Error}},
		{"a connection refused after a slow lookup", late, 1, allowlist.DialRefused, map[string]codes.Code{"resolve": codes.Unset, "dial": codes.Error}},
		{"an address that is not allowed", fast, 0, allowlist.ResolvedAddressDenied, nil},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r, spans := newTraced(t)
			start := time.Unix(1000, 0)
			o := r.Begin(t.Context(), Start{Protocol: "connect", Time: start})
			o.Dest, o.Address = destination(t, "api.example:443"), addrPort("203.0.113.7:443")
			o.Dialed(t.Context(), start, row.resolve, row.dial, row.why)
			o.End()
			if o.Resolve != row.resolve || o.Dial != row.dial {
				t.Errorf("the record has %s and %s", o.Resolve, o.Dial)
			}
			ended := spans.Ended()
			for _, span := range ended[:len(ended)-1] {
				want, ok := row.want[span.Name()]
				begin, took := start, row.resolve
				if span.Name() == "dial" {
					begin, took = start.Add(row.resolve), row.dial
				}
				if !ok || span.Status().Code != want || span.SpanKind() != trace.SpanKindClient || !span.Parent().Equal(o.Trace) {
					t.Errorf("%s: %v, %s, below %v", span.Name(), span.Status(), span.SpanKind(), span.Parent())
				}
				if !span.StartTime().Equal(begin) || span.EndTime().Sub(begin) != took {
					t.Errorf("%s: from %s to %s", span.Name(), span.StartTime(), span.EndTime())
				}
				attrs := attributes(span)
				_, peer := attrs["network.peer.address"]
				if attrs["server.address"] != "api.example" || peer != (span.Name() == "dial") || (attrs["error.type"] != nil) != (want == codes.Error) {
					t.Errorf("%s: %v", span.Name(), attrs)
				}
			}
			if len(ended) != len(row.want)+1 {
				t.Errorf("%d spans", len(ended))
			}
		})
	}
}

func TestWithoutATracerThereIsNoTraceID(t *testing.T) {
	r := newRecorder(t, Config{Sinks: lineSink(&sink{})})
	o := r.Begin(t.Context(), Start{})
	defer o.End()
	if got := o.TraceID(); got != "" {
		t.Errorf("got %q", got)
	}
	o.Dialed(t.Context(), time.Now(), time.Second, time.Minute, allowlist.NoReason)
	if o.Resolve != time.Second || o.Dial != time.Minute {
		t.Errorf("the record has %s and %s", o.Resolve, o.Dial)
	}
}

// TestSpanHasTheFieldsOfItsRecord compares all attributes with the fields of the record.
func TestSpanHasTheFieldsOfItsRecord(t *testing.T) {
	r, spans := newTraced(t)
	o := r.Begin(t.Context(), Start{Protocol: "connect", Time: time.Unix(1000, 0)})
	id, ctx := o.ID, o.Trace
	o.Record = full(t)
	o.ID, o.Trace, o.Verdict = id, ctx, allowlist.Observe
	o.End()
	span := one(t, spans)
	want := map[string]any{
		"http.request.method": "CONNECT", "http.response.status_code": int64(403),
		"server.address": "api.example", "server.port": int64(443),
		"client.address": "10.1.2.3", "client.port": int64(40000),
		"network.peer.address": "2001:db8::1", "network.peer.port": int64(443),
		"egress.protocol": "connect", "egress.decision.id": id,
		"egress.verdict": "observe", "egress.reason": "resolved-address-denied", "egress.would_reason": "not-on-allowlist",
		"egress.mode": "observe", "egress.policy.version": "0123456789ab", "egress.policy.generation": int64(3),
		"egress.rule": "ledger-db", "egress.rule_at": "policy.yaml:7",
		"egress.identity.spiffe_id":    "spiffe://prod.example/ns/ci/sa/builder",
		"egress.identity.trust_domain": "prod.example", "egress.identity.source": "x509-svid",
		"egress.resolve_ms": 1.5, "egress.dial_ms": 2000.0,
	}
	if diff := cmp.Diff(want, attributes(span)); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if span.Name() != "CONNECT" || span.SpanKind() != trace.SpanKindServer || !span.StartTime().Equal(time.Unix(1000, 0)) {
		t.Errorf("%s, %s, from %s", span.Name(), span.SpanKind(), span.StartTime())
	}
}

func TestOnlyAFailureIsAnError(t *testing.T) {
	rows := []struct {
		verdict   allowlist.Verdict
		reason    allowlist.Reason
		status    codes.Code
		errorType any
	}{
		{allowlist.Allow, allowlist.NoReason, codes.Unset, nil},
		{allowlist.Observe, allowlist.NoReason, codes.Unset, nil},
		{allowlist.Deny, allowlist.NotOnAllowlist, codes.Unset, nil},
		{allowlist.Deny, allowlist.IdentityMissing, codes.Unset, nil},
		{allowlist.Fail, allowlist.DialTimeout, codes.Error, "dial-timeout"},
	}
	for _, row := range rows {
		r, spans := newTraced(t)
		o := r.Begin(t.Context(), Start{Protocol: "connect"})
		o.Verdict, o.Reason = row.verdict, row.reason
		o.End()
		span := one(t, spans)
		if span.Status().Code != row.status || attributes(span)["error.type"] != row.errorType {
			t.Errorf("%s %s: status %v, error.type %v", row.verdict, row.reason, span.Status(), attributes(span)["error.type"])
		}
	}
}

func TestATunnelsSpanIsLinkedToItsDecision(t *testing.T) {
	r, spans := newTraced(t)
	o := r.Begin(t.Context(), Start{Protocol: "connect"})
	o.Verdict, o.Dest = allowlist.Allow, destination(t, "api.example:443")
	o.Identity = spiffeid.RequireFromString("spiffe://td.example/a")
	o.End()
	record := o.Tunnel()
	record.Progress(1, 1)
	if n := len(spans.Ended()); n != 1 {
		t.Fatalf("%d spans ended while the tunnel is open", n)
	}
	record.Close(t.Context(), 10, 20, tunnel.Upstream, allowlist.NoReason)
	ended := spans.Ended()
	if len(ended) != 2 {
		t.Fatalf("%d spans, want 2", len(ended))
	}
	span := ended[1]
	if span.Parent().IsValid() || span.Name() != "tunnel" || span.SpanKind() != trace.SpanKindInternal {
		t.Errorf("%s, %s, parent %v", span.Name(), span.SpanKind(), span.Parent())
	}
	if links := span.Links(); len(links) != 1 || !links[0].SpanContext.Equal(o.Trace) {
		t.Errorf("links %v, want %v", links, o.Trace)
	}
	want := map[string]any{
		"egress.decision.id": o.ID, "server.address": "api.example", "server.port": int64(443),
		"egress.identity.spiffe_id": "spiffe://td.example/a",
		"egress.tunnel.bytes_up":    int64(10), "egress.tunnel.bytes_down": int64(20),
		"egress.tunnel.close_reason": "upstream",
	}
	if diff := cmp.Diff(want, attributes(span)); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
}

// TestAttributesCanBeExported checks that all attributes are UTF-8: OTLP refuses a whole
// batch because of one byte that is not.
func TestAttributesCanBeExported(t *testing.T) {
	r, spans := newTraced(t)
	o := r.Begin(t.Context(), Start{Protocol: "connect"})
	o.Method = "\xff" + strings.Repeat("é", 4096)
	o.End()
	got, ok := attributes(one(t, spans))["http.request.method"].(string)
	if !ok || !utf8.ValidString(got) || len(got) > maxMethod+len("...") {
		t.Errorf("method of %d bytes, valid %v", len(got), utf8.ValidString(got))
	}
}

// TestPlaceThatIsNotUTF8CanBeExported checks a policy file whose name is not UTF-8, which
// would otherwise lose every span of a batch.
func TestPlaceThatIsNotUTF8CanBeExported(t *testing.T) {
	r, spans := newTraced(t)
	o := r.Begin(t.Context(), Start{Protocol: ProtocolConnect})
	o.RuleAt = "caf\xe9.yaml:7"
	o.End()
	if got := attributes(one(t, spans))["egress.rule_at"]; got != "caf?.yaml:7" {
		t.Errorf("got %q", got)
	}
}
