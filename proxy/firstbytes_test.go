package proxy_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// clientHello returns a ClientHello in records of at most size bytes. It has no SNI if name
// is "".
func clientHello(name string, ech bool, size int) string {
	var list []byte
	extension := func(kind uint16, data []byte) {
		list = binary.BigEndian.AppendUint16(list, kind)
		list = binary.BigEndian.AppendUint16(list, uint16(len(data)))
		list = append(list, data...)
	}
	extension(51, make([]byte, 1216)) // as large as a post-quantum key share
	if name != "" {
		data := binary.BigEndian.AppendUint16(nil, uint16(len(name)+3))
		data = binary.BigEndian.AppendUint16(append(data, 0), uint16(len(name)))
		extension(0, append(data, name...))
	}
	if ech {
		extension(0xfe0d, []byte{0, 0, 1, 0, 1})
	}
	body := append([]byte{3, 3}, make([]byte, 33)...)
	body = append(body, 0, 2, 0x13, 1, 1, 0)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(list))), list...)
	message := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	var b []byte
	for len(message) > 0 {
		n := min(size, len(message))
		b = binary.BigEndian.AppendUint16(append(b, 22, 3, 1), uint16(n))
		b, message = append(b, message[:n]...), message[n:]
	}
	return string(b)
}

// checked puts a policy in force with rules for all modes of checking first bytes.
func (g *gateway) checked(t *testing.T) {
	t.Helper()
	mode := func(host string, mode allowlist.TLSMode, ech allowlist.ECHMode) allowlist.Rule {
		return with(to(host, g.origin.port), func(r *allowlist.Rule) { r.TLS, r.ECH = mode, ech })
	}
	spec := g.policy()
	spec.Entries[0].Allow = []allowlist.Rule{
		mode("strict.example", allowlist.TLSRequire, allowlist.ECHRecord),
		mode("auto.example", allowlist.TLSDefault, allowlist.ECHRecord),
		mode("off.example", allowlist.TLSOff, allowlist.ECHRecord),
		mode("plain-sight.example", allowlist.TLSRequire, allowlist.ECHRefuse),
		to("elsewhere.example", 1),
		{
			CIDR: netip.MustParsePrefix("127.0.0.1/32"), TLS: allowlist.TLSRequire,
			Ports: []allowlist.PortRange{{First: g.origin.port, Last: g.origin.port}},
		},
	}
	g.swap(t, spec)
}

// alert is the alert access_denied.
const alert = "\x15\x03\x03\x00\x02\x02\x31"

// warning is the alert user_canceled, which is not fatal. Some servers, such as those of
// crypto/tls, ignore it before a ClientHello.
const warning = "\x15\x03\x01\x00\x02\x01\x5a"

// TestBytesNotTakenForTLSAreNotTLSForAnOrigin checks with a real server that first bytes
// which the gateway does not take for TLS are not TLS for an origin either.
func TestBytesNotTakenForTLSAreNotTLSForAnOrigin(t *testing.T) {
	g := newGateway(t, options{})
	g.checked(t)
	for _, row := range []struct{ name, before string }{
		{"an alert", warning},
		{"an alert byte by byte", strings.Join(strings.Split(warning, ""), "|")},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("auto.example"))); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			g.next(t, audit.EventDecision)
			origin := g.origin.next(t)
			asked := make(chan string, 1)
			server := tls.Server(origin, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				asked <- h.ServerName
				return nil, io.EOF
			}})
			var ended sync.WaitGroup
			ended.Go(func() { _ = server.HandshakeContext(t.Context()) })
			for part := range strings.SplitSeq(row.before, "|") {
				c.send(t, part)
			}
			_ = tls.Client(c, &tls.Config{ServerName: "evil.example"}).HandshakeContext(t.Context())
			_ = c.Close()
			ended.Wait()
			select {
			case name := <-asked:
				t.Fatalf("a server was asked for %s in a tunnel to auto.example", name)
			default:
			}
			if r := g.next(t, audit.EventDecision); r.Reason != allowlist.NotTLS.String() {
				t.Errorf("record %+v, want %s", r, allowlist.NotTLS)
			}
			g.next(t, audit.EventTunnelClose)
		})
	}
}

// TestFirstBytes checks what becomes of first bytes under each mode of checking, and what
// the records say.
func TestFirstBytes(t *testing.T) {
	g := newGateway(t, options{})
	g.checked(t)
	long := strings.Repeat("a", 64) + ".example"
	hello := func(name string) string { return clientHello(name, false, 1<<14) }
	for _, row := range []struct {
		name, host, sent string
		want             allowlist.Reason
		sni, tls         string // values in the records
		ech              bool
	}{
		{"a hello for the host", "strict.example", hello("strict.example"), 0, "strict.example", "match", false},
		{"in small records", "strict.example", clientHello("strict.example", false, 50), 0, "strict.example", "match", false},
		{"with another spelling of the host", "strict.example", hello("Strict.EXAMPLE."), 0, "Strict.EXAMPLE.", "match", false},
		{"for another host", "strict.example", hello("auto.example"), allowlist.SNIMismatch, "auto.example", "mismatch", false},
		{"for a host below", "strict.example", hello("a.strict.example"), allowlist.SNIMismatch, "a.strict.example", "mismatch", false},
		{"for an over-long label", "strict.example", hello(long), allowlist.SNIMismatch, long, "mismatch", false},
		{"for no name at all", "strict.example", hello("strict\x00.example"), allowlist.SNIMismatch, "strict\x00.example", "mismatch", false},
		{"for a name with terminal controls", "strict.example", hello("\u009b\u202e\x7f.example"), allowlist.SNIMismatch, "\u009b\u202e\x7f.example", "mismatch", false},
		{"without a name", "strict.example", hello(""), allowlist.SNIMissing, "", "absent", false},
		{"a request in clear", "strict.example", "GET / HTTP/1.1\r\nHost: strict.example\r\n\r\n", allowlist.NotTLS, "", "not-tls", false},
		{"something like TLS", "strict.example", "\x16\x03\x01\x00\x00", allowlist.NotTLS, "", "not-tls", false},
		{"a hello over the limit", "strict.example", clientHello(strings.Repeat("a", 15000), false, 1), allowlist.NotTLS, "", "not-tls", false},
		{"ECH, recorded", "strict.example", clientHello("strict.example", true, 1<<14), 0, "strict.example", "match", true},
		{"ECH, refused", "plain-sight.example", clientHello("plain-sight.example", true, 1<<14), allowlist.ECHRefused, "plain-sight.example", "match", true},
		{"no ECH, where it is refused", "plain-sight.example", hello("plain-sight.example"), 0, "plain-sight.example", "match", false},

		{"auto: a hello for the host", "auto.example", hello("auto.example"), 0, "auto.example", "match", false},
		{"auto: for another host", "auto.example", hello("strict.example"), allowlist.SNIMismatch, "strict.example", "mismatch", false},
		{"auto: without a name", "auto.example", hello(""), allowlist.SNIMissing, "", "absent", false},
		{"auto: something like TLS", "auto.example", "\x16SSH", allowlist.NotTLS, "", "not-tls", false},
		{"auto: another protocol", "auto.example", "SSH-2.0-client\r\n", 0, "", "not-tls", false},
		{"auto: an alert that a server ignores, and a hello for another host", "auto.example", warning + hello("evil.example"), allowlist.NotTLS, "", "not-tls", false},
		{"auto: a change of cipher, and a hello for another host", "auto.example", "\x14\x03\x03\x00\x01\x01" + hello("evil.example"), allowlist.NotTLS, "", "not-tls", false},
		{"auto: another protocol that begins like an alert", "auto.example", "\x15\x03\x00\x01of 789 bytes", 0, "", "not-tls", false},
		{"auto: another protocol that begins with the first byte of an alert", "auto.example", "\x15\x00", 0, "", "not-tls", false},

		{"off: a hello for another host", "off.example", hello("evil.example"), 0, "", "", false},
		{"off: another protocol", "off.example", "anything", 0, "", "", false},

		{"an address: without a name", "127.0.0.1", hello(""), 0, "", "absent", false},
		{"an address: for itself", "127.0.0.1", hello("127.0.0.1"), 0, "127.0.0.1", "match", false},
		{"an address: for another address", "127.0.0.1", hello("127.0.0.2"), allowlist.SNIMismatch, "127.0.0.2", "mismatch", false},
		{"an address: for a host that is allowed there", "127.0.0.1", hello("auto.example"), 0, "auto.example", "match", false},
		{"an address: for a host that is not allowed", "127.0.0.1", hello("evil.example"), allowlist.SNIMismatch, "evil.example", "mismatch", false},
		{"an address: for a host that is allowed on another port", "127.0.0.1", hello("elsewhere.example"), allowlist.SNIMismatch, "elsewhere.example", "mismatch", false},
		{"an address: in clear", "127.0.0.1", "GET /", allowlist.NotTLS, "", "not-tls", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, early := range []bool{true, false} {
				c := g.call(t, "builder")
				head := connectTo(g.at(row.host))
				if early {
					head += row.sent
				}
				if a := c.ask(t, head); a.status != 200 {
					t.Fatalf("answered %s", a.phrase)
				}
				if !early {
					c.send(t, row.sent[:1])
					c.send(t, row.sent[1:])
				}
				first := g.next(t, audit.EventDecision)
				if first.Verdict != "allow" || first.Status != 200 || first.Stage != "" {
					t.Errorf("record %+v", first)
				}
				origin := g.origin.next(t)
				g.checkFirstBytes(t, c, origin, row.sent, row.want)
				var last record
				if row.want != allowlist.NoReason {
					second := g.next(t, audit.EventDecision)
					if second.ID != first.ID || second.Stage != "tls" || second.Verdict != "deny" || second.Reason != row.want.String() || second.Status != 0 {
						t.Errorf("record %+v, want a second decision: %s", second, row.want)
					}
					checkHello(t, second, row.sni, row.tls, row.ech)
					last = g.next(t, audit.EventTunnelClose)
					if last.CloseReason != "denied" || last.Reason != row.want.String() || last.Up != 0 {
						t.Errorf("record %+v, want denied", last)
					}
				} else if last = g.next(t, audit.EventTunnelClose); last.Up != int64(len(row.sent)) || last.Reason != "" {
					t.Errorf("record %+v, want %d bytes", last, len(row.sent))
				}
				checkHello(t, last, row.sni, row.tls, row.ech)
			}
		})
	}
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("%d records too many, first %+v", len(left), left[0])
	}
}

// checkFirstBytes checks what both ends get, and ends the tunnel.
func (g *gateway) checkFirstBytes(t *testing.T, c *caller, origin *net.TCPConn, sent string, want allowlist.Reason) {
	t.Helper()
	if want == allowlist.NoReason {
		closeWrite(t, c.Conn)
		if got := readAll(t, origin); got != sent {
			t.Errorf("the origin got %d bytes, want %d", len(got), len(sent))
		}
		_ = origin.Close()
		c.ended(t)
		return
	}
	if got := readAll(t, c.reader); got != alert {
		t.Errorf("the caller got %q, want an alert", got)
	}
	_ = c.Close()
	if got := readAll(t, origin); got != "" {
		t.Errorf("the origin got %d bytes", len(got))
	}
	_ = origin.Close()
}

func checkHello(t *testing.T, r record, sni, tls string, ech bool) {
	t.Helper()
	if r.SNI != sni || r.TLS != tls || r.ECH != ech {
		t.Errorf("the %s says sni %q, tls %q, ech %t, want %q, %q, %t", r.Event, r.SNI, r.TLS, r.ECH, sni, tls, ech)
	}
}

// TestTheOriginMaySpeakFirst checks that tls: auto does not delay an origin that speaks
// first, and still checks the ClientHello.
func TestTheOriginMaySpeakFirst(t *testing.T) {
	g := newGateway(t, options{})
	g.checked(t)
	for _, row := range []struct {
		name, sent string
		refused    bool
	}{
		{"and the caller follows", "HELO client\r\n", false},
		{"and the caller turns to TLS for another host", clientHello("evil.example", false, 1<<14), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("auto.example"))); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			origin := g.origin.next(t)
			if _, err := io.WriteString(origin, "220 ready\r\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := c.reader.ReadString('\n'); line != "220 ready\r\n" || err != nil {
				t.Fatalf("read %q, %v", line, err)
			}
			c.send(t, row.sent)
			g.next(t, audit.EventDecision)
			if row.refused {
				g.checkFirstBytes(t, c, origin, row.sent, allowlist.SNIMismatch)
				g.next(t, audit.EventDecision)
			} else {
				g.checkFirstBytes(t, c, origin, row.sent, allowlist.NoReason)
			}
			g.next(t, audit.EventTunnelClose)
		})
	}
}

// TestMissingFirstBytesEndTheTunnel checks a caller that sends nothing, or half a
// ClientHello, until the time-out.
func TestMissingFirstBytesEndTheTunnel(t *testing.T) {
	g := newGateway(t, options{hello: 100 * time.Millisecond})
	g.checked(t)
	half := clientHello("auto.example", false, 1<<14)[:100]
	for _, row := range []struct {
		name, host, sent string
		want             allowlist.Reason
	}{
		{"a silent caller where TLS is required", "strict.example", "", allowlist.NotTLS},
		{"half a hello where TLS is required", "strict.example", half, allowlist.NotTLS},
		{"half a hello where TLS is not required", "auto.example", half, allowlist.NotTLS},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at(row.host))+row.sent); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			origin := g.origin.next(t)
			g.next(t, audit.EventDecision)
			g.checkFirstBytes(t, c, origin, row.sent, row.want)
			if r := g.next(t, audit.EventDecision); r.Reason != row.want.String() {
				t.Errorf("record %+v", r)
			}
			g.next(t, audit.EventTunnelClose)
		})
	}
}

// TestRealTLS runs a client and an origin of crypto/tls over a tunnel.
func TestRealTLS(t *testing.T) {
	g := newGateway(t, options{})
	g.checked(t)
	certificate := g.ca.issue(t, id("origin").String())
	for _, row := range []struct {
		name, sni string
		refused   bool
	}{{"for the host", "strict.example", false}, {"for another", "fronted.example", true}} {
		t.Run(row.name, func(t *testing.T) {
			c := g.call(t, "builder")
			if a := c.ask(t, connectTo(g.at("strict.example"))); a.status != 200 {
				t.Fatalf("answered %s", a.phrase)
			}
			origin := g.origin.next(t)
			served := make(chan error, 1)
			go func() {
				served <- tls.Server(origin, &tls.Config{Certificates: []tls.Certificate{certificate}}).HandshakeContext(t.Context())
			}()
			inner := tls.Client(c, &tls.Config{ServerName: row.sni, InsecureSkipVerify: true})
			err := inner.HandshakeContext(t.Context())
			switch {
			case !row.refused && err != nil:
				t.Errorf("the handshake failed: %v", err)
			case row.refused && (err == nil || !strings.Contains(err.Error(), "access denied")): // the alert's type is not exported
				t.Errorf("the handshake ended with %v, want the alert access denied", err)
			}
			_ = c.Close()
			if err := <-served; (err != nil) != row.refused {
				t.Errorf("the origin's handshake ended with %v", err)
			}
			_ = origin.Close()
		})
	}
}

// TestFirstBytesAreCheckedByTheLastDecision makes another rule match while the look-up is
// under way. First bytes must be checked as the last decision says.
func TestFirstBytesAreCheckedByTheLastDecision(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, connectTo(g.at("held.example")))
	<-g.names.asked
	spec := g.policy()
	spec.Entries[0].Allow = []allowlist.Rule{with(to("held.example"), func(r *allowlist.Rule) { r.TLS = allowlist.TLSRequire })}
	g.swap(t, spec)
	close(g.names.answer)
	if a := c.answer(t); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	c.send(t, "in clear")
	g.checkFirstBytes(t, c, g.origin.next(t), "in clear", allowlist.NotTLS)
}

// TestLargeHelloPassesWhole checks that all buffered bytes arrive, in order.
func TestLargeHelloPassesWhole(t *testing.T) {
	g := newGateway(t, options{})
	g.checked(t)
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("strict.example"))); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	sent := clientHello("strict.example", false, 1)
	for piece := range strings.SplitAfterSeq(sent, "\x16") {
		c.send(t, piece)
	}
	behind := bytes.Repeat([]byte("early data"), 10_000)
	c.send(t, string(behind))
	closeWrite(t, c.Conn)
	if got := readAll(t, g.origin.next(t)); got != sent+string(behind) {
		t.Errorf("the origin got %d bytes, want %d", len(got), len(sent)+len(behind))
	}
}
