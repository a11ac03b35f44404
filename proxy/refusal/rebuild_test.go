package refusal_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// TestRebuildIsWordForWord checks that every refusal, as it goes out by HTTP/2, becomes the
// same text of HTTP/1.1 again.
func TestRebuildIsWordForWord(t *testing.T) {
	for _, d := range []refusal.Disclosure{refusal.Full, refusal.ID, refusal.None} {
		for _, reason := range allowlist.Reasons() {
			for _, detail := range []string{"", `a "quoted" \ detail; with=signs, and commas`, strings.Repeat("long ", 100)} {
				r := refusal.Refusal{Reason: reason, DecisionID: "01ARZ3NDEKTSV4RRFFQ69G5FAV", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Detail: detail}
				want := r.Append(nil, d)
				resp := r.Response(d)
				if resp.Status == 0 {
					continue
				}
				fields := []refusal.Field{{Name: ":status", Value: "999"}}
				for _, f := range resp.Fields {
					fields = append(fields, refusal.Field{Name: strings.ToLower(f.Name), Value: f.Value})
				}
				rebuilt := refusal.Rebuild(resp.Status, fields, resp.Body)
				got := rebuilt.Append(nil, false)
				if !bytes.Equal(got, want) {
					t.Errorf("disclosure %d, %s:\n%s\nwant\n%s", d, reason, got, want)
				}
			}
		}
	}
}

// TestParseStatus checks what is taken for the field of a gateway.
func TestParseStatus(t *testing.T) {
	for _, row := range []struct {
		value string
		want  refusal.Status
		ok    bool
	}{
		{"exeat", refusal.Status{}, true},
		{`exeat; error=http_request_denied; reason=denied-by-rule; details="say \"no\""`, refusal.Status{Error: "http_request_denied", Reason: "denied-by-rule", Details: `say "no"`}, true},
		{`exeat;error=dns_error; reason=resolve-failed; details="x"; rcode="SERVFAIL"; info-code=22`, refusal.Status{Error: "dns_error", Reason: "resolve-failed", Details: "x"}, true},
		{`exeat; details="only"`, refusal.Status{Details: "only"}, true},
		{"", refusal.Status{}, false},
		{"squid", refusal.Status{}, false},
		{"exeater; error=x", refusal.Status{}, false},
		{`exeat; details="no end`, refusal.Status{}, false},
		{`exeat; details="a\`, refusal.Status{}, false},
		{`exeat; details="a\x"`, refusal.Status{}, false},
		{"exeat; details=\"a\r\nb\"", refusal.Status{}, false},
		{"exeat, squid; error=x", refusal.Status{}, false},
		{"exeat; error", refusal.Status{}, false},
		{"exeat; error=", refusal.Status{}, false},
		{"exeat; =x", refusal.Status{}, false},
	} {
		got, ok := refusal.ParseStatus(row.value)
		if got != row.want || ok != row.ok {
			t.Errorf("%q: %+v, %v, want %+v, %v", row.value, got, ok, row.want, row.ok)
		}
	}
}

// TestRebuildBounds checks that what another program sends cannot end the head early.
func TestRebuildBounds(t *testing.T) {
	r := refusal.Rebuild(http.StatusForbidden, []refusal.Field{
		{Name: "connection", Value: "keep-alive"}, {Name: "content-type", Value: "text/plain"},
	}, []byte("egress denied"+strings.Repeat("\r", 300)+"\n"))
	cut := refusal.Rebuild(http.StatusForbidden, []refusal.Field{{Name: "content-length", Value: "100"}}, []byte("short"))
	if cut.Fields[0].Value != "5" {
		t.Errorf("a body that is cut off has the fields %v", cut.Fields)
	}
	if strings.ContainsAny(r.Phrase, "\r\n") || len(r.Phrase) > 200 || len(r.Fields) != 2 {
		t.Errorf("phrase %q, fields %v", r.Phrase, r.Fields)
	}
}

// TestRebuildCannotBeFramedOtherwise checks that no field of a gateway ends its line early, or
// says where the body ends.
func TestRebuildCannotBeFramedOtherwise(t *testing.T) {
	for _, row := range []struct{ name, value string }{
		{"x-a", "1\r\nset-cookie: a=b"},
		{"x-a", "1\nb: c"},
		{"x-a", "1\rb"},
		{"x-a", "1\x00"},
		{"x-a\r\nb", "1"},
		{"x a", "1"},
		{"x-a:", "1"},
		{"", "1"},
		{":status", "200"},
		{"transfer-encoding", "chunked"},
		{"TRANSFER-ENCODING", "chunked"},
		{"trailer", "a"},
		{"upgrade", "websocket"},
		{"keep-alive", "timeout=5"},
		{"connection", "close"},
		{"proxy-connection", "close"},
		{"te", "trailers"},
	} {
		r := refusal.Rebuild(http.StatusForbidden, []refusal.Field{{Name: row.name, Value: row.value}}, []byte("no"))
		if len(r.Fields) != 1 || r.Fields[0] != (refusal.Field{Name: "Content-Length", Value: "2"}) {
			t.Errorf("%q: %q has the fields %q", row.name, row.value, r.Fields)
		}
	}
	twice := refusal.Rebuild(http.StatusForbidden, []refusal.Field{{Name: "content-length", Value: "1"}, {Name: "content-length", Value: "9"}}, []byte("no"))
	if len(twice.Fields) != 1 || twice.Fields[0].Value != "2" {
		t.Errorf("two lengths become %q", twice.Fields)
	}
}
