package proxy_test

import (
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestRefusedHeadIsRecordedAsFarAsItWasRead checks that the record of a refused head has
// the method, the host and the port that came before the fault.
func TestRefusedHeadIsRecordedAsFarAsItWasRead(t *testing.T) {
	const (
		plain   = "GET http://Evil.example.:8080/secret?q HTTP/1.1\r\n"
		connect = "CONNECT Evil.example.:8443 HTTP/1.1\r\n"
		host    = "Host: x\r\n"
	)
	g := newGateway(t, options{})
	for name, row := range map[string]struct{ raw, reason, method, host, protocol, detail string }{
		"a malformed field":                     {plain + host + "A : b\r\n\r\n", "malformed-header", "GET", "evil.example", "http", "line 3: byte 0x20 at column 2 in the name: malformed header"},
		"a malformed field of a CONNECT":        {connect + host + "A : b\r\n\r\n", "malformed-header", "CONNECT", "evil.example", "connect", "line 3: byte 0x20 at column 2 in the name: malformed header"},
		"a folded line":                         {plain + host + "A: b\r\n c\r\n\r\n", "malformed-header", "GET", "evil.example", "http", "line 4: byte 0x20 at column 1 in the name: malformed header"},
		"no Host":                               {plain + "\r\n", "missing-host", "GET", "evil.example", "http", "missing Host field"},
		"no Host in a CONNECT":                  {connect + "\r\n", "missing-host", "CONNECT", "evil.example", "connect", "missing Host field"},
		"two Hosts":                             {connect + host + host + "\r\n", "duplicate-host", "CONNECT", "evil.example", "connect", "line 3: duplicate Host field"},
		"another Host":                          {connect + host + "\r\n", "authority-mismatch", "CONNECT", "evil.example", "connect", "Host has another host than the target"},
		"chunks in a CONNECT":                   {connect + "Host: evil.example\r\nTransfer-Encoding: chunked\r\n\r\n", "malformed-header", "CONNECT", "evil.example", "connect", "Transfer-Encoding stands in a CONNECT, which has no body"},
		"a body of two lengths":                 {strings.Replace(plain, "GET", "POST", 1) + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "malformed-header", "POST", "evil.example", "http", "Content-Length stands there 2 times: the length of the body is in doubt"},
		"chunks in HTTP/1.0":                    {strings.Replace(plain, "1.1", "1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n", "malformed-header", "GET", "evil.example", "http", "Transfer-Encoding stands in HTTP/1.0: the length of the body is in doubt"},
		"too many bytes":                        {plain + host + "A: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", "head-too-large", "GET", "evil.example", "http", "more than 65536 bytes: head too large"},
		"too many fields":                       {connect + host + strings.Repeat("A: b\r\n", 256) + "\r\n", "head-too-large", "CONNECT", "evil.example", "connect", "line 258: field 257, and no head may have more than 256: head too large"},
		"another version":                       {strings.Replace(plain, "1.1", "1.2", 1) + host + "\r\n", "unsupported-version", "GET", "evil.example", "http", "line 1: HTTP/1.2: unsupported HTTP version"},
		"another version of a CONNECT":          {strings.Replace(connect, "1.1", "2.0", 1) + host + "\r\n", "unsupported-version", "CONNECT", "evil.example", "connect", "line 1: HTTP/2.0: unsupported HTTP version"},
		"a space in the query":                  {"GET http://evil.example:8080/?a b HTTP/1.1\r\n" + host + "\r\n", "malformed-request-line", "GET", "evil.example", "http", "line 1: no HTTP version behind the target: malformed request line"},
		"a bare LF":                             {"GET http://evil.example:8080/ HTTP/1.1\n" + host + "\r\n", "malformed-request-line", "GET", "evil.example", "http", "line 1: no carriage return at its end: malformed request line"},
		"CONNECT in lower case":                 {strings.ToLower("CONNECT") + connect[7:] + host + "\r\n", "connect-only", "connect", "evil.example", "connect", "methods are case-sensitive: it is CONNECT"},
		"behind empty lines":                    {"\r\n\r\n" + plain + "\r\n", "missing-host", "GET", "evil.example", "http", "missing Host field"},
		"a target that is malformed, too":       {"GET http://evil.example:x/ HTTP/1.1\r\n\r\n", "missing-host", "GET", "evil.example", "http", "missing Host field"},
		"a control in the target":               {"GET http://evil.example:8080/\x01 HTTP/1.1\r\n" + host + "\r\n", "malformed-request-line", "GET", "", "http", "line 1: byte 0x01 at column 30 in the target: malformed request line"},
		"a target that does not fit":            {"GET http://evil.example:8080/" + strings.Repeat("a", 70<<10), "head-too-large", "GET", "", "http", "more than 65536 bytes: head too large"},
		"no method":                             {" / HTTP/1.1\r\n\r\n", "malformed-request-line", "", "", "connect", "line 1: byte 0x20 at column 1 in the method: malformed request line"},
		"a non-ASCII host":                      {"GET http://\xc3\xa9vil.example/ HTTP/1.1\r\n" + host + "\r\n", "malformed-target", "GET", "", "http", "malformed host: it has a non-ASCII byte (write an international name as its A-label)"},
		"a non-ASCII host of a CONNECT":         {"CONNECT \xef\xbd\x85vil.example:443 HTTP/1.1\r\n" + host + "\r\n", "malformed-target", "CONNECT", "", "connect", "malformed host: it has a non-ASCII byte (write an international name as its A-label)"},
		"a method that is longer than a record": {strings.Repeat("G", 100) + plain[3:] + "\r\n", "missing-host", strings.Repeat("G", 32) + "...", "evil.example", "http", "missing Host field"},
	} {
		t.Run(name, func(t *testing.T) {
			c := g.call(t, "builder")
			sent := make(chan struct{})
			go func() { // the gateway may answer before a long head has left
				defer close(sent)
				_, _ = c.Write([]byte(row.raw))
			}()
			a := c.answer(t)
			c.gone(t)
			<-sent
			d := g.next(t, audit.EventDecision)
			port := map[string]uint16{"": 0, "http": 8080, "connect": 8443}[row.protocol]
			if row.host == "" || strings.Contains(row.raw, ":x/") {
				port = 0
			}
			if a.reason() != row.reason || d.Reason != row.reason || d.Verdict != "deny" || d.Status != a.status {
				t.Errorf("answered %s, record %+v, want %s", a.phrase, d, row.reason)
			}
			if d.Method != row.method || d.Host != row.host || d.Port != port || d.Protocol != row.protocol || d.Detail != row.detail {
				t.Errorf("record %+v, want %+v", d, row)
			}
		})
	}
	if g.names.lookups.Load() != 0 || g.origin.accepted.Load() != 0 {
		t.Error("a lookup or a dial for a head that is refused")
	}
}

// TestIncompleteHeadIsRecordedAsFarAsItCame checks that an incomplete head is recorded as
// far as it came.
func TestIncompleteHeadIsRecordedAsFarAsItCame(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, "GET http://evil.example:8080/ HTTP/1.1\r\nHost: x")
	_ = c.Close()
	d := g.next(t, audit.EventDecision)
	if d.Reason != "client-gone" || d.Method != "GET" || d.Host != "evil.example" || d.Port != 8080 || d.Protocol != "http" {
		t.Errorf("record %+v", d)
	}
}
