package front_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/head"
)

// read holds the parts of a front.Request that these tests compare.
type read struct {
	Method, Target   string
	Plain, HeadIsNil bool
	Dest             string // "" means the zero destination
	AskedMethod      string
	Path             string
	Upgrade          allowlist.Upgrade
	Protocols        string
	Body             int64
	StopsHere        bool
	Reason           allowlist.Reason
	Detail, Cause    string
}

func seen(r *front.Request) read {
	got := read{
		Method: r.Method, Target: r.Target, Plain: r.IsPlain(), HeadIsNil: r.Head == nil,
		AskedMethod: r.Asked.Method, Path: r.Asked.Path, Upgrade: r.Asked.Upgrade, Protocols: r.Protocols,
		Body: r.Body, StopsHere: r.StopsHere, Reason: r.Reason, Detail: r.Detail, Cause: r.Cause,
	}
	if !r.Asked.Dest.Host.IsZero() {
		got.Dest = r.Asked.Dest.String()
	}
	return got
}

// TestRequestThatAHandlerGets sends each request on a connection of its own, and checks what
// the handler gets.
func TestRequestThatAHandlerGets(t *testing.T) {
	asked := make(chan read, 1)
	s := serve(t, front.Config{HeadLimit: 2048}, handler(func(r *front.Request) front.Answer {
		asked <- seen(r)
		switch {
		case r.Client == nil, r.IsPlain() && r.Reason == allowlist.NoReason && (r.Reader == nil || r.URL.Dest != r.Asked.Dest):
			t.Errorf("%s %s: a part of the request is missing", r.Method, r.Target)
		case !r.Asked.ID.IsZero(), !r.Asked.Time.IsZero(), r.Asked.Proof != allowlist.NoProof:
			t.Error("the front has set the caller or the time")
		}
		return refusing(allowlist.Draining)(r)
	}), nil)
	const host = "Host: a.example\r\n"
	get := func(target, fields string) string {
		return "GET " + target + " HTTP/1.1\r\n" + host + fields + "\r\n"
	}
	tunnel := func(r read) read {
		r.Method = "CONNECT"
		return r
	}
	plainly := func(r read) read {
		if r.Method == "" {
			r.Method = "GET"
		}
		if r.Target == "" {
			r.Target = "http://a.example/"
		}
		r.Plain, r.Dest, r.AskedMethod = true, "a.example:80", r.Method
		if r.Path == "" {
			r.Path = "/"
		}
		return r
	}
	headless := func(r read) read {
		r.HeadIsNil = true
		return r
	}
	const upgrading = "Connection: upgrade\r\nUpgrade: "
	for _, row := range []struct {
		name, raw string
		want      read
	}{
		{"CONNECT to a name", "CONNECT A.example.:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", tunnel(read{Target: "A.example.:443", Dest: "a.example:443"})},
		{"CONNECT to an address", "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n", tunnel(read{Target: "[2001:db8::1]:443", Dest: "[2001:db8::1]:443"})},
		{"CONNECT in HTTP/1.0", "CONNECT a.example:443 HTTP/1.0\r\n\r\n", tunnel(read{Target: "a.example:443", Dest: "a.example:443"})},
		{"CONNECT with a length", "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\n", tunnel(read{Target: "a.example:443", Dest: "a.example:443"})},
		{
			"CONNECT in another case", "connect a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
			read{Method: "connect", Target: "a.example:443", Reason: allowlist.ConnectOnly, Cause: "methods are case-sensitive: it is CONNECT"},
		},
		{
			"CONNECT without a port", "CONNECT a.example HTTP/1.1\r\nHost: a.example\r\n\r\n",
			tunnel(read{Target: "a.example", Reason: allowlist.MalformedTarget, Detail: "malformed target: want HOST:PORT"}),
		},
		{
			"CONNECT to a port that is none", "CONNECT a.example:0 HTTP/1.1\r\nHost: a.example\r\n\r\n",
			tunnel(read{Target: "a.example:0", Reason: allowlist.MalformedPort, Detail: "malformed port: want 1 to 65535 in decimal"}),
		},
		{
			"CONNECT with another Host", "CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n",
			tunnel(read{Target: "a.example:443", Dest: "a.example:443", Reason: allowlist.AuthorityMismatch, Cause: "Host has another host than the target"}),
		},
		{
			"CONNECT with a coding", "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n",
			tunnel(read{Target: "a.example:443", Dest: "a.example:443", Reason: allowlist.MalformedHeader, Cause: "Transfer-Encoding stands in a CONNECT, which has no body"}),
		},

		{"a plain request", get("http://a.example/", ""), plainly(read{})},
		{"a plain request with a query", get("http://a.example/a/../b?c", ""), plainly(read{Target: "http://a.example/a/../b?c", Path: "/a/../b"})},
		{"OPTIONS of the server itself", "OPTIONS http://a.example HTTP/1.1\r\n" + host + "\r\n", plainly(read{Method: "OPTIONS", Target: "http://a.example", Path: allowlist.Asterisk})},
		{"a plain request with a body", "POST http://a.example/ HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc", plainly(read{Method: "POST", Body: 3})},
		{"a plain request with chunks", "POST http://a.example/ HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", plainly(read{Method: "POST", Body: head.Chunked})},
		{
			"a plain request with two lengths", get("http://a.example/", "Content-Length: 1\r\nContent-Length: 1\r\n"),
			plainly(read{Reason: allowlist.MalformedHeader, Detail: "Content-Length stands there 2 times: the length of the body is in doubt"}),
		},
		{
			"a plain request to a path", get("/", ""),
			read{Method: "GET", Target: "/", Plain: true, Reason: allowlist.MalformedTarget, Detail: "malformed target: want http://HOST/"},
		},

		{"Max-Forwards of zero", "TRACE http://a.example/ HTTP/1.1\r\n" + host + "Max-Forwards: 0\r\n\r\n", plainly(read{Method: "TRACE", StopsHere: true})},
		{"Max-Forwards of one", "TRACE http://a.example/ HTTP/1.1\r\n" + host + "Max-Forwards: 1\r\n\r\n", plainly(read{Method: "TRACE"})},
		{"Max-Forwards of a GET is ignored", get("http://a.example/", "Max-Forwards: 0\r\n"), plainly(read{})},
		{
			"Max-Forwards without a number", "TRACE http://a.example/ HTTP/1.1\r\n" + host + "Max-Forwards: x\r\n\r\n",
			plainly(read{Method: "TRACE", Reason: allowlist.MalformedHeader, Detail: "it is no number: malformed Max-Forwards"}),
		},

		{"an upgrade without which the request has no meaning", get("http://a.example/", upgrading+"WebSocket\r\n"), plainly(read{Upgrade: allowlist.MustUpgrade, Protocols: "WebSocket"})},
		{"an upgrade that the origin may ignore", get("http://a.example/", upgrading+"irc/6.9\r\n"), plainly(read{Upgrade: allowlist.MayUpgrade, Protocols: "irc/6.9"})},
		{
			"a list of protocols, of which other versions of HTTP are left out", get("http://a.example/", upgrading+"h2c, a , HTTP/2.0,TLS/1.0,, b c, d/\r\nUpgrade: h2c-16,b/2\r\n"),
			plainly(read{Upgrade: allowlist.MayUpgrade, Protocols: "a, b/2"}),
		},
		{"only another version of HTTP", get("http://a.example/", upgrading+"h2c\r\n"), plainly(read{})},
		{"an upgrade that Connection does not name", get("http://a.example/", "Upgrade: websocket\r\n"), plainly(read{})},
		{"an upgrade in HTTP/1.0", "GET http://a.example/ HTTP/1.0\r\n" + upgrading + "websocket\r\n\r\n", plainly(read{})},
		{
			"an upgrade with a body", "POST http://a.example/ HTTP/1.1\r\n" + host + upgrading + "websocket\r\nContent-Length: 1\r\n\r\na",
			plainly(read{Method: "POST", Body: 1}),
		},
		{"a ws URL", get("ws://a.example/", ""), plainly(read{Target: "ws://a.example/", Upgrade: allowlist.MustUpgrade, Protocols: "websocket"})},
		{
			"a ws URL in HTTP/1.0", "GET ws://a.example/ HTTP/1.0\r\n\r\n",
			plainly(read{Target: "ws://a.example/", Reason: allowlist.MalformedTarget, Detail: "malformed target: a ws URL asks for an upgrade, which neither HTTP/1.0 nor a request with a body has"}),
		},

		{"no request line", "GET\r\n\r\n", headless(read{Reason: allowlist.MalformedRequestLine, Cause: "line 1: it ends behind the method: malformed request line"})},
		{"an older version", "GET / HTTP/0.9\r\n\r\n", headless(read{Method: "GET", Target: "/", Reason: allowlist.UnsupportedVersion, Cause: "line 1: HTTP/0.9: unsupported HTTP version"})},
		{"no field", get("http://a.example/", "x\r\n"), headless(read{Method: "GET", Target: "http://a.example/", Reason: allowlist.MalformedHeader, Detail: "line 3: no colon behind the name: malformed header"})},
		{"no Host", "GET http://a.example/ HTTP/1.1\r\n\r\n", headless(read{Method: "GET", Target: "http://a.example/", Reason: allowlist.MissingHost, Cause: "missing Host field"})},
		{"two Hosts", get("http://a.example/", host), headless(read{Method: "GET", Target: "http://a.example/", Reason: allowlist.DuplicateHost, Cause: "line 3: duplicate Host field"})},
		{
			"a head that is too large", get("http://a.example/", "X: "+strings.Repeat("a", 2048)+"\r\n"),
			headless(read{Method: "GET", Target: "http://a.example/", Reason: allowlist.HeadTooLarge, Detail: "more than 2048 bytes: head too large"}),
		},
		{
			"TLS where none is spoken", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
			headless(read{Reason: allowlist.MalformedRequestLine, Detail: "a TLS ClientHello came on a listener without TLS"}),
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := s.dial(t)
			a := c.ask(t, row.raw)
			if diff := cmp.Diff(row.want, <-asked); diff != "" {
				t.Errorf("the handler was asked (-want +got):\n%s", diff)
			}
			want := row.want.Reason
			if want == allowlist.NoReason {
				want = allowlist.Draining
			}
			if a.reason() != want.String() || a.StatusCode != want.Info().Status || !a.Close {
				t.Errorf("answered %s %v, want %s and the end", a.Status, a.Header, want)
			}
			c.gone(t)
		})
	}
}

// TestIncompleteHead checks that the handler gets a head that the client has not finished
// before it left, and no request if nothing came.
func TestIncompleteHead(t *testing.T) {
	asked := make(chan read, 1)
	var o outcome
	s := serve(t, front.Config{}, handler(func(r *front.Request) front.Answer {
		asked <- seen(r)
		a := refused(r.Reason)
		a.Done = o.done
		return a
	}), nil)
	c := s.dial(t)
	c.send(t, "CONNECT a.example:443 HTTP/1.1\r\nHost: a")
	_ = c.Close()
	want := read{Method: "CONNECT", Target: "a.example:443", HeadIsNil: true, Reason: allowlist.ClientGone, Cause: "reading a head, of which 39 bytes came: unexpected EOF"}
	if diff := cmp.Diff(want, <-asked); diff != "" {
		t.Errorf("the handler was asked (-want +got):\n%s", diff)
	}
	if e := s.end(t); e != (ending{}) {
		t.Errorf("ended as %+v", e)
	}
	o.check(t, "a refusal that has no answer", true)
	for _, text := range []string{"", "\r\n\r\n"} {
		c := s.dial(t)
		c.send(t, text)
		_ = c.Close()
		s.end(t)
	}
	if len(asked) > 0 {
		t.Errorf("asked without a request: %+v", <-asked)
	}
}

// TestRequestsOfOneConnection checks that pipelined requests are read in turn, and that
// the handler reads the body of each.
func TestRequestsOfOneConnection(t *testing.T) {
	asked := make(chan string, 10)
	s := serve(t, front.Config{}, handler(func(r *front.Request) front.Answer {
		body := make([]byte, r.Body)
		if _, err := readFull(r, body); err != nil {
			t.Error(err)
		}
		asked <- r.Method + " " + r.Asked.Path + " " + string(body)
		if _, err := r.Client.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n")); err != nil {
			t.Error(err)
		}
		return front.Answer{Kind: front.Forwarded, End: front.Keep}
	}), nil)
	c := s.dial(t)
	c.send(t, "PUT http://a.example/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /"+
		"GET http://a.example/2 HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET http://a.example/3 HTTP/1.1\r\n")
	for _, want := range []string{"PUT /1 GET /", "GET /2 "} {
		if got := <-asked; got != want {
			t.Errorf("asked %q, want %q", got, want)
		}
	}
	c.send(t, "Host: a\r\n\r\n")
	if got := <-asked; got != "GET /3 " {
		t.Errorf("asked %q", got)
	}
}
