package proxy_test

import (
	"io"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestWhatCannotBeRecordedIsRefused fills the disk and makes room again.
func TestWhatCannotBeRecordedIsRefused(t *testing.T) {
	e := newEvidenceWith(t, audit.Config{Required: true})
	e.lossy = true
	g := newGateway(t, options{evidence: e})
	ask := func(host string) answer {
		t.Helper()
		c := g.call(t, "builder")
		defer func() { _ = c.Close() }()
		return c.ask(t, connectTo(g.at(host)))
	}
	e.full.Store(true)
	for _, host := range []string{"allowed.example", "secret.example"} {
		if a := ask(host); a.status != 503 || a.reason() != allowlist.AuditUnavailable.String() {
			t.Errorf("%s on a full disk: %d %s, want 503 audit-unavailable", host, a.status, a.reason())
		}
	}
	conn := g.origin.next(t)
	if sent, err := io.ReadAll(conn); len(sent) > 0 || err != nil {
		t.Errorf("%q reached the origin of a tunnel that was not recorded, %v", sent, err)
	}
	_ = conn.Close()
	e.full.Store(false)
	if a := ask("secret.example"); a.status != 403 {
		t.Errorf("denied with room again: %d", a.status)
	}
	r := e.next(t, audit.EventDecision)
	for r.Reason == allowlist.AuditUnavailable.String() { // what was refused is recorded as well as it can be
		r = e.next(t, audit.EventDecision)
	}
	if r.Reason != allowlist.NotOnAllowlist.String() {
		t.Errorf("the first record with room again has the reason %q", r.Reason)
	}
}

// TestAPlainRequestIsRecordedBeforeItGoesOut: no byte of it leaves while the
// disk is full.
func TestAPlainRequestIsRecordedBeforeItGoesOut(t *testing.T) {
	e := newEvidenceWith(t, audit.Config{Required: true})
	e.lossy = true
	g := newGateway(t, options{evidence: e})
	e.full.Store(true)
	c := g.call(t, "builder")
	if a := c.ask(t, get("http://"+g.at("allowed.example")+"/")); a.status != 503 || a.reason() != allowlist.AuditUnavailable.String() {
		t.Errorf("on a full disk: %s, want 503 audit-unavailable", a.phrase)
	}
	conn := g.origin.next(t)
	if sent, err := io.ReadAll(conn); len(sent) > 0 || err != nil {
		t.Errorf("%q reached the origin of a request that was not recorded, %v", sent, err)
	}
	e.full.Store(false)
	g.origin.serve(t, func(request) string { return "HTTP/1.1 103 Early Hints\r\n\r\n" + ok })
	c = g.call(t, "builder")
	c.send(t, get("http://"+g.at("allowed.example")+"/"))
	if line, err := c.reader.ReadString('\n'); err != nil || line != "HTTP/1.1 103 Early Hints\r\n" {
		t.Errorf("with room again: %q, %v", line, err)
	}
	for r := e.next(t, audit.EventDecision); r.Verdict != "allow"; r = e.next(t, audit.EventDecision) {
		if r.Reason != allowlist.AuditUnavailable.String() { // what was refused is recorded as well as it can be
			t.Errorf("record %+v", r)
		}
	}
	_ = c.Close()
}
