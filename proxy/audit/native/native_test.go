package native_test

import (
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// full returns a record with every field set.
func full(tb testing.TB) audit.Record {
	tb.Helper()
	dest, err := allowlist.ParseDestination("api.example:443")
	if err != nil {
		tb.Fatal(err)
	}
	return audit.Record{
		Time: time.Date(2026, 11, 21, 4, 5, 6, 70_000_000, time.FixedZone("CET", 3600)), Event: audit.EventDecision,
		ID: "01JD0000000000000000000000", Instance: "7f", Listener: "main", Protocol: "connect", Wire: "h1",
		Identity: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"),
		Proof:    allowlist.ProofX509SVID, Client: netip.MustParseAddrPort("10.1.2.3:40000"),
		Dest: dest, Method: "CONNECT", Address: netip.MustParseAddrPort("[2001:db8::1]:443"),
		Verdict: allowlist.Observe, Reason: allowlist.ResolvedAddressDenied, WouldReason: allowlist.NotOnAllowlist,
		Status: 403, Rule: "ledger-db", RuleAt: "policy.yaml:7", Owner: "team-ci", Ticket: "SEC-1", Policy: "0123456789ab", Generation: 3,
		Mode: allowlist.ModeObserve, Class: allowlist.Private, Dropped: 2, Refused: []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")},
		Resolve: 1500 * time.Microsecond, Dial: 2 * time.Second, Decide: 412 * time.Nanosecond,
		Up: 10, Down: 20, Duration: time.Minute + time.Millisecond/2, CloseReason: tunnel.Client, Detail: "why",
		Trace: trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4, 5},
		}),
		CallerTrace: trace.TraceID{9},
	}
}

// TestLines compares whole lines, because programs depend on names, order and form.
func TestLines(t *testing.T) {
	with := func(change func(*audit.Record)) audit.Record {
		r := full(t)
		change(&r)
		return r
	}
	rows := []struct {
		name   string
		record audit.Record
		want   string
	}{
		{
			"a decision with everything", full(t),
			`{"schema":1,"time":"2026-11-21T03:05:06.070000000Z","event":"decision","id":"01JD0000000000000000000000","instance":"7f",` +
				`"listener":"main","protocol":"connect","wire":"h1",` +
				`"identity":"spiffe://prod.example/ns/ci/sa/builder","identity_source":"x509-svid","client":"10.1.2.3:40000",` +
				`"host":"api.example","port":443,"method":"CONNECT","address":"[2001:db8::1]:443",` +
				`"verdict":"observe","reason":"resolved-address-denied","would_reason":"not-on-allowlist","status":403,` +
				`"rule":"ledger-db","rule_at":"policy.yaml:7","owner":"team-ci","ticket":"SEC-1","policy":"0123456789ab","generation":3,"mode":"observe",` +
				`"address_class":"private","addresses_dropped":2,"addresses_refused":["10.0.0.7","fd00::7"],"resolve_ms":1.5,"dial_ms":2000,"decide_us":0.412,` +
				`"duration_ms":60000.5,"close_reason":"client","detail":"why",` +
				`"trace_id":"01020300000000000000000000000000","span_id":"0405000000000000","caller_trace_id":"09000000000000000000000000000000"}`,
		},
		{
			"a decision of which nothing is known is a denial",
			audit.Record{Event: audit.EventDecision, ID: "x"},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"decision","id":"x","verdict":"deny"}`,
		},
		{
			"a decision of a policy says its mode",
			audit.Record{Event: audit.EventDecision, Policy: "v", Verdict: allowlist.Allow},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"decision","verdict":"allow","policy":"v","mode":"enforce"}`,
		},
		{
			"a tunnel that moved nothing says so",
			audit.Record{Event: audit.EventTunnelClose, CloseReason: tunnel.Idle},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"tunnel.close","up":0,"down":0,"close_reason":"idle"}`,
		},
		{
			"progress",
			audit.Record{Event: audit.EventTunnelProgress, Up: 1, Down: 1 << 40, Duration: time.Hour},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"tunnel.progress","up":1,"down":1099511627776,"duration_ms":3600000}`,
		},
		{
			"a handshake that failed",
			audit.Record{Event: audit.EventHandshake, Reason: allowlist.TLSHandshakeFailed, Client: netip.MustParseAddrPort("[::1]:9"), Detail: "EOF"},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"handshake","client":"[::1]:9","reason":"tls-handshake-failed","detail":"EOF"}`,
		},
		{
			"a summary of an address",
			audit.Record{
				Event: audit.EventSummary, Client: netip.MustParseAddrPort("192.0.2.1:0"), Merged: &audit.Merged{
					Count: 3, First: time.Unix(1, 0), Last: time.Unix(2, 5),
					Counts: []audit.Count{{Verdict: allowlist.Deny, Reason: allowlist.IdentityMissing, Count: 2}, {Verdict: allowlist.Fail, Reason: allowlist.ClientGone, Count: 1}},
				},
			},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"summary","client":"192.0.2.1",` +
				`"count":3,"first":"1970-01-01T00:00:01.000000000Z","last":"1970-01-01T00:00:02.000000005Z",` +
				`"counts":[{"verdict":"deny","reason":"identity-missing","count":2},{"verdict":"fail","reason":"client-gone","count":1}]}`,
		},
		{
			"a summary of too many",
			audit.Record{Event: audit.EventSummary, Merged: &audit.Merged{Count: 1, First: time.Unix(1, 0), Last: time.Unix(1, 0), Other: true}},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"summary","identity":"_other",` +
				`"count":1,"first":"1970-01-01T00:00:01.000000000Z","last":"1970-01-01T00:00:01.000000000Z"}`,
		},
		{
			"denials that were collapsed",
			audit.Record{Event: audit.EventCollapsed, ID: "x", Reason: allowlist.NotOnAllowlist, Merged: &audit.Merged{Count: 9, First: time.Unix(1, 0), Last: time.Unix(2, 0)}},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"decision.collapsed","id":"x","verdict":"deny",` +
				`"reason":"not-on-allowlist","count":9,"first":"1970-01-01T00:00:01.000000000Z","last":"1970-01-01T00:00:02.000000000Z"}`,
		},
		{
			"a reload",
			audit.Record{Event: audit.EventPolicyReload, Policy: "v", Quarantine: "q", Generation: 2},
			`{"schema":1,"time":"0001-01-01T00:00:00.000000000Z","event":"policy.reload","policy":"v","quarantine":"q","generation":2}`,
		},
	}
	for _, row := range rows {
		got, err := native.Render(nil, &row.record)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(row.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
	closed := with(func(r *audit.Record) { r.Event = audit.EventTunnelClose })
	line, err := native.Render(nil, &closed)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(line), "verdict") || !strings.Contains(string(line), `"up":10,"down":20`) {
		t.Errorf("the end of a tunnel: %s", line)
	}
}

// TestALineAllocatesNothing checks that neither the record of a tunnel nor one with every
// field set allocates.
func TestALineAllocatesNothing(t *testing.T) {
	tunnel := audittest.Samples()[0].Record
	everything := full(t)
	buf := make([]byte, 0, 2048)
	for _, r := range []*audit.Record{&tunnel, &everything} {
		if n := testing.AllocsPerRun(100, func() { _, _ = native.Render(buf, r) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// TestNumbersAreThoseOfEncodingJSON checks that numbers have at most three digits after
// the decimal point, and no exponent. Beyond 52 bits a float64 is less exact.
func TestNumbersAreThoseOfEncodingJSON(t *testing.T) {
	numbers := []int64{1, -1, 10, -10, 100, 999, 1000, 1001, -1001, 1010, 123456789, 1e15 + 1, 1<<52 - 1, 1 - 1<<52}
	for n := int64(1); n < 1<<52; n = n*3 + 1 {
		numbers = append(numbers, n, -n)
	}
	for _, n := range numbers {
		want, err := json.Marshal(float64(n) / 1e3)
		if err != nil {
			t.Fatal(err)
		}
		if got := decideUS(t, n); got != string(want) {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for n, want := range map[int64]string{math.MaxInt64: "9223372036854775.807", math.MinInt64: "-9223372036854775.808"} {
		if got := decideUS(t, n); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// decideUS returns decide_us in the line of a decision that took n nanoseconds.
func decideUS(t *testing.T, n int64) string {
	t.Helper()
	line, err := native.Render(nil, &audit.Record{Decide: time.Duration(n)})
	if err != nil {
		t.Fatal(err)
	}
	_, number, _ := strings.Cut(strings.TrimSuffix(string(line), "}"), `"decide_us":`)
	return number
}

// TestHostileText puts text that an attacker may choose into a record, which must stay one
// line of bounded, valid JSON.
func TestHostileText(t *testing.T) {
	for _, text := range []string{
		"two\nlines\r\n", `quote " and \`, "{\"verdict\":\"allow\"}", "\x00\x1b[31m\x7f", "\xff\xfe", "\u2028",
		strings.Repeat("x", 4096), strings.Repeat("é", 4096), strings.Repeat("\n", 4096),
	} {
		r := audit.Record{Event: audit.EventDecision, Method: text, Detail: text}
		line, err := native.Render(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(string(line), "\n\r") || len(line) > 6*(512+32)+200 {
			t.Errorf("%.20q makes %d bytes: %q", text, len(line), line)
		}
		var got struct{ Method, Detail, Verdict string }
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if got.Detail != r.DetailText() || got.Method != r.MethodText() || got.Verdict != "deny" {
			t.Errorf("%.20q became %+v", text, got)
		}
	}
}

func TestALongIdentityIsCut(t *testing.T) {
	r := audit.Record{Identity: spiffeid.RequireFromString("spiffe://td.example/" + strings.Repeat("a", 4000))}
	line, err := native.Render(nil, &r)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Identity string }
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	if want := r.Identity.String()[:2048] + "..."; got.Identity != want {
		t.Errorf("got %d bytes, want %d", len(got.Identity), len(want))
	}
}

// BenchmarkRender measures the cost of a line for the goroutine of its sink.
func BenchmarkRender(b *testing.B) {
	r := audittest.Samples()[0].Record
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = native.Render(buf[:0], &r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParse measures the cost of a line for its reader.
func BenchmarkParse(b *testing.B) {
	line, err := native.Render(nil, &audittest.Samples()[0].Record)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := native.Parse(line); err != nil {
			b.Fatal(err)
		}
	}
}
