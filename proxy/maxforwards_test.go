package proxy_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestMaxForwardsIsCountedDown checks that Max-Forwards counts down for OPTIONS and TRACE,
// even if Connection lists it.
func TestMaxForwardsIsCountedDown(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	for _, row := range []struct{ method, fields, want string }{
		{"TRACE", "Max-Forwards: 10", "9"},
		{"OPTIONS", "max-forwards: 1", "0"},
		{"OPTIONS", "Max-Forwards: 99999999999999999999999", "2147483646"},
		{"OPTIONS", "Connection: Max-Forwards\r\nMax-Forwards: 3", "2"},
		{"GET", "Max-Forwards: 0", "0"}, // has no meaning for GET
		{"GET", "Max-Forwards: x", "x"},
		{"OPTIONS", "X: 1", ""},
	} {
		if a := c.ask(t, plainTo(row.method, r.url("allowed.example", "/"), row.fields)); a.status != 200 {
			t.Errorf("%s: answered %s", row.fields, a.phrase)
		}
		if got := r.received(t); strings.Join(got.Header["Max-Forwards"], "+") != row.want || got.Method != row.method {
			t.Errorf("%s with %s: the origin got %q", row.method, row.fields, got.raw)
		}
		r.carried(t)
	}
	for _, value := range []string{"", "-1", "+1", "1, 2", "1.0", "0x1", "1\r\nMax-Forwards: 1"} {
		if a := r.call(t, "builder").ask(t, plainTo("TRACE", r.url("allowed.example", "/"), "Max-Forwards: "+value)); a.status != 400 || a.reason() != "malformed-header" {
			t.Errorf("%q: answered %s", value, a.phrase)
		}
		if decision := r.next(t, audit.EventDecision); !strings.HasSuffix(decision.Detail, ": malformed Max-Forwards") {
			t.Errorf("record %+v", decision)
		}
	}
}

// TestGatewayAnswersMaxForwardsZero checks that the gateway itself answers a request with
// Max-Forwards 0, after the policy has allowed it.
func TestGatewayAnswersMaxForwardsZero(t *testing.T) {
	r := newPlainRig(t, ok)
	lookups := r.names.lookups.Load()
	c := r.call(t, "builder")
	target := r.url("allowed.example", "/a?b")
	ask := func(method, fields string) answer {
		t.Helper()
		a := c.ask(t, plainTo(method, target, "Max-Forwards: 0", fields))
		if at, err := http.ParseTime(a.header.Get("Date")); a.status != 200 || err != nil || time.Since(at) > time.Minute {
			t.Errorf("answered %s %v", a.phrase, a.header)
		}
		if d := r.next(t, audit.EventDecision); d.Verdict != "allow" || d.Status != 200 || d.Address != "" || !strings.Contains(d.Detail, "Max-Forwards") {
			t.Errorf("record %+v", d)
		}
		return a
	}
	if a := ask("OPTIONS", "X: 1"); a.body != "" || a.header.Get("Content-Length") != "0" || a.close {
		t.Errorf("answered %v %q", a.header, a.body)
	}
	a := ask("TRACE", "Authorization: Bearer s\r\nCOOKIE: s=s\r\nCookie2: s\r\nproxy-authorization: Basic s\r\nProxy-X: s\r\nX-Two: 1\r\nx-two: 2")
	authority := r.at("allowed.example")
	want := "TRACE " + target + " HTTP/1.1\r\nHost: " + authority + "\r\nMax-Forwards: 0\r\nX-Two: 1\r\nx-two: 2\r\n\r\n"
	if diff := cmp.Diff(want, a.body); diff != "" || a.header.Get("Content-Type") != "message/http" || a.close {
		t.Errorf("answered %v (want -, got +) %s", a.header, diff)
	}
	if a := ask("OPTIONS", "Connection: close"); !a.close {
		t.Error("the connection stays open")
	}
	c.ended(t)

	c = r.call(t, "builder")
	target = r.url("secret.example", "/")
	if a := c.ask(t, plainTo("TRACE", target, "Max-Forwards: 0")); a.reason() != "not-on-allowlist" {
		t.Errorf("answered %s", a.phrase)
	}
	r.next(t, audit.EventDecision)
	target = r.url("allowed.example", "/")
	c.send(t, plainTo("OPTIONS", target, "Max-Forwards: 0", "Content-Length: 3")+"abcGET")
	if a := c.answer(t); a.status != 200 || !a.close {
		t.Errorf("answered %s, closing: %v", a.phrase, a.close)
	}
	r.next(t, audit.EventDecision)
	if n := r.origin.accepted.Load(); n != 0 || r.names.lookups.Load() != lookups {
		t.Errorf("%d connections to the origin, or a lookup", n)
	}
	_ = c.Close()
	if left := r.rest(t); len(left) > 0 {
		t.Errorf("%d records too many, first %+v", len(left), left[0])
	}
}
