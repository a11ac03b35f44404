package proxy_test

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// told holds the expected detail in the record of a refusal and the error type in its
// answer. ORIGIN stands for the address of the origin.
type told struct{ reason, kind, detail string }

// checkTold compares the record and the answer of a refusal with the expected ones.
func (g *gateway) checkTold(t *testing.T, r record, a answer, want told) {
	t.Helper()
	pattern := "^" + strings.ReplaceAll(want.detail, "ORIGIN", fmt.Sprintf(`127\.0\.0\.1:%d`, g.origin.port)) + "$"
	if r.Reason != want.reason || !regexp.MustCompile(pattern).MatchString(r.Detail) {
		t.Errorf("%s: detail %q, want %s: %s", r.Reason, r.Detail, want.reason, pattern)
	}
	if got := a.header.Get("Proxy-Status"); !strings.HasPrefix(got, "exeat; error="+want.kind+"; ") {
		t.Errorf("Proxy-Status %q, want the type %s", got, want.kind)
	}
	if text := fmt.Sprint(a); strings.Contains(text, "127.0.0.1") || strings.Contains(text, "10.0.0.1") {
		t.Errorf("the answer reveals an address: %s", text)
	}
}

// TestARecordSaysWhatIsWrongWithAHead checks that a record names the line, the byte or the
// limit, and what was found.
func TestARecordSaysWhatIsWrongWithAHead(t *testing.T) {
	g := newGateway(t, options{})
	const line = "CONNECT allowed.example:443 HTTP/1.1\r\n"
	plain := func(fields ...string) string { return get("http://allowed.example/", fields...) }
	for name, row := range map[string]struct {
		head string
		want told
	}{
		"300 fields":                      {plain(many("X: y", 300)...), told{"head-too-large", "http_request_error", "line 258: field 257, and no head may have more than 256: head too large"}},
		"300 names":                       {plain("Connection: " + strings.Join(many("x", 300), ",")), told{"head-too-large", "http_request_error", "line 3: 300 names of fields in Connection and Trailer, more than 256: head too large"}},
		"a head of 65 KiB":                {connectTo("allowed.example:443", "X: "+strings.Repeat("a", 65<<10)), told{"head-too-large", "http_request_error", "more than 65536 bytes: head too large"}},
		"a control character in a value":  {plain("X: a\x07b"), told{"malformed-header", "http_request_error", "line 3: byte 0x07 at column 5 in the value: malformed header"}},
		"a carriage return alone":         {plain("X: a\rb"), told{"malformed-header", "http_request_error", "line 3: byte 0x0d at column 5 in the value: malformed header"}},
		"a line feed alone":               {line + "Host: a\n\r\n", told{"malformed-header", "http_request_error", "line 2: no carriage return at its end: malformed header"}},
		"a space behind a name":           {plain("X : a"), told{"malformed-header", "http_request_error", "line 3: byte 0x20 at column 2 in the name: malformed header"}},
		"a line that is folded":           {plain("X: a", " b"), told{"malformed-header", "http_request_error", "line 4: byte 0x20 at column 1 in the name: malformed header"}},
		"a name without a colon":          {plain("X"), told{"malformed-header", "http_request_error", "line 3: no colon behind the name: malformed header"}},
		"no name":                         {plain(": a"), told{"malformed-header", "http_request_error", "line 3: no name: malformed header"}},
		"two lengths":                     {plain("Content-Length: 1", "Content-Length: 1"), told{"malformed-header", "http_request_error", "Content-Length stands there 2 times: the length of the body is in doubt"}},
		"a length beside a coding":        {plain("Content-Length: 1", "Transfer-Encoding: chunked"), told{"malformed-header", "http_request_error", "Content-Length stands beside Transfer-Encoding: the length of the body is in doubt"}},
		"another coding":                  {plain("Transfer-Encoding: gzip, chunked"), told{"malformed-header", "http_request_error", "Transfer-Encoding is not chunked alone: the length of the body is in doubt"}},
		"a length that is none":           {plain("Content-Length: +1"), told{"malformed-header", "http_request_error", "Content-Length is no number: the length of the body is in doubt"}},
		"a coding of a CONNECT":           {connectTo("allowed.example:443", "Transfer-Encoding: chunked"), told{"malformed-header", "http_request_error", "Transfer-Encoding stands in a CONNECT, which has no body"}},
		"two spaces":                      {"CONNECT  allowed.example:443 HTTP/1.1\r\n\r\n", told{"malformed-request-line", "http_request_error", "line 1: no target: malformed request line"}},
		"a control character in a target": {"CONNECT a\x01b:443 HTTP/1.1\r\n\r\n", told{"malformed-request-line", "http_request_error", "line 1: byte 0x01 at column 10 in the target: malformed request line"}},
		"a method that is no token":       {"(CONNECT) a:443 HTTP/1.1\r\n\r\n", told{"malformed-request-line", "http_request_error", "line 1: byte 0x28 at column 1 in the method: malformed request line"}},
		"no version":                      {"CONNECT a:443 http\r\n\r\n", told{"malformed-request-line", "http_request_error", "line 1: no HTTP version behind the target: malformed request line"}},
		"another version":                 {"CONNECT a:443 HTTP/3.0\r\n\r\n", told{"unsupported-version", "http_request_error", "line 1: HTTP/3.0: unsupported HTTP version"}},
		"two Hosts":                       {line + "Host: allowed.example\r\nHost: allowed.example\r\n\r\n", told{"duplicate-host", "http_request_error", "line 3: duplicate Host field"}},
		"a Host that is another":          {line + "Host: other.example\r\n\r\n", told{"authority-mismatch", "http_request_error", "Host has another host than the target"}},
		"a Host with another port":        {line + "Host: allowed.example:444\r\n\r\n", told{"authority-mismatch", "http_request_error", "Host has another port than the target"}},
		"a Host that is none":             {line + "Host: a b\r\n\r\n", told{"authority-mismatch", "http_request_error", "Host is malformed"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := g.call(t, "builder").askOnce(t, row.head)
			g.checkTold(t, g.next(t, audit.EventDecision), a, row.want)
		})
	}
}

// many returns a list in which a text is repeated.
func many(text string, n int) []string {
	return strings.Split(strings.Repeat(text+"\n", n-1)+text, "\n")
}

// TestARecordSaysWhyThereIsNoConnection checks that a record has an error for each address
// that was tried.
func TestARecordSaysWhyThereIsNoConnection(t *testing.T) {
	g := newGateway(t, options{dialTimeout: 400 * time.Millisecond})
	for target, want := range map[string]told{
		"refused.example:1":         {"dial-refused", "connection_refused", `127\.0\.0\.1:1: connection refused`},
		g.at("unreachable.example"): {"dial-failed", "destination_ip_unroutable", `255\.255\.255\.255:\d+: network is unreachable`},
		"late.example:443":          {"dial-timeout", "connection_timeout", `127\.0\.0\.1:443: no answer in time`},
		g.at("unknown.example"):     {"resolve-failed", "dns_error", "no such host"},
		g.at("empty.example"):       {"resolve-failed", "dns_error", "the name has no address"},
		g.at("slow.example"):        {"resolve-timeout", "dns_timeout", "context deadline exceeded"},
		g.at("panic.example"):       {"internal-error", "proxy_internal_error", "the gateway panicked: its log has the stack"},
		g.at("inner.example"): {
			"resolved-address-denied", "destination_ip_prohibited",
			`address 10\.0\.0\.1:\d+ is not allowed \(private\); address 169\.254\.169\.254:\d+ is not allowed \(metadata\)`,
		},
	} {
		t.Run(want.reason, func(t *testing.T) {
			a := g.call(t, "builder").askOnce(t, connectTo(target))
			r := g.next(t, audit.EventDecision)
			g.checkTold(t, r, a, want)
			if refused := strings.Join(r.Refused, " "); want.reason == "resolved-address-denied" && (refused != "10.0.0.1 169.254.169.254" || r.Dropped != 2) {
				t.Errorf("%d addresses refused: %s", r.Dropped, refused)
			}
		})
	}
	// The record of an allowed request has its refused addresses too.
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("mixed.example"))); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "allow" || r.Dropped != 1 || strings.Join(r.Refused, " ") != "10.0.0.1" {
		t.Errorf("record %+v", r)
	}
	_ = g.origin.next(t).Close()
	c.ended(t)
	g.next(t, audit.EventTunnelClose)
}

// TestARecordSaysWhyThereIsNoAnswer checks that a record says what the origin did and has
// its address, and quotes nothing that the origin has sent.
func TestARecordSaysWhyThereIsNoAnswer(t *testing.T) {
	r := newPlainRig(t, "")
	const reset = "reset"
	for name, row := range map[string]struct{ answer, kind, detail string }{
		"it closes":                   {"close:", "connection_terminated", "ORIGIN: closed the connection without an answer"},
		"it resets":                   {reset, "connection_terminated", "ORIGIN: connection reset by peer without an answer"},
		"half a head":                 {"close:HTTP/1.1 200 OK\r\nContent-", "http_response_incomplete", "ORIGIN: closed the connection after 25 bytes of the head of an answer"},
		"another protocol":            {"close:220 secret.example ESMTP\r\n", "http_protocol_error", "ORIGIN: what came is no answer of HTTP/1"},
		"a head without end":          {"close:HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 80<<10) + "\r\n\r\n", "http_response_header_section_size", "ORIGIN: the head of the answer is larger than 65536 bytes"},
		"300 fields":                  {"close:HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + strings.Repeat("X:\r\n", 299) + "\r\n", "http_response_header_section_size", "ORIGIN: the answer has 300 fields, more than 256"},
		"another version":             {"close:HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "http_protocol_error", "ORIGIN: the answer is of HTTP/2"},
		"chunks in HTTP/1.0":          {"close:HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "http_response_transfer_coding", "ORIGIN: Transfer-Encoding stands in an answer of HTTP/1.0"},
		"a space behind a name":       {"close:HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc", "http_protocol_error", "ORIGIN: (a space stands behind the name of the field Content-Length|what came is no answer of HTTP/1)"},
		"an upgrade not requested":    {"close:HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "http_upgrade_failed", "ORIGIN: the origin switched to a protocol that nobody had asked for"},
		"interim answers without end": {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 40), "http_protocol_error", "ORIGIN: more than 32 interim answers came before the final one"},
	} {
		t.Run(name, func(t *testing.T) {
			r.answer = func(req request) string {
				if row.answer == reset {
					_ = req.conn.(*net.TCPConn).SetLinger(0)
					return "close:"
				}
				return row.answer
			}
			c := r.call(t, "builder")
			c.send(t, get(r.url("allowed.example", "/")))
			a := c.answer(t)
			for a.status == 103 {
				a = c.answer(t)
			}
			decision, end := r.carried(t)
			r.checkTold(t, decision, a, told{"response-failed", row.kind, row.detail})
			if end.CloseReason != "error" || end.Detail != decision.Detail {
				t.Errorf("the end is %q of the exchange: %q", end.CloseReason, end.Detail)
			}
			r.received(t)
		})
	}
}

// TestAnExchangeSaysWhyItWasCut checks the close records of answers that were not sent
// completely.
func TestAnExchangeSaysWhyItWasCut(t *testing.T) {
	r := newPlainRig(t, "close:HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
	c := r.call(t, "builder")
	c.send(t, get(r.url("allowed.example", "/")))
	_, end := r.carried(t)
	if want := fmt.Sprintf("reading from 127.0.0.1:%d: unexpected EOF", r.origin.port); end.CloseReason != "error" || end.Detail != want {
		t.Errorf("the end is %s: %q, want %q", end.CloseReason, end.Detail, want)
	}
	_ = c.Close()
}

// TestATunnelSaysWhyItEnded checks the details of a connection that fails, of first bytes
// that do not come, and of a limit.
func TestATunnelSaysWhyItEnded(t *testing.T) {
	for name, row := range map[string]struct {
		o      options
		end    func(t *testing.T, client *caller, origin *net.TCPConn)
		reason string
		detail string
	}{
		"the origin resets": {options{}, func(t *testing.T, client *caller, origin *net.TCPConn) {
			t.Helper()
			client.send(t, "x")
			if _, err := origin.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			_ = origin.SetLinger(0)
			_ = origin.Close()
		}, "error", `reading from the upstream: (read|splice)[^:]*: connection reset by peer`},
		"too much is sent": {options{limits: limit.Config{Identity: allowlist.Limits{UploadPerHour: 4}}}, func(t *testing.T, client *caller, _ *net.TCPConn) {
			t.Helper()
			client.send(t, "more than that")
		}, "limit", "limits\\.upload_per_hour"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, row.o)
			client := g.call(t, "builder")
			if a := client.ask(t, connectTo(g.at("allowed.example"))); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			g.next(t, audit.EventDecision)
			row.end(t, client, g.origin.next(t))
			r := g.next(t, audit.EventTunnelClose)
			if r.CloseReason != row.reason || !regexp.MustCompile("^"+row.detail+"$").MatchString(r.Detail) {
				t.Errorf("ended by %s: %q, want %s: %s", r.CloseReason, r.Detail, row.reason, row.detail)
			}
		})
	}
}

// TestARecordSaysWhyFirstBytesAreRefused checks the details of refused first bytes, also if
// none came.
func TestARecordSaysWhyFirstBytesAreRefused(t *testing.T) {
	hi := clientHello("strict.example", false, 1<<14)
	for name, row := range map[string]struct{ sent, detail string }{
		"silence":          {"", "the client sent nothing within 300ms"},
		"another protocol": {"SSH-2.0-x\r\n", "not a ClientHello"},
		"half a hello":     {hi[:100], "the ClientHello is incomplete: 100 bytes came before the end of the client's way or within 300ms"},
		"another name":     {clientHello("other.example", false, 1<<14), ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{hello: 300 * time.Millisecond})
			g.checked(t)
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("strict.example"))); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			g.next(t, audit.EventDecision)
			c.send(t, row.sent)
			c.gone(t)
			refused, end := g.next(t, audit.EventDecision), g.next(t, audit.EventTunnelClose)
			if refused.Stage != "tls" || refused.Detail != row.detail || end.CloseReason != "denied" || end.Detail != row.detail {
				t.Errorf("records %+v and %+v, want %q", refused, end, row.detail)
			}
		})
	}
}

// TestARecordNamesTheLimit checks the limits of this door; other limits have tests of their
// own.
func TestARecordNamesTheLimit(t *testing.T) {
	for name, row := range map[string]struct {
		cfg    limit.Config
		policy func(*allowlist.Entry)
		open   bool // a tunnel is open
		status int
	}{
		"limits.requests_per_identity":      {limit.Config{Requests: 1}, nil, true, 429},
		"limits.connects_per_second":        {limit.Config{Identity: allowlist.Limits{ConnectsPerSecond: 1}}, nil, true, 429},
		"limits.tunnels":                    {limit.Config{Identity: allowlist.Limits{Tunnels: 1}}, nil, true, 429},
		"shared_limits.tunnels":             {limit.Config{}, func(e *allowlist.Entry) { e.SharedLimits.Tunnels = 1 }, true, 429},
		"shared_limits.connects_per_second": {limit.Config{}, func(e *allowlist.Entry) { e.SharedLimits.ConnectsPerSecond = 1 }, true, 429},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{limits: row.cfg})
			if row.policy != nil {
				spec := g.policy()
				row.policy(&spec.Entries[0])
				g.swap(t, spec)
			}
			if a := g.call(t, "builder").ask(t, connectTo(g.at("allowed.example"))); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			g.next(t, audit.EventDecision)
			a := g.call(t, "builder").askOnce(t, connectTo(g.at("allowed.example")))
			if r := g.next(t, audit.EventDecision); a.status != row.status || r.Detail != name || strings.Contains(fmt.Sprint(a), name) {
				t.Errorf("answered %s, record %+v", a.phrase, r)
			}
		})
	}
}

// TestARecordQuotesNoBody checks that a record says what is wrong with the chunks or the
// trailer of a request or an answer without quoting them.
func TestARecordQuotesNoBody(t *testing.T) {
	for name, body := range map[string]string{
		"a size":                           "secret\r\n",
		"more than a chunk":                "1\r\nsecret\r\n",
		"an extension":                     "1;secret=\x01\r\nsecret\r\n",
		"a field without a colon":          "1\r\na\r\n0\r\nX secret\r\n\r\n",
		"a control character in a field":   "1\r\na\r\n0\r\nX: secret\x01\r\n\r\n",
		"a field that begins with a space": "1\r\na\r\n0\r\n secret\r\n\r\n",
		"a long field":                     "1\r\na\r\n0\r\nX: " + strings.Repeat("secret", 20000) + "\r\n\r\n",
	} {
		const chunked = "Transfer-Encoding: chunked"
		check := func(t *testing.T, rest, answer string) {
			t.Helper()
			r := newPlainRig(t, answer)
			c := r.call(t, "builder")
			c.send(t, "POST "+r.url("allowed.example", "/")+" HTTP/1.1\r\nHost: "+r.at("allowed.example")+"\r\n"+rest)
			decision, end := r.carried(t)
			if text := decision.Detail + end.Detail; text == "" || strings.Contains(text, "secret") {
				t.Errorf("the end is %s: %q, after %q", end.CloseReason, end.Detail, decision.Detail)
			}
			_ = c.Close()
		}
		t.Run(name+" of an answer", func(t *testing.T) {
			check(t, "Content-Length: 0\r\n\r\n", "close:HTTP/1.1 200 OK\r\n"+chunked+"\r\n\r\n"+body)
		})
		t.Run(name+" of a request", func(t *testing.T) {
			check(t, chunked+"\r\n\r\n"+body, "")
		})
	}
}
