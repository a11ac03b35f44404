package proxy_test

import (
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/forward"
)

// TestFieldsThatServersReadOtherwiseAreRemoved checks which fields an origin gets from a
// caller, depending on the rule that allows the request. Each row has the hosts that get
// the field.
func TestFieldsThatServersReadOtherwiseAreRemoved(t *testing.T) {
	const (
		free, methods, paths = "allowed.example", "read-only.example", "public-path.example"

		always     = "" // removed under every rule
		freeOnly   = free
		everywhere = free + " " + methods + " " + paths
	)
	rows := map[string]string{ // the hosts that get each field
		"Proxy": always, "proxy": always, "Keep_Alive": always, "Proxy_Authorization": always, "proxy.foo": always, "X_Exeat_Decision": always, "Content_Length": always, "content.length": always,
		"Transfer_Encoding": always, "HTTP2_Settings": always, "X-Forwarded": always, "X-Forwarded-Uri": always, "X_Forwarded_For": always, "x.forwarded~for": always, "X-Forwarded_Proto": always, "X_Real_IP": always, "Forwarded-For": always, "X-Forwarded-Method": always,
		"X-Original-URL": freeOnly, "X_Original_URL": freeOnly, "X-Original-Uri": freeOnly, "X-Rewrite-URL": freeOnly, "X_Rewrite-URL": freeOnly, "X-HTTP-Method-Override": freeOnly, "X-HTTP-Method": freeOnly, "X_HTTP_METHOD_OVERRIDE": freeOnly,
		"X-Method-Override": freeOnly, "X-Original-Method": freeOnly, "X-Override-URL": freeOnly, "X-Proxy-Url": freeOnly, "Base-Url": freeOnly, "Request-Uri": freeOnly, "REQUEST_URI": freeOnly, "X-Host": freeOnly, "X-HTTP-Host-Override": freeOnly,
		"X-Replaced-Path": freeOnly, "X-Envoy-Original-Path": freeOnly, "X-Middleware-Subrequest": freeOnly, "X-Remote-User": freeOnly, "Remote_User": freeOnly, "CF-Connecting-IP": freeOnly, "Path_Info": freeOnly,
		"Destination": free + " " + methods,
		"X-Stays":     everywhere, "X_Stays": everywhere, "Accept_Language": everywhere, "Proxied": everywhere, "X-WAP-Profile": everywhere, "X-Requested-With": everywhere, "Authorization": everywhere, "Original-Url-Not": everywhere,
	}
	r := newPlainRig(t, ok)
	for name, hosts := range rows {
		for host, path := range map[string]string{free: "/", methods: "/", paths: "/public/x"} {
			c := r.call(t, "builder")
			if a := c.ask(t, get(r.url(host, path), name+": sent")); a.status != 200 {
				t.Fatalf("%s to %s: answered %s", name, host, a.phrase)
			}
			raw := strings.ToLower(r.received(t).raw)
			r.carried(t)
			want := strings.Contains(hosts, host)
			if got := strings.Contains(raw, "\r\n"+strings.ToLower(name)+": sent\r\n"); got != want || !got && strings.Contains(raw, ": sent") {
				t.Errorf("%s to %s: the origin got %q, want it there: %t", name, host, raw, want)
			}
			_ = c.Close()
		}
	}
}

// TestForwardedFieldsArePassedWithPassForwarded checks that PassForwarded passes these
// fields only if the rule restricts neither the method nor the path, and never in a
// spelling that no proxy writes.
func TestForwardedFieldsArePassedWithPassForwarded(t *testing.T) {
	r := &plainRig{gateway: newGateway(t, options{forward: forward.Config{PassForwarded: true}}), got: make(chan request, 1)}
	r.origin.serve(t, func(req request) string { r.got <- req; return ok })
	for host, want := range map[string]string{
		"allowed.example": "x-forwarded-for: 10.0.0.1\r\n", "read-only.example": "", "public-path.example": "",
	} {
		c := r.call(t, "builder")
		c.send(t, get(r.url(host, "/public/x"), "X-Forwarded-For: 10.0.0.1", "X_Forwarded_For: 10.0.0.2", "X-Forwarded_Host: 10.0.0.3"))
		if raw := strings.ToLower(r.received(t).raw); !strings.Contains(raw, want) || strings.Count(raw, "10.0.0.") != len(want)/len("x-forwarded-for: 10.0.0.1\r\n") {
			t.Errorf("%s: the origin got %q, want %q of the three", host, raw, want)
		}
		if a := c.answer(t); a.status != 200 {
			t.Errorf("%s: answered %s", host, a.phrase)
		}
		r.carried(t)
		_ = c.Close()
	}
}

// TestRoutingFieldsAreNotSentAsTrailers checks that fields which route a request are never
// sent on as trailers.
func TestRoutingFieldsAreNotSentAsTrailers(t *testing.T) {
	r := newPlainRig(t, ok)
	c := r.call(t, "builder")
	names := []string{"X_Forwarded_For", "X-Original-URL", "X_HTTP_Method_Override", "Destination", "Proxy", "Content_Length", "Set_Cookie", "X_Exeat_Trace", "X_Named", "X-Sum"}
	a := c.ask(t, plainTo("POST", r.url("allowed.example", "/"), "Connection: X-Named", "Transfer-Encoding: chunked", "Trailer: "+strings.Join(names, ", "))+
		"0\r\n"+strings.Join(names, ": sent\r\n")+": sent\r\n\r\n")
	if a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	if raw := r.received(t).raw; !strings.HasSuffix(raw, "0\r\nX-Sum: sent\r\n\r\n") || !strings.Contains(raw, "\r\nTrailer: X-Sum\r\n") {
		t.Errorf("the origin got %q", raw)
	}
	r.carried(t)
}

// TestPathThatServersReadOtherwiseIsRefused checks that a path which some servers read
// otherwise than the rule is refused with a cause that does not quote it.
func TestPathThatServersReadOtherwiseIsRefused(t *testing.T) {
	r := newPlainRig(t, ok)
	for path, cause := range map[string]string{
		"/public/%c0%ae%c0%ae%c0%afsecret": "malformed target: the path has an escape that is not valid UTF-8",
		"/public/..%3fsecret":              "malformed target: the path has an escape of a dot, a slash, a delimiter, a control, or of a character that is read as one",
		"/public/../secret":                "malformed target: the path has an empty segment or a dot segment",
	} {
		c := r.call(t, "builder")
		a := c.ask(t, get(r.url("public-path.example", path)))
		if a.status != 400 || a.reason() != "malformed-target" || !strings.Contains(a.phrase, cause) {
			t.Errorf("%s: answered %s", path, a.phrase)
		}
		if d := r.next(t, audit.EventDecision); d.Detail != cause || d.Host != "public-path.example" {
			t.Errorf("%s: record %+v", path, d)
		}
		c.gone(t)
		if a := r.call(t, "builder").ask(t, get(r.url("allowed.example", path))); a.status != 200 {
			t.Errorf("%s where no rule has paths: answered %s", path, a.phrase)
		}
		if got := r.received(t); !strings.HasPrefix(got.raw, "GET "+path+" HTTP/1.1\r\n") {
			t.Errorf("the origin got %q", got.raw)
		}
		r.carried(t)
	}
}
