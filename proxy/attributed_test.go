package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// attributedTo is what a caller says of the process that has asked.
const attributedTo = `process="curl", pid=4711, job="build", step="test"`

// attributedFields are fields of a request that says who asked: the first one counts.
func attributedFields() []string {
	return []string{audit.AttributedField + ": " + attributedTo, audit.AttributedField + `: process="forged"`}
}

// wantAttributed checks the attribution of the next records, which have these events.
func (g *gateway) wantAttributed(t *testing.T, want string, events ...audit.Event) {
	t.Helper()
	for _, event := range events {
		if r := g.next(t, event); r.Attributed != want {
			t.Errorf("the record %s over %s is attributed to %q, want %q", event, r.Wire, r.Attributed, want)
		}
	}
}

// bothEnd closes both ends of a tunnel, or the client's if the request was not answered 200.
func (g *gateway) bothEnd(t *testing.T, client io.Closer, status int) {
	t.Helper()
	if status == http.StatusOK {
		_ = g.origin.next(t).Close()
	}
	_ = client.Close()
}

// TestAttributionIsRecorded sends the field with requests that are allowed and denied, over
// both wires. It changes no answer, and the records and spans have it.
func TestAttributionIsRecorded(t *testing.T) {
	g := newGateway(t, options{})
	for _, row := range []struct {
		host   string
		status int
		events []audit.Event
	}{
		{"allowed.example", 200, []audit.Event{audit.EventDecision, audit.EventTunnelClose}},
		{"secret.example", 403, []audit.Event{audit.EventDecision}},
	} {
		c := g.call(t, "builder")
		if a := c.ask(t, connectTo(g.at(row.host), attributedFields()...)); a.status != row.status {
			t.Errorf("%s: answered %s", row.host, a.phrase)
		}
		g.bothEnd(t, c, row.status)
		g.wantAttributed(t, attributedTo, row.events...)

		s := g.session(t, "builder")
		s.Open(t, 1, true, ":method", "CONNECT", ":authority", g.at(row.host),
			strings.ToLower(audit.AttributedField), attributedTo, strings.ToLower(audit.AttributedField), "pid=1")
		if got, allowed := s.Status(t, 1), row.status == 200; (got == "200") != allowed {
			t.Errorf("%s over HTTP/2: answered %s", row.host, got)
		}
		g.bothEnd(t, s, row.status)
		g.wantAttributed(t, attributedTo, row.events...)
	}
	c := g.call(t, "builder")
	c.ask(t, connectTo(g.at("secret.example")))
	g.wantAttributed(t, "", audit.EventDecision)
	decisions := 0
	for _, span := range g.spans.GetSpans() {
		for _, kv := range span.Attributes {
			if kv == attribute.String("egress.attributed", attributedTo) {
				decisions++
			}
		}
	}
	if decisions != 4 {
		t.Errorf("%d spans have the attribution, want those of the 4 decisions", decisions)
	}
}

// TestAttributionIsNotForwarded sends the field with plain requests, in several spellings,
// as a field and behind the body. No origin gets it.
func TestAttributionIsNotForwarded(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	chunks := []string{"Transfer-Encoding: chunked", "Trailer: X-Exeat-Attributed, X-Sum", "x_exeat_attributed: pid=2"}
	for name, head := range map[string]string{
		"a field":    get(r.url("allowed.example", "/"), append(attributedFields(), "X-EXEAT-ATTRIBUTED: pid=3", "X_Exeat_Attributed: pid=4")...),
		"a trailer":  plainTo("POST", r.url("allowed.example", "/"), append(attributedFields(), chunks...)...) + "0\r\nX-Exeat-Attributed: pid=5\r\nX-Sum: 1\r\n\r\n",
		"an upgrade": get(r.url("ws.example", "/"), append(attributedFields(), upgrades("websocket")...)...),
	} {
		if a := c.ask(t, head); a.status != 200 {
			t.Errorf("%s: answered %s", name, a.phrase)
		}
		if raw := r.received(t).raw; strings.Contains(strings.ToLower(raw), "attributed") || strings.Contains(raw, "pid=") {
			t.Errorf("%s: the origin got %q", name, raw)
		}
		r.wantAttributed(t, attributedTo, audit.EventDecision, audit.EventTunnelClose)
	}
	s := r.session(t, "builder")
	s.Open(t, 1, true, r.plainOver("GET", "allowed.example", "/", strings.ToLower(audit.AttributedField), attributedTo)...)
	if got := s.Status(t, 1); got != "200" {
		t.Errorf("over HTTP/2: answered %s", got)
	}
	if raw := r.received(t).raw; strings.Contains(strings.ToLower(raw), "attributed") {
		t.Errorf("over HTTP/2: the origin got %q", raw)
	}
	r.wantAttributed(t, attributedTo, audit.EventDecision, audit.EventTunnelClose)
}

// TestAttributionOfAnyTextIsBounded sends attributions of which only a part is recorded.
func TestAttributionOfAnyTextIsBounded(t *testing.T) {
	g := newGateway(t, options{})
	for sent, want := range map[string]string{
		strings.Repeat("x", 512):    strings.Repeat("x", 512),
		strings.Repeat("x", 5000):   strings.Repeat("x", 512) + "...",
		"caf\u00e9 \u202e\tx\u009b": "caf\u00e9 \u202e\tx\u009b",
		"\xff,\xfe":                 "?,?",
		"":                          "",
	} {
		c := g.call(t, "builder")
		if a := c.ask(t, connectTo(g.at("secret.example"), audit.AttributedField+": "+sent)); a.status != 403 {
			t.Errorf("%q: answered %s", sent, a.phrase)
		}
		g.wantAttributed(t, want, audit.EventDecision)
		_ = c.Close()
	}
}
