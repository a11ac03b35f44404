package proxy_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// seen is what a caller and a reader of the records see of a request.
type seen struct {
	Status, ProxyStatus, Body string
	Record                    record
}

// ids are what differs between two requests that are treated alike.
var ids = regexp.MustCompile(`[0-9A-HJKMNP-TV-Z]{26}|[0-9a-f]{32}`)

func (g *seen) withoutIDs() {
	g.ProxyStatus, g.Body = ids.ReplaceAllString(g.ProxyStatus, "ID"), ids.ReplaceAllString(g.Body, "ID")
	g.Record.ID, g.Record.TraceID, g.Record.SpanID, g.Record.Wire = "", "", "", ""
}

// TestBothWiresAgree sends the same requests over HTTP/1.1 and HTTP/2. The answers and the
// records must be the same, and each record must have its span.
func TestBothWiresAgree(t *testing.T) {
	g := newGateway(t, options{})
	facts := map[string]fact{}
	for _, row := range []struct{ name, who, target, host string }{
		{"allowed", "builder", "allowed.example:PORT", ""},
		{"another spelling", "builder", "ALLOWED.example.:PORT", "allowed.EXAMPLE"},
		{"denied", "builder", "secret.example:443", ""},
		{"another port", "builder", "allowed.example:81", ""},
		{"closed", "builder", "denied.wild.example:PORT", ""},
		{"expired rule", "builder", "expired.example:443", ""},
		{"quarantined", "legacy", "allowed.example:PORT", ""},
		{"unknown caller", "stranger", "allowed.example:PORT", ""},
		{"no identity", "", "allowed.example:PORT", ""},
		{"no port", "builder", "allowed.example", ""},
		{"port 0", "builder", "allowed.example:0", ""},
		{"user", "builder", "user@allowed.example:PORT", ""},
		{"path", "builder", "allowed.example:PORT/", ""},
		{"not ASCII", "builder", "allowe\u0501.example:PORT", ""},
		{"another host", "builder", "allowed.example:PORT", "secret.example:PORT"},
		{"another port in Host", "builder", "allowed.example:PORT", "allowed.example:81"},
		{"malformed Host", "builder", "allowed.example:PORT", "a b"},
		{"no such name", "builder", "unknown.example:443", ""},
		{"no address", "builder", "empty.example:443", ""},
		{"private addresses", "builder", "inner.example:443", ""},
		{"metadata", "builder", "169.254.169.254:80", ""},
		{"a panic", "builder", "panic.example:443", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			target, host := g.port(row.target), g.port(row.host)
			if host == "" {
				host = target
			}
			var one, two seen

			c := g.call(t, row.who)
			a := c.ask(t, "CONNECT "+target+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
			one = seen{strings.Fields(a.phrase)[0], a.header.Get("Proxy-Status"), a.body, g.decisionOver(t, "h1")}
			_ = c.Close()

			s := g.session(t, row.who)
			s.Open(t, 1, false, ":method", "CONNECT", ":authority", target, "host", host)
			e := s.On(t, 1)
			two = seen{Status: e.Status(), ProxyStatus: e.Field("proxy-status")}
			if e.Status() != "200" {
				two.Body, _ = s.Rest(t, 1)
			}
			two.Record = g.decisionOver(t, "h2")
			_ = s.Close()

			for _, r := range []record{one.Record, two.Record} {
				facts[r.ID] = fact{r.Verdict, r.Reason, r.Host, strconv.Itoa(r.Status), r.TraceID, r.SpanID}
			}
			one.withoutIDs()
			two.withoutIDs()
			if diff := cmp.Diff(one, two); diff != "" {
				t.Errorf("-HTTP/1.1 +HTTP/2:\n%s", diff)
			}
		})
	}
	if diff := cmp.Diff(facts, decisionSpans(t, g.spans.GetSpans())); diff != "" {
		t.Errorf("records (-) and spans (+) differ: %s", diff)
	}
}

// decisionOver returns the next record of a decision over a wire. Those of the ends of
// tunnels come at any time.
func (g *gateway) decisionOver(t *testing.T, wire string) record {
	t.Helper()
	for late := time.After(patience); ; {
		select {
		case r := <-g.records:
			if r.Event == string(audit.EventDecision) && r.Wire == wire {
				return r
			}
		case <-late:
			t.Fatalf("no decision over %s was recorded", wire)
		}
	}
}

// port puts the origin's port in place of PORT.
func (g *gateway) port(text string) string {
	return strings.ReplaceAll(text, "PORT", strings.TrimPrefix(g.at(""), ":"))
}

// TestTheTraceOfAStream sends the traceparent of a caller on a stream.
func TestTheTraceOfAStream(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	s.Open(t, 1, true, ":method", "CONNECT", ":authority", "secret.example:443", "traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	if got := s.refused(t, 1); got != "not-on-allowlist" {
		t.Fatalf("refused for %q", got)
	}
	if r := g.next(t, audit.EventDecision); r.CallerTraceID != trace {
		t.Errorf("record %+v", r)
	}
}
