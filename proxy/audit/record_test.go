package audit

import (
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// full returns a record with every field set.
func full(t *testing.T) Record {
	t.Helper()
	return Record{
		Time: time.Date(2026, 11, 21, 4, 5, 6, 70_000_000, time.FixedZone("CET", 3600)), Event: EventDecision,
		ID: "01JD0000000000000000000000", Listener: "main", Protocol: "connect", Wire: "h1",
		Identity: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"),
		Proof:    allowlist.ProofX509SVID, Client: addrPort("10.1.2.3:40000"),
		Dest: destination(t, "api.example:443"), Method: "CONNECT", Address: addrPort("[2001:db8::1]:443"),
		Verdict: allowlist.Observe, Reason: allowlist.ResolvedAddressDenied, WouldReason: allowlist.NotOnAllowlist,
		Status: 403, Rule: "ledger-db", RuleAt: "policy.yaml:7", Policy: "0123456789ab", Generation: 3,
		Mode: allowlist.ModeObserve, Class: allowlist.Private, Dropped: 2,
		Resolve: 1500 * time.Microsecond, Dial: 2 * time.Second, Decide: 412 * time.Nanosecond,
		Up: 10, Down: 20, Duration: time.Minute + time.Millisecond/2, CloseReason: tunnel.Client, Detail: "why",
		Trace: trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4, 5},
		}),
		CallerTrace: trace.TraceID{9},
	}
}

// TestCutTextIsNotCutAgain checks that a text which was shortened for one rendering, or
// read from one, is unchanged in the next.
func TestCutTextIsNotCutAgain(t *testing.T) {
	const limit = 32
	for _, letter := range []string{"x", "é", "€", "\U0001f600", "\xff", "."} {
		for size := range 2 * limit {
			text := strings.Repeat("a", size) + strings.Repeat(letter, limit)
			once := bounded(text, limit)
			if !utf8.ValidString(once) || len(once) > limit+len("...") {
				t.Errorf("%q becomes %q", text, once)
			}
			if again := bounded(once, limit); again != once {
				t.Errorf("%q becomes %q, and that %q", text, once, again)
			}
		}
	}
}

func TestSetDecision(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://td.example/a")
	pattern, err := allowlist.ParseIdentityPattern(id.String())
	if err != nil {
		t.Fatal(err)
	}
	host, err := allowlist.ParseHostPattern("api.example")
	if err != nil {
		t.Fatal(err)
	}
	spec := allowlist.Spec{Version: "v1", Entries: []allowlist.Entry{{
		Pattern: pattern, Allow: []allowlist.Rule{{Name: "api", At: "p.yaml:3", Host: host}},
	}}}
	req := allowlist.Request{ID: id, Proof: allowlist.ProofX509SVID, Dest: destination(t, "api.example:443")}
	decide := func() allowlist.Decision {
		policy, err := allowlist.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		return policy.Decide(req)
	}
	check := func(r, want Record) {
		t.Helper()
		if !reflect.DeepEqual(r, want) {
			t.Errorf("got %#v, want %#v", r, want)
		}
	}
	r := Record{Event: EventDecision}
	r.SetDecision(decide())
	check(r, Record{Event: EventDecision, Verdict: allowlist.Allow, Mode: allowlist.ModeEnforce, Policy: "v1", Rule: "api", RuleAt: "p.yaml:3"})

	// The same record after a quarantine: nothing of the first decision remains.
	spec.Version = "v2"
	spec.Quarantine = []allowlist.Quarantined{{Pattern: pattern, Reason: strings.Repeat("INC-77 ", 200), At: "q.yaml:2"}}
	r.SetDecision(decide())
	check(r, Record{
		Event: EventDecision, Verdict: allowlist.Deny, Reason: allowlist.QuarantinedIdentity, Policy: "v2",
		RuleAt: "q.yaml:2", Detail: strings.Repeat("INC-77 ", 200)[:maxDetail] + "...",
	})
}
