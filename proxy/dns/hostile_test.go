package dns_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// packet returns a well-formed query for allowed.example, with its bytes changed.
func packet(change func(b []byte) []byte) []byte {
	m := question("plain allowed.example")
	m.Id = 7
	return change(must(m.Pack()))
}

// withOPT returns a well-formed query with an OPT appended.
func withOPT(opt ...byte) []byte {
	return packet(func(b []byte) []byte {
		b[11] = 1
		return append(b, opt...)
	})
}

func set(at int, value byte) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] = value
		return b
	}
}

// badPackets returns packets and the response code of the answer to each; "" means no
// answer.
func badPackets() map[string]struct {
	msg  []byte
	want string
} {
	type row = struct {
		msg  []byte
		want string
	}
	named := func(wire string) []byte {
		return append(append([]byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, wire...), 0, 1, 0, 1)
	}
	return map[string]row{
		"nothing":                              {[]byte{}, ""},
		"eleven bytes":                         {make([]byte, 11), ""},
		"a response":                           {packet(set(2, 0x81)), ""},
		"a header alone":                       {packet(func(b []byte) []byte { return b[:12] }), "FORMERR"},
		"no question":                          {packet(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FORMERR"},
		"two questions":                        {packet(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), "FORMERR"},
		"an answer record":                     {packet(set(7, 1)), "FORMERR"},
		"an authority record":                  {packet(set(9, 1)), "FORMERR"},
		"two additional records":               {packet(set(11, 2)), "FORMERR"},
		"an additional record that is cut":     {withOPT(0, 0, 41), "FORMERR"},
		"an additional record of another type": {withOPT(0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4), "FORMERR"},
		"an OPT that the root does not own":    {withOPT(0xc0, 12, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0), "FORMERR"},
		"an OPT with half an option":           {withOPT(0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 3, 0, 10, 0), "FORMERR"},
		"an OPT with an option too long":       {withOPT(0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 4, 0, 10, 0, 9), "FORMERR"},
		"an OPT too long":                      {withOPT(0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 9), "FORMERR"},
		"a byte behind the message":            {packet(func(b []byte) []byte { return append(b, 0) }), "FORMERR"},
		"a byte behind the OPT":                {withOPT(0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0, 7), "FORMERR"},
		"EDNS version 1":                       {withOPT(0, 0, 41, 4, 0, 0, 1, 0, 0, 0, 0), "BADVERS"},
		"the operation UPDATE":                 {packet(set(2, 5<<3)), "NOTIMP"},
		"the operation NOTIFY":                 {packet(set(2, 4<<3)), "NOTIMP"},
		"class CHAOS":                          {packet(func(b []byte) []byte { b[len(b)-1] = 3; return b }), "NOTIMP"},
		"class ANY":                            {packet(func(b []byte) []byte { b[len(b)-1] = 255; return b }), "NOTIMP"},
		"a pointer to itself":                  {named("\xc0\x0c"), "FORMERR"},
		"a pointer forward":                    {named("\x01a\xc0\x10"), "FORMERR"},
		"a label of 64":                        {named("\x40" + strings.Repeat("a", 64) + "\x00"), "FORMERR"},
		"a name of 256":                        {named(strings.Repeat("\x01a", 127) + "\x01\x00" + "\x00"), "FORMERR"},
		"a name without an end":                {named("\x07allowed"), "FORMERR"},
		"a name that ends with the packet":     {packet(func(b []byte) []byte { return b[:len(b)-4] }), "FORMERR"},
		"half a type":                          {packet(func(b []byte) []byte { return b[:len(b)-3] }), "FORMERR"},
		"64 kB of rubbish":                     {bytes.Repeat([]byte{0x00, 0x07, 0x01}, 1300), "FORMERR"},
	}
}

// TestAnswerLongerThanItsLengthFieldIsNotSplit checks that an answer which is longer than
// its length field can say does not make the client read the rest as answers to other
// queries.
func TestAnswerLongerThanItsLengthFieldIsNotSplit(t *testing.T) {
	for _, wire := range wires() {
		g := newGateway(t, options{})
		c := g.dial(t, wire, "sidecar")
		if got := say(ask(t, c, "TXT huge.example")); got != "SERVFAIL, ede 23 resolve-failed" {
			t.Errorf("%s: %.100s", wire, got)
		}
		if got := say(ask(t, c, "allowed.example")); got != "NOERROR, A 93.184.216.34" {
			t.Errorf("%s: behind it %.100s", wire, got)
		}
	}
}

// TestAnswerHasAtMost64Addresses checks that the first 64 addresses are sent, which bounds
// the cost, and that the record says that there were more.
func TestAnswerHasAtMost64Addresses(t *testing.T) {
	g := newGateway(t, options{})
	for _, wire := range []string{"tcp", "dot", "doh"} {
		c := g.dial(t, wire, "sidecar")
		a := ask(t, c, "many.example")
		if len(a.Answer) != 64 || !strings.HasSuffix(say(a), ", A 93.184.0.63") {
			t.Errorf("%s: %d records: %s", wire, len(a.Answer), say(a))
		}
		if r := g.next(t); *r.Answers != 64 || r.Filtered != 3900-64 {
			t.Errorf("%s: %d answers and %d without", wire, *r.Answers, r.Filtered)
		}
	}
}

// TestPartOfALongQueryIsNotAQuery checks that the part of a long query that is read is not
// taken for a complete query.
func TestPartOfALongQueryIsNotAQuery(t *testing.T) {
	padded := func(n int) []byte { // n bytes in total
		n -= 33 + 11 + 4
		opt := []byte{0, 0, 41, 4, 0, 0, 0, 0, 0, byte((n + 4) >> 8), byte(n + 4), 0, 12, byte(n >> 8), byte(n)}
		return append(withOPT(opt...), make([]byte, n)...)
	}
	g := newGateway(t, options{})
	for _, wire := range []string{"udp", "tcp", "dot"} {
		c := g.dial(t, wire, "sidecar")
		for _, row := range []struct {
			msg  []byte
			want string
		}{{padded(4096), "NOERROR"}, {padded(4097), "FORMERR"}, {append(padded(4096), make([]byte, 4096)...), "FORMERR"}} {
			if _, err := c.ask(row.msg); err != nil {
				t.Fatalf("%s: %v", wire, err)
			}
			if r := g.next(t); r.RCode != row.want {
				t.Errorf("%s: %d bytes: %+v", wire, len(row.msg), r)
			}
		}
		if got := say(ask(t, c, "allowed.example")); got != "NOERROR, A 93.184.216.34" {
			t.Errorf("%s: behind it %s", wire, got)
		}
		g.next(t)
	}
}

func TestBadPackets(t *testing.T) {
	g := newGateway(t, options{limits: dns.Limits{Streams: 1000}})
	for _, wire := range wires() {
		for why, row := range badPackets() {
			if wire != "udp" && (len(row.msg) < 12 || row.want == "" && wire != "doh") {
				continue // see TestStreamThatBreaksTheRulesEnds
			}
			c := g.dial(t, wire, "sidecar")
			if udp, ok := c.(udpClient); ok && row.want == "" {
				silent(t, udp, why, row.msg)
				g.next(t) // record of the query that silent sends after it
				continue
			}
			raw, err := c.ask(row.msg)
			if row.want == "" {
				if !errors.Is(err, errSilence) {
					t.Errorf("%s, %s: %v", wire, why, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s, %s: %v", wire, why, err)
			}
			a := new(mdns.Msg)
			if err := a.Unpack(raw); err != nil || a.Id != 7 || !a.Response || mdns.RcodeToString[a.Rcode] != strings.ReplaceAll(row.want, "BADVERS", "BADSIG") {
				t.Errorf("%s, %s: %v %v, want %s", wire, why, a, err, row.want)
			}
			if r := g.next(t); r.RCode != row.want || r.Verdict != "deny" {
				t.Errorf("%s, %s: record %+v", wire, why, r)
			}
		}
	}
	g.none(t)
	if got := g.Stats().DNS; got.Ignored != 2+1+1 || got.Panics != 0 {
		t.Errorf("%+v", got)
	}
	if n := g.upstream.packets.Load(); n != 0 {
		t.Errorf("%d packets left", n)
	}
}

// silent sends a packet that gets no answer, and after it a query that gets one.
func silent(t *testing.T, c udpClient, why string, msg []byte) {
	t.Helper()
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	q := question("denied.example")
	q.Id = 8
	raw, err := c.ask(must(q.Pack()))
	if err != nil || binary.BigEndian.Uint16(raw) != 8 {
		t.Errorf("%s: % x, %v", why, raw, err)
	}
}

// TestMessageBeyondTheBoundIsMalformed checks that a message which is longer than what is
// read is malformed.
func TestMessageBeyondTheBoundIsMalformed(t *testing.T) {
	g := newGateway(t, options{})
	long := append([]byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, make([]byte, 65535-12)...)
	for _, wire := range []string{"udp", "tcp", "dot"} {
		msg := long
		if wire == "udp" {
			msg = long[:60000]
		}
		c := g.dial(t, wire, "sidecar")
		for range 2 {
			raw, err := c.ask(msg)
			if err != nil || raw[3]&0xf != mdns.RcodeFormatError {
				t.Errorf("%s: % x, %v", wire, raw, err)
			}
		}
		if got := say(ask(t, c, "allowed.example")); got != "NOERROR, A 93.184.216.34" {
			t.Errorf("%s: behind it %s", wire, got)
		}
	}
	resp, err := g.dialDoH(t, "sidecar").Post("https://"+g.doh.String()+"/dns-query", "application/dns-message", bytes.NewReader(long))
	if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("doh: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}

func TestStreamThatBreaksTheRulesEnds(t *testing.T) {
	g := newGateway(t, options{})
	good := framed(must(question("allowed.example").Pack()))
	for why, bytes := range map[string][]byte{
		"length 0":           {0, 0},
		"a length too short": append([]byte{0, 11}, make([]byte, 11)...),
		"a response":         framed(packet(set(2, 0x81))),
	} {
		for _, wire := range []string{"tcp", "dot"} {
			c := g.dial(t, wire, "sidecar").(*streamClient)
			if _, err := c.Write(append(append([]byte{}, bytes...), good...)); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(c); len(rest) != 0 {
				t.Errorf("%s over %s: % x, %v", why, wire, rest, err)
			}
		}
	}
	if n := g.upstream.packets.Load(); n != 0 {
		t.Errorf("%d packets left", n)
	}
}

// TestQueryMayComeByteByByte checks that a query may come in any number of segments.
func TestQueryMayComeByteByByte(t *testing.T) {
	g := newGateway(t, options{})
	for _, wire := range []string{"tcp", "dot"} {
		c := g.dial(t, wire, "sidecar").(*streamClient)
		for _, b := range framed(must(question("allowed.example").Pack())) {
			if _, err := c.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		if raw, err := readMessage(c); err != nil || raw[3]&0xf != 0 {
			t.Errorf("%s: % x, %v", wire, raw, err)
		}
	}
}

// TestManyQueriesOnOneStream checks that answers come in any order, each once, and that
// a waiting query does not delay others.
func TestManyQueriesOnOneStream(t *testing.T) {
	held, release := make(chan struct{}, 1), make(chan struct{})
	g := newGateway(t, options{lookup: func(resolver lookup) lookup {
		return func(ctx context.Context, a resolve.Asker, q resolve.Question) (resolve.Answer, error) {
			if q.Name.String() == "x.one.example" {
				held <- struct{}{}
				<-release
			}
			return resolver(ctx, a, q)
		}
	}})
	c := g.dial(t, "dot", "sidecar").(*streamClient)
	first := question("x.one.example")
	first.Id = 9999
	if _, err := c.Write(framed(must(first.Pack()))); err != nil {
		t.Fatal(err)
	}
	<-held
	const many = 300
	go func() {
		for i := range many {
			q := question([]string{"allowed.example", "denied.example", "alias.example"}[i%3])
			q.Id = uint16(i)
			_, _ = c.Write(framed(must(q.Pack())))
		}
	}()
	seen := map[uint16]bool{}
	for range many {
		raw, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		seen[binary.BigEndian.Uint16(raw)] = true
	}
	if len(seen) != many || seen[9999] {
		t.Errorf("%d answers, of the one that waits: %t", len(seen), seen[9999])
	}
	close(release)
	if raw, err := readMessage(c); err != nil || binary.BigEndian.Uint16(raw) != 9999 {
		t.Errorf("the one that waited: % x, %v", raw, err)
	}
}

func TestLongAnswersAreTruncatedInDatagramsOnly(t *testing.T) {
	g := newGateway(t, options{})
	for _, row := range []struct{ wire, question, want string }{
		{"udp", "TXT large.example", "NOERROR, truncated"},
		{"udp", "plain TXT large.example", "NOERROR, truncated"},
		{"tcp", "TXT large.example", "40 records"},
		{"dot", "plain TXT large.example", "40 records"},
		{"doh", "TXT large.example", "40 records"},
	} {
		a := ask(t, g.dial(t, row.wire, "sidecar"), row.question)
		got := say(a)
		if len(a.Answer) > 0 {
			got = fmt.Sprintf("%d records", len(a.Answer))
		}
		if got != row.want {
			t.Errorf("%s: %s, want %s", row.wire, got, row.want)
		}
	}
}

func TestDoHRequests(t *testing.T) {
	g := newGateway(t, options{})
	c := g.dialDoH(t, "sidecar")
	msg := must(question("allowed.example").Pack())
	text := base64.RawURLEncoding.EncodeToString(msg)
	base := "https://" + g.doh.String()
	for _, row := range []struct {
		method, path, contentType string
		body                      []byte
		want                      int
	}{
		{"GET", "/dns-query?dns=" + text, "", nil, 200},
		{"GET", "/dns-query?dns=" + text + "&x=y", "", nil, 200},
		{"POST", "/dns-query", "application/dns-message", msg, 200},
		{"GET", "/dns-query", "", nil, 400},
		{"GET", "/dns-query?dns=" + text + "==", "", nil, 400},
		{"GET", "/dns-query?dns=" + strings.Repeat("A", 6000), "", nil, 413},
		{"GET", "/?dns=" + text, "", nil, 404},
		{"GET", "/dns-query/x?dns=" + text, "", nil, 404},
		{"POST", "/dns-query", "text/plain", msg, 415},
		{"POST", "/dns-query", "application/dns-message", nil, 400},
		{"PUT", "/dns-query", "application/dns-message", msg, 405},
	} {
		req := must(http.NewRequestWithContext(t.Context(), row.method, base+row.path, bytes.NewReader(row.body)))
		if row.contentType != "" {
			req.Header.Set("Content-Type", row.contentType)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != row.want || resp.ProtoMajor != 2 {
			t.Errorf("%s %s: %s over %s, want %d", row.method, row.path, resp.Status, resp.Proto, row.want)
		}
		if row.want == 200 && (resp.Header.Get("Content-Type") != "application/dns-message" || !strings.HasPrefix(resp.Header.Get("Cache-Control"), "private, max-age=")) {
			t.Errorf("%s: fields %v", row.path, resp.Header)
		}
	}
	if got := g.Stats().DNS.Ignored; got != 8 {
		t.Errorf("%d requests are counted as no queries, want all that were refused", got)
	}
}

// TestDoHOverHTTP1 checks a client that does not offer HTTP/2.
func TestDoHOverHTTP1(t *testing.T) {
	g := newGateway(t, options{})
	c := g.dialDoH(t, "sidecar")
	transport := c.Transport.(*http.Transport)
	transport.ForceAttemptHTTP2 = false
	transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	for range 3 {
		if got := say(ask(t, c, "allowed.example")); got != "NOERROR, A 93.184.216.34" {
			t.Error(got)
		}
	}
}

func TestUDPListenerNeedsASingleAddress(t *testing.T) {
	g := newGateway(t, options{})
	for _, address := range []string{"0.0.0.0:0", "[::]:0", g.dns.String()} {
		u, err := listen.OpenUDP(t.Context(), listen.UDPConfig{
			Name: "extra", Address: netip.MustParseAddrPort(address), Fixed: func() spiffeid.ID { return id("sidecar") },
		})
		if err == nil {
			t.Errorf("%s: no error", address)
			_ = u.Close()
		}
	}
}

// TestClientHelloOnAListenerWithoutTLS checks a client that speaks DNS over TLS on a
// listener without TLS. A query that only begins like a ClientHello is read completely.
func TestClientHelloOnAListenerWithoutTLS(t *testing.T) {
	g := newGateway(t, options{})
	conn := tls.Client(dialTCP(t, g.dns), &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "localhost"})
	if err := conn.HandshakeContext(t.Context()); err == nil {
		t.Error("the handshake succeeds")
	}
	r := g.next(t)
	if r.Event != "handshake" || r.Listener != "dns" || r.Reason != "tls-handshake-failed" || r.Detail != "a TLS ClientHello came on a listener without TLS" {
		t.Errorf("record %+v", r)
	}
	for name, begin := range map[string][]byte{
		"another version": {0x16, 0x03, 0x05, 0, 5, 1, 0},
		"another message": {0x16, 0x03, 0x01, 0, 5, 2, 0},
		"over TLS":        {0x16, 0x03, 0x01, 0, 5, 1, 0},
	} {
		wire := "tcp"
		if name == "over TLS" {
			wire = "dot"
		}
		c := g.dial(t, wire, "sidecar").(*streamClient)
		if _, err := c.Write(append(begin, make([]byte, 0x1603)...)); err != nil { // 0x1603 is the length of this query
			t.Fatal(err)
		}
		if r := g.next(t); r.Event != "decision" {
			t.Errorf("%s: record %+v, want a decision about a query", name, r)
		}
	}
}
