package audit

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

// full is a record with every field set.
func full(t *testing.T) Record {
	t.Helper()
	return Record{
		Time: time.Date(2026, 11, 21, 4, 5, 6, 70_000_000, time.FixedZone("CET", 3600)), Event: EventDecision,
		ID: "01JD0000000000000000000000", Listener: "main", Protocol: "connect", Wire: "h1",
		Identity: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"),
		Source:   allowlist.SourceX509SVID, Client: addrPort("10.1.2.3:40000"),
		Dest: destination(t, "api.example:443"), Method: "CONNECT", Address: addrPort("[2001:db8::1]:443"),
		Verdict: allowlist.Observe, Reason: allowlist.ResolvedAddressDenied, WouldReason: allowlist.NotOnAllowlist,
		Status: 403, Rule: "ledger-db", RuleAt: "policy.yaml:7", Policy: "0123456789ab", Generation: 3,
		Mode: allowlist.ModeObserve, Class: allowlist.Private, Dropped: 2,
		Resolve: 1500 * time.Microsecond, Dial: 2 * time.Second, Decide: 412 * time.Nanosecond,
		Up: 10, Down: 20, Duration: time.Minute + time.Millisecond/2, CloseReason: "client", Detail: "why",
		Trace: trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4, 5},
		}),
		CallerTrace: trace.TraceID{9},
	}
}

// TestLines compares whole lines: names, order and form are what programs read.
func TestLines(t *testing.T) {
	with := func(change func(*Record)) Record {
		r := full(t)
		change(&r)
		return r
	}
	rows := []struct {
		name   string
		record Record
		want   string
	}{
		{
			"a decision with everything", full(t),
			`{"schema":1,"time":"2026-11-21T03:05:06.070000000Z","event":"decision","id":"01JD0000000000000000000000",` +
				`"listener":"main","protocol":"connect","wire":"h1",` +
				`"identity":"spiffe://prod.example/ns/ci/sa/builder","identity_source":"x509-svid","client":"10.1.2.3:40000",` +
				`"host":"api.example","port":443,"method":"CONNECT","address":"[2001:db8::1]:443",` +
				`"verdict":"observe","reason":"resolved-address-denied","would_reason":"not-on-allowlist","status":403,` +
				`"rule":"ledger-db","rule_at":"policy.yaml:7","policy":"0123456789ab","generation":3,"mode":"observe",` +
				`"address_class":"private","addresses_dropped":2,"resolve_ms":1.5,"dial_ms":2000,"decide_us":0.412,` +
				`"duration_ms":60000.5,"close_reason":"client","detail":"why",` +
				`"trace_id":"01020300000000000000000000000000","span_id":"0405000000000000","caller_trace_id":"09000000000000000000000000000000"}`,
		},
		{
			"a decision of which nothing is known is a denial",
			Record{Event: EventDecision, ID: "x"},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"decision","id":"x","verdict":"deny"}`,
		},
		{
			"a decision of a policy says its mode",
			Record{Event: EventDecision, Policy: "v", Verdict: allowlist.Allow},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"decision","verdict":"allow","policy":"v","mode":"enforce"}`,
		},
		{
			"a tunnel that moved nothing says so",
			Record{Event: EventTunnelClose, CloseReason: "idle"},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"tunnel.close","up":0,"down":0,"close_reason":"idle"}`,
		},
		{
			"progress",
			Record{Event: EventTunnelProgress, Up: 1, Down: 1 << 40, Duration: time.Hour},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"tunnel.progress","up":1,"down":1099511627776,"duration_ms":3600000}`,
		},
		{
			"a handshake that failed",
			Record{Event: EventHandshake, Reason: allowlist.TLSHandshakeFailed, Client: addrPort("[::1]:9"), Detail: "EOF"},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"handshake","client":"[::1]:9","reason":"tls-handshake-failed","detail":"EOF"}`,
		},
		{
			"a summary of an address",
			Record{
				Event: EventSummary, Client: addrPort("192.0.2.1:0"), Merged: &Merged{
					Count: 3, First: time.Unix(1, 0), Last: time.Unix(2, 5),
					Counts: []Count{{allowlist.Deny, allowlist.IdentityMissing, 2}, {allowlist.Fail, allowlist.ClientGone, 1}},
				},
			},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"summary","client":"192.0.2.1",` +
				`"count":3,"first":"1970-01-01T00:00:01.000000000Z","last":"1970-01-01T00:00:02.000000005Z",` +
				`"counts":[{"verdict":"deny","reason":"identity-missing","count":2},{"verdict":"fail","reason":"client-gone","count":1}]}`,
		},
		{
			"a summary of too many",
			Record{Event: EventSummary, Merged: &Merged{Count: 1, First: time.Unix(1, 0), Last: time.Unix(1, 0), Other: true}},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"summary","identity":"_other",` +
				`"count":1,"first":"1970-01-01T00:00:01.000000000Z","last":"1970-01-01T00:00:01.000000000Z"}`,
		},
		{
			"denials that were collapsed",
			Record{Event: EventCollapsed, ID: "x", Reason: allowlist.NotOnAllowlist, Merged: &Merged{Count: 9, First: time.Unix(1, 0), Last: time.Unix(2, 0)}},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"decision.collapsed","id":"x","verdict":"deny",` +
				`"reason":"not-on-allowlist","count":9,"first":"1970-01-01T00:00:01.000000000Z","last":"1970-01-01T00:00:02.000000000Z"}`,
		},
		{
			"a reload",
			Record{Event: EventPolicyReload, Policy: "v", Generation: 2},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"policy.reload","policy":"v","generation":2}`,
		},
	}
	for _, row := range rows {
		got, err := Native(nil, &row.record)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(row.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
	closed := with(func(r *Record) { r.Event = EventTunnelClose })
	line, err := Native(nil, &closed)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(line), "verdict") || !strings.Contains(string(line), `"up":10,"down":20`) {
		t.Errorf("the end of a tunnel: %s", line)
	}
}

// TestALineAllocatesNothing: not for the record of a tunnel, nor for one whose
// every field is set.
func TestALineAllocatesNothing(t *testing.T) {
	tunnel := Record{Event: EventDecision, Listener: "main", Protocol: ProtocolConnect, Wire: "h1"}
	typical(t)(&tunnel)
	everything := full(t)
	buf := make([]byte, 0, 2048)
	for _, r := range []*Record{&tunnel, &everything} {
		if n := testing.AllocsPerRun(100, func() { _, _ = Native(buf, r) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// TestNumbersAreThoseOfEncodingJSON: three digits behind the point at most, and
// no exponent.
func TestNumbersAreThoseOfEncodingJSON(t *testing.T) {
	for _, n := range []int64{1, -1, 10, 999, 1000, 1001, 123456789, 1e15 + 1, math.MaxInt64, math.MinInt64} {
		want, err := json.Marshal(map[string]float64{"n": float64(n) / 1e3})
		if err != nil {
			t.Fatal(err)
		}
		l := line{buf: []byte{'{'}}
		l.thousandths("n", n)
		if got := string(l.buf) + "}"; got != string(want) {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestHostileText puts what an attacker may choose into a record: it stays one
// line of bounded, valid JSON.
func TestHostileText(t *testing.T) {
	for _, text := range []string{
		"two\nlines\r\n", `quote " and \`, "{\"verdict\":\"allow\"}", "\x00\x1b[31m\x7f", "\xff\xfe", "\u2028",
		strings.Repeat("x", 4096), strings.Repeat("é", 4096), strings.Repeat("\n", 4096),
	} {
		r := Record{Event: EventDecision, Method: text, Detail: text}
		line, err := Native(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(string(line), "\n\r") || len(line) > 6*(maxDetail+maxMethod)+200 {
			t.Errorf("%.20q makes %d bytes: %q", text, len(line), line)
		}
		var got struct{ Method, Detail, Verdict string }
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if got.Detail != bounded(text, maxDetail) || got.Method != bounded(text, maxMethod) || got.Verdict != "deny" {
			t.Errorf("%.20q became %+v", text, got)
		}
	}
}

func TestALongIdentityIsCut(t *testing.T) {
	r := Record{Identity: spiffeid.RequireFromString("spiffe://td.example/" + strings.Repeat("a", 4000))}
	line, err := Native(nil, &r)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Identity string }
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	if want := r.Identity.String()[:maxIdentity] + "..."; got.Identity != want {
		t.Errorf("got %d bytes, want %d", len(got.Identity), len(want))
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
	req := allowlist.Request{ID: id, Source: allowlist.SourceX509SVID, Dest: destination(t, "api.example:443")}
	decide := func() allowlist.Decision {
		policy, err := allowlist.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		return policy.Decide(req)
	}
	check := func(r, want Record) {
		t.Helper()
		got, _ := Native(nil, &r)
		expected, _ := Native(nil, &want)
		if diff := cmp.Diff(string(expected), string(got)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	r := Record{Event: EventDecision}
	r.SetDecision(decide())
	check(r, Record{Event: EventDecision, Verdict: allowlist.Allow, Policy: "v1", Rule: "api", RuleAt: "p.yaml:3"})

	// The same record after a quarantine: nothing of the first decision is left.
	spec.Version = "v2"
	spec.Quarantine = []allowlist.Quarantined{{Pattern: pattern, Reason: strings.Repeat("INC-77 ", 200), At: "q.yaml:2"}}
	r.SetDecision(decide())
	check(r, Record{
		Event: EventDecision, Verdict: allowlist.Deny, Reason: allowlist.QuarantinedIdentity, Policy: "v2",
		RuleAt: "q.yaml:2", Detail: strings.Repeat("INC-77 ", 200)[:maxDetail] + "...",
	})
}
