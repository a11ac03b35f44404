package native_test

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// FuzzRender checks that every record is one line of valid JSON without repeated keys,
// which Parse reads back, and that text which a caller chooses stays bounded in it and
// adds no other field.
func FuzzRender(f *testing.F) {
	for _, s := range audittest.Samples() {
		f.Add(string(s.Record.Event), s.Record.Detail, uint64(len(s.Name)))
	}
	f.Add("CONNECT", "why", uint64(3))
	f.Add("\",\"verdict\":\"allow", "a\nb\r\x00\x1b\x7f", uint64(1<<63))
	f.Add("\xff\xc3", "\u2028<>&\xed\xa0\x80\u2029", uint64(2))
	f.Add("tunnel.close", "spiffe://td.example/a", uint64(1<<64-1))
	f.Fuzz(func(t *testing.T, event, text string, n uint64) {
		r := defined(audittest.Hostile(audit.Event(event), text, n), text, n)
		line := render(t, &r)
		if err := audittest.CheckLine(line); err != nil {
			t.Fatal(err)
		}
		// encoding/json, which checks and escapes its input, changes nothing.
		if again, err := json.Marshal(json.RawMessage(line)); err != nil || !bytes.Equal(again, line) {
			t.Errorf("%q is not what encoding/json writes: %q, %v", line, again, err)
		}
		checkCaller(t, event, text)
		got, err := native.Parse(line)
		switch want := kept(r); {
		case len(line) > 64<<10:
			if err == nil {
				t.Errorf("a line of %d bytes is read", len(line))
			}
		case err != nil:
			t.Errorf("%q: %v", line, err)
		case !reflect.DeepEqual(got, want):
			t.Errorf("%q is read as\n%+v, want\n%+v", line, got, want)
		}
	})
}

// checkCaller renders only text that a caller chooses.
func checkCaller(t *testing.T, method, detail string) {
	t.Helper()
	r := audit.Record{Event: audit.EventDecision, Method: method, Detail: detail}
	line := render(t, &r)
	if len(line) > 6*(32+512)+200 {
		t.Errorf("%d bytes: %q", len(line), line)
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"schema": 1.0, "time": "0001-01-01T00:00:00.000000000Z", "event": "decision", "verdict": "deny",
	}
	for key, text := range map[string]string{"method": r.MethodText(), "detail": r.DetailText()} {
		if text != "" {
			want[key] = text
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzParse checks that a line which Parse accepts is the only line of its record.
func FuzzParse(f *testing.F) {
	for _, s := range audittest.Samples() {
		f.Add(render(f, &s.Record))
	}
	everything := full(f)
	f.Add(render(f, &everything))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := native.Parse(line)
		if err != nil {
			if !reflect.ValueOf(r).IsZero() {
				t.Errorf("%+v beside the error %v", r, err)
			}
			return
		}
		if again := render(t, &r); !bytes.Equal(again, line) {
			t.Errorf("%q is read, and written as %q", line, again)
		}
	})
}

func render(tb testing.TB, r *audit.Record) []byte {
	tb.Helper()
	line, err := native.Render(nil, r)
	if err != nil {
		tb.Fatal(err)
	}
	return line
}

// defined returns a record with a defined value in every field, including the fields
// that only some records have.
func defined(r audit.Record, text string, n uint64) audit.Record {
	r.Verdict %= allowlist.Fail + 1
	r.Proof %= allowlist.ProofSourceMap + 1
	r.Mode %= allowlist.ModeObserve + 1
	r.Class %= allowlist.NotDestination + 1
	r.CloseReason %= tunnel.Error + 1
	if r.Merged != nil {
		r.Merged.Counts[0].Verdict = r.Verdict
	}
	if id, err := spiffeid.FromString(text); err == nil {
		r.Identity = id
	}
	if n%3 == 0 {
		r.Protocol = audit.ProtocolDNS
		r.DNS = audit.DNS{Type: allowlist.QueryType(n), Code: text, Answers: int(n % 99), Answered: r.Refused, Filtered: int(n % 5), Origin: text}
	}
	return r
}

// kept returns the fields of a record that Render says it writes.
func kept(r audit.Record) audit.Record {
	r.Supersedes = false
	r.Trace = trace.NewSpanContext(trace.SpanContextConfig{TraceID: r.Trace.TraceID(), SpanID: r.Trace.SpanID()})
	if !r.Trace.HasTraceID() {
		r.Trace = trace.SpanContext{}
	}
	decision := r.Event == audit.EventDecision || r.Event == audit.EventCollapsed
	switch {
	case !decision || r.Policy == "":
		r.Mode = allowlist.ModeUnset
	case r.Mode == allowlist.ModeUnset:
		r.Mode = allowlist.ModeEnforce
	}
	if !decision {
		r.Verdict = 0
	}
	if r.Event != audit.EventTunnelProgress && r.Event != audit.EventTunnelClose {
		r.Up, r.Down = 0, 0
	}
	if r.Protocol != audit.ProtocolDNS {
		r.DNS = audit.DNS{}
	}
	if r.DNS.Code == "" {
		r.DNS.Answers, r.DNS.Answered = 0, nil
	}
	r.Reason, r.WouldReason = reason(r.Reason), reason(r.WouldReason)
	if r.Stage.String() == "" {
		r.Stage = audit.StageRequest
	}
	if r.Hello.TLS.String() == "" {
		r.Hello.TLS = audit.TLSUnknown
	}
	r.Resolve, r.Dial = r.Resolve.Truncate(time.Microsecond), r.Dial.Truncate(time.Microsecond)
	r.Duration = r.Duration.Truncate(time.Microsecond)
	keepTexts(&r)
	if r.Merged != nil {
		r.Merged = merged(*r.Merged)
		if r.Merged.Other {
			r.Identity = spiffeid.ID{}
		}
	}
	r.Time = r.Time.UTC()
	return r
}

// keepTexts changes texts as a line contains them.
func keepTexts(r *audit.Record) {
	for _, text := range []*string{
		&r.ID, &r.Instance, &r.Listener, &r.Path, &r.Rule, &r.RuleAt, &r.Owner, &r.Ticket, &r.Policy, &r.DNS.Code, &r.DNS.Origin,
	} {
		*text = valid(*text)
	}
	r.Event = audit.Event(valid(string(r.Event)))
	r.Protocol, r.Wire = audit.Protocol(valid(string(r.Protocol))), audit.Wire(valid(string(r.Wire)))
	r.Method, r.Detail, r.Hello.SNI = r.MethodText(), r.DetailText(), r.Hello.SNIText()
	r.Attributed = r.AttributedText()
	if !r.Identity.IsZero() {
		r.Identity = spiffeid.RequireFromString(r.IdentityText())
	}
	r.Client, r.Address = address(r.Client), address(r.Address)
}

// valid returns a text with U+FFFD for every byte that is not UTF-8.
func valid(text string) string { return string([]rune(text)) }

func address(a netip.AddrPort) netip.AddrPort {
	if !a.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().WithZone(valid(a.Addr().Zone())), a.Port())
}

func merged(m audit.Merged) *audit.Merged {
	m.First, m.Last, m.Counts = m.First.UTC(), m.Last.UTC(), slices.Clone(m.Counts)
	for i := range m.Counts {
		m.Counts[i].Reason = reason(m.Counts[i].Reason)
	}
	return &m
}

// reason returns a reason, or NoReason for an undefined value.
func reason(r allowlist.Reason) allowlist.Reason {
	if r.String() == "" {
		return allowlist.NoReason
	}
	return r
}
