package native_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestEveryRecordIsReadBack checks every kind of record, and one with every field.
func TestEveryRecordIsReadBack(t *testing.T) {
	all := append(audittest.Samples(), audittest.Sample{Name: "everything", Record: full(t)})
	for _, s := range all {
		got, err := native.Parse(render(t, &s.Record))
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		if want := kept(s.Record); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", s.Name, got, want)
		}
	}
}

// TestEveryWordIsReadBack checks each value of each closed set.
func TestEveryWordIsReadBack(t *testing.T) {
	var all []audit.Record
	for _, reason := range allowlist.Reasons() {
		all = append(all, audit.Record{Event: audit.EventDecision, Reason: reason, WouldReason: reason})
	}
	for class := allowlist.Public; class <= allowlist.NotDestination; class++ {
		all = append(all, audit.Record{Class: class})
	}
	for verdict := allowlist.Deny; verdict <= allowlist.Fail; verdict++ {
		all = append(all, audit.Record{Event: audit.EventDecision, Verdict: verdict})
	}
	for source := allowlist.NoProof; source <= allowlist.ProofSourceMap; source++ {
		all = append(all, audit.Record{Proof: source})
	}
	for tls := audit.TLSUnknown; tls <= audit.TLSNone; tls++ {
		all = append(all, audit.Record{Hello: audit.Hello{TLS: tls}})
	}
	for reason := tunnel.None; reason <= tunnel.Error; reason++ {
		all = append(all, audit.Record{Event: audit.EventTunnelClose, CloseReason: reason})
	}
	for _, mode := range []allowlist.Mode{allowlist.ModeEnforce, allowlist.ModeObserve} {
		all = append(all, audit.Record{Event: audit.EventDecision, Policy: "v", Mode: mode})
	}
	for _, query := range append(allowlist.QueryTypes(), 3, 255, 65535) {
		all = append(all, audit.Record{Protocol: audit.ProtocolDNS, DNS: audit.DNS{Type: query}})
	}
	for _, r := range all {
		line := render(t, &r)
		if got, err := native.Parse(line); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: got %+v, %v", line, got, err)
		}
	}
}

// TestParseRefusesOtherLines checks that Parse refuses a line that Render would not write.
// Each row changes a valid line in one place.
func TestParseRefusesOtherLines(t *testing.T) {
	r := full(t)
	good := string(render(t, &r))
	summary := audit.Record{Event: audit.EventSummary, Merged: &audit.Merged{Count: 1, Counts: []audit.Count{{Count: 1}}}}
	other := string(render(t, &summary))
	for _, row := range []struct{ name, line, old, new string }{
		{"nothing", good, good, ""},
		{"null in place of an object", good, good, "null"},
		{"an object with nothing", good, good, "{}"},
		{"a newline", good, good, good + "\n"},
		{"two records in a line", good, good, good + good},
		{"a text without its end", good, `"detail":"why",`, `"detail":"why`},
		{"spaces", good, `:1,`, `: 1,`},
		{"too many bytes", good, `"why"`, `"` + strings.Repeat("x", 64<<10) + `"`},
		{"another schema", good, `"schema":1`, `"schema":2`},
		{"no schema", good, `"schema":1,`, ``},
		{"no time", good, `"time":"2026-11-21T03:05:06.070000000Z",`, ``},
		{"an unknown key", good, `"id"`, `"ident"`},
		{"an unknown key at the end", good, `0"}`, `0","more":1}`},
		{"an unknown key of a count", other, `"count":1}`, `"count":1,"more":1}`},
		{"a key in capitals", good, `"id"`, `"ID"`},
		{"a key twice", good, `"port":443`, `"port":443,"port":443`},
		{"another value of a key first", good, `"port":443`, `"port":1,"port":443`},
		{"keys in another order", good, `"protocol":"connect","wire":"h1"`, `"wire":"h1","protocol":"connect"`},
		{"a text for a number", good, `443`, `"443"`},
		{"a number for a text", good, `"h1"`, `1`},
		{"a list for a text", good, `"h1"`, `["h1"]`},
		{"a text for a flag", good, `"method"`, `"ech":"true","method"`},
		{"null", good, `"h1"`, `null`},
		{"null for an object", other, `{"verdict":"deny","count":1}`, `null`},
		{"an empty list", other, `[{"verdict":"deny","count":1}]`, `[]`},
		{"an empty text", good, `"h1"`, `""`},
		{"a port that is too high", good, `"port":443`, `"port":65536`},
		{"a port with a sign", good, `"port":443`, `"port":-443`},
		{"a port with a point", good, `"port":443`, `"port":443.0`},
		{"a zero that is left out", good, `"port":443`, `"port":0`},
		{"an exponent", good, `"dial_ms":2000`, `"dial_ms":2e3`},
		{"a fourth digit", good, `"resolve_ms":1.5`, `"resolve_ms":1.5001`},
		{"a zero behind the point", good, `"resolve_ms":1.5`, `"resolve_ms":1.50`},
		{"a time that no duration has", good, `"dial_ms":2000`, `"dial_ms":9223372036854775`},
		{"another zone", good, `03:05:06.070000000Z`, `04:05:06.070000000+01:00`},
		{"fewer digits of a second", good, `06.070000000Z`, `06.07Z`},
		{"a day that does not exist", good, `2026-11-21`, `2026-02-30`},
		{"an unknown verdict", good, `"observe","reason"`, `"maybe","reason"`},
		{"a verdict in capitals", good, `"observe","reason"`, `"Observe","reason"`},
		{"a verdict outside the set", good, `"observe","reason"`, `"invalid","reason"`},
		{"a verdict of an event that is no decision", good, `"event":"decision"`, `"event":"handshake"`},
		{"an unknown reason", good, `"not-on-allowlist"`, `"because"`},
		{"an unknown close reason", good, `"client","detail"`, `"bored","detail"`},
		{"the close reason none", good, `"client","detail"`, `"none","detail"`},
		{"a close reason outside the set", good, `"client","detail"`, `"unknown","detail"`},
		{"a class outside the set", good, `"private"`, `"invalid"`},
		{"a malformed identity", good, `"spiffe://prod.example/`, `"https://prod.example/`},
		{"the identity of a summary in a decision", good, `"spiffe://prod.example/ns/ci/sa/builder"`, `"_other"`},
		{"a host in capitals", good, `"api.example"`, `"API.example"`},
		{"a malformed host", good, `"api.example"`, `"-.example"`},
		{"a malformed client address", good, `"10.1.2.3:40000"`, `"10.1.2.3.4"`},
		{"a client with port 0", good, `"10.1.2.3:40000"`, `"10.1.2.3:0"`},
		{"an address without a port", good, `"[2001:db8::1]:443"`, `"2001:db8::1"`},
		{"an address in a longer form", good, `"[2001:db8::1]:443"`, `"[2001:db8:0::1]:443"`},
		{"a query type of a request that is no query", good, `"resolve_ms"`, `"qtype":"A","resolve_ms"`},
		{"an id of a trace that is too short", good, `"09000`, `"0900`},
		{"an id of a trace in capitals", good, `"09`, `"0A`},
		{"an id of a trace of zeros", good, `"09`, `"00`},
		{"an escape that is not needed", good, `"h1"`, `"\u00681"`},
		{"half of a surrogate pair", good, `"why"`, `"\ud800"`},
		{"a terminal control", good, `"why"`, "\"\u2028\""},
		{"a byte that is no UTF-8", good, `"why"`, "\"\xff\""},
		{"a text that Render would cut", good, `"why"`, `"` + strings.Repeat("x", 520) + `"`},
	} {
		if !strings.Contains(row.line, row.old) {
			t.Fatalf("%s: the line has no %s", row.name, row.old)
		}
		got, err := native.Parse([]byte(strings.Replace(row.line, row.old, row.new, 1)))
		if err == nil || !reflect.ValueOf(got).IsZero() {
			t.Errorf("%s: got %+v, %v", row.name, got, err)
		}
	}
}

// TestParsedRecordDoesNotReferToItsLine checks that a record keeps nothing of the line it
// was parsed from, because a reader of files reuses its buffer.
func TestParsedRecordDoesNotReferToItsLine(t *testing.T) {
	r := full(t)
	line := render(t, &r)
	got, err := native.Parse(line)
	if err != nil {
		t.Fatal(err)
	}
	clear(line)
	if want := kept(r); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
