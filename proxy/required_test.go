package proxy_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestRequestIsRefusedIfItCannotBeRecorded checks that requests are refused while the disk
// is full, and allowed when it has room again.
func TestRequestIsRefusedIfItCannotBeRecorded(t *testing.T) {
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
	for r.Reason == allowlist.AuditUnavailable.String() { // refused requests are recorded when there is room again
		r = e.next(t, audit.EventDecision)
	}
	if r.Reason != allowlist.NotOnAllowlist.String() {
		t.Errorf("the first record with room again has the reason %q", r.Reason)
	}
}

// TestPlainRequestIsRecordedBeforeItGoesOut checks that no byte of a request goes out
// while the disk is full.
func TestPlainRequestIsRecordedBeforeItGoesOut(t *testing.T) {
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
		if r.Reason != allowlist.AuditUnavailable.String() { // refused requests are recorded when there is room again
			t.Errorf("record %+v", r)
		}
	}
	_ = c.Close()
}

// requiring returns a gateway whose records must be written before anything goes out. Its
// sink takes no records until letGo is called.
func requiring(t *testing.T) (g *gateway, letGo func()) {
	t.Helper()
	e := startEvidence(t, audit.Config{Required: true}, &evidence{stuck: make(chan struct{})})
	return newGateway(t, options{evidence: e}), func() { close(e.stuck) }
}

// recording waits until a record has been made, which the gateway then waits to be written.
func (g *gateway) recording(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); g.recorder.Stats().Sinks[0].Made == g.made; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("no record was made")
		}
	}
}

// TestRequestForbiddenWhileItIsRecordedDoesNotGoOut forbids an allowed request while its
// record is being written.
func TestRequestForbiddenWhileItIsRecordedDoesNotGoOut(t *testing.T) {
	for ending, want := range map[string]int{"revoked": 403, "quarantined": 403, "drain": 503} {
		t.Run(ending, func(t *testing.T) {
			g, letGo := requiring(t)
			enforcer := g.enforcer()
			c := g.call(t, "builder")
			c.send(t, get("http://"+g.at("allowed.example")+"/"))
			conn := g.origin.next(t)
			g.recording(t)
			endings()[ending](t, g, enforcer)
			letGo()
			if a := c.answer(t); a.status != want {
				t.Errorf("answered %s, want %d", a.phrase, want)
			}
			if sent, _ := io.ReadAll(conn); len(sent) > 0 {
				t.Errorf("the origin got %q", sent)
			}
			if r := g.next(t, audit.EventDecision); r.Verdict != "allow" || r.Status != 0 {
				t.Errorf("record %+v, want the one that was written before", r)
			}
			if r := g.next(t, audit.EventTunnelClose); r.CloseReason != ending || r.Up != 0 {
				t.Errorf("record %+v", r)
			}
			_ = c.Close()
			if left := g.rest(t); len(left) > 0 {
				t.Errorf("records too many: %+v", left)
			}
		})
	}
}

// TestRequestRecordedAsAllowedHasAnEnd makes a request be tried again, by a state that
// forbids it for a moment. The next try finds no origin, and the end must be recorded.
func TestRequestRecordedAsAllowedHasAnEnd(t *testing.T) {
	g, letGo := requiring(t)
	passing := g.another(t) // its states are no longer in force when the door checks them
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := g.call(t, "builder")
	c.send(t, get(fmt.Sprintf("http://refused.example:%d/", l.Addr().(*net.TCPAddr).Port)))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = l.Close()
	g.recording(t)
	g.put(t, passing, func(s *allowlist.Spec) { s.Entries = s.Entries[1:] })
	letGo()
	if a := c.answer(t); a.status != 502 || a.reason() != "dial-refused" {
		t.Errorf("answered %s", a.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "allow" || r.Status != 0 {
		t.Errorf("record %+v, want the one that was written before", r)
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "error" || r.Up != 0 {
		t.Errorf("record %+v", r)
	}
	_ = c.Close()
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("records too many: %+v", left)
	}
}
