package proxy_test

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

const helloInClear = "a TLS ClientHello came on a listener without TLS"

// TestClientHelloOnAListenerWithoutTLS checks the answer to a caller that speaks TLS,
// because its proxy URL begins with https://, on a listener without TLS.
func TestClientHelloOnAListenerWithoutTLS(t *testing.T) {
	g := newGateway(t, options{})
	raw := g.connect(t, g.plain)
	err := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "localhost"}).HandshakeContext(t.Context())
	if header, ok := errors.AsType[tls.RecordHeaderError](err); !ok || string(header.RecordHeader[:]) != "HTTP/" {
		t.Errorf("the client sees %v, want an answer that is HTTP", err)
	}
	r := g.next(t, audit.EventDecision)
	if r.Reason != allowlist.MalformedRequestLine.String() || r.Detail != helloInClear || r.Status != 400 || r.Verdict != "deny" {
		t.Errorf("record %+v", r)
	}
}

// TestClientHelloIsRecognized checks for which bytes the record of a refusal says that a
// ClientHello came to a listener without TLS.
func TestClientHelloIsRecognized(t *testing.T) {
	g := newGateway(t, options{})
	certificate := g.ca.issue(t, id("builder").String())
	for _, row := range []struct {
		raw      string
		listener netip.AddrPort
		want     string // beginning of the detail
	}{
		{"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", g.plain, helloInClear},
		{"\x16\x03\x04\x00\x05\x01\x00\x00\x01\x00", g.plain, helloInClear},
		{"\x16", g.plain, helloInClear}, // the rest may come later, which must not change the detail
		{"\x16\x02\x01\r\n\r\n", g.plain, ""},
		{"\x15\x03\x01\x00\x02\x01\x00", g.plain, ""},
		{"\x80\x16\x03\x01", g.plain, ""},
		{" CONNECT a.example:443 HTTP/1.1\r\n\r\n", g.plain, ""},
		{"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", g.secure, ""}, // inside TLS
	} {
		var c *caller
		if row.listener == g.plain {
			c = g.callPlain(t)
		} else {
			c = g.callWith(t, certificate)
		}
		if _, err := c.Write([]byte(row.raw)); err != nil {
			t.Fatal(err)
		}
		a := c.answer(t)
		r := g.next(t, audit.EventDecision)
		if a.status != 400 || r.Reason != allowlist.MalformedRequestLine.String() || !strings.HasPrefix(r.Detail, row.want) || row.want == "" && !strings.HasPrefix(r.Detail, "line 1: byte 0x") {
			t.Errorf("%q: answered %d, record %+v, want the detail %q", row.raw, a.status, r, row.want)
		}
		if told := strings.Contains(a.phrase, helloInClear); told != (row.want != "") {
			t.Errorf("%q: the caller is told %q", row.raw, a.phrase)
		}
	}
}
