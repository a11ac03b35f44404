package hostile

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
)

// accessDenied is the TLS alert access_denied, as a record.
const accessDenied = "\x15\x03\x03\x00\x02\x02\x31"

// hello describes a ClientHello.
type hello struct {
	name    string // the server_name; "" means no such extension
	ech     bool
	share   int // size of the key share in bytes; 0 means 32
	records int // size of each TLS record in bytes; 0 means as large as possible
}

// bytes returns the ClientHello in TLS records.
func (h hello) bytes() string {
	var list []byte
	extension := func(kind uint16, data []byte) {
		list = binary.BigEndian.AppendUint16(list, kind)
		list = binary.BigEndian.AppendUint16(list, uint16(len(data)))
		list = append(list, data...)
	}
	extension(51, make([]byte, max(h.share, 32)))
	if h.name != "" {
		data := binary.BigEndian.AppendUint16(nil, uint16(len(h.name)+3))
		data = binary.BigEndian.AppendUint16(append(data, 0), uint16(len(h.name)))
		extension(0, append(data, h.name...))
	}
	if h.ech {
		extension(0xfe0d, []byte{0, 0, 1, 0, 1})
	}
	body := append([]byte{3, 3}, make([]byte, 33)...)
	body = append(body, 0, 2, 0x13, 1, 1, 0)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(list))), list...)
	message := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	size := h.records
	if size == 0 {
		size = 1 << 14
	}
	var b []byte
	for len(message) > 0 {
		n := min(size, len(message))
		b = binary.BigEndian.AppendUint16(append(b, 22, 3, 1), uint16(n))
		b, message = append(b, message[:n]...), message[n:]
	}
	return string(b)
}

// first is the first text that a caller sends in a tunnel, and the expected outcome.
type first struct {
	name string
	who  string // the workload; "" means builder
	host string
	sent string
	want allowlist.Reason // NoReason means that all of sent arrives
	// would is the reason for which it would have been refused. NoReason means that
	// there is no second record which says that it was only observed.
	would allowlist.Reason
	sni   string // the server name in the records
	tls   string
	ech   bool
}

// scenarios returns three cases: the text is sent in the segment of the CONNECT, after
// the answer, and after the answer byte by byte.
func (f first) scenarios() []scenario {
	var cases []scenario
	for _, how := range []string{"with the CONNECT", "behind the answer", "byte by byte"} {
		cases = append(cases, scenario{name: f.name + ", " + how, run: func(t *testing.T, g *gateway) { f.run(t, g, how) }})
	}
	return cases
}

// firsts returns the cases of all of them.
func firsts(all ...first) []scenario {
	var cases []scenario
	for _, f := range all {
		cases = append(cases, f.scenarios()...)
	}
	return cases
}

func (f first) run(t *testing.T, g *gateway, how string) {
	t.Helper()
	who := f.who
	if who == "" {
		who = "builder"
	}
	c := g.call(t, who)
	head := connectTo(g.at(f.host))
	if how == "with the CONNECT" {
		head += f.sent
	}
	if got := c.ask(t, head); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "allow" || r.Stage != "" {
		t.Errorf("record %+v", r)
	}
	f.follow(c, how)
	f.ends(t, g, c)
}

// follow sends the text in the tunnel. It ignores errors, because the gateway may have
// refused the text before its last byte.
func (f first) follow(c *caller, how string) {
	switch how {
	case "behind the answer":
		_, _ = io.WriteString(c, f.sent)
	case "byte by byte":
		for i := 0; i < len(f.sent) && i < 1<<10; i++ {
			_, _ = c.Write([]byte(f.sent[i : i+1]))
		}
		if len(f.sent) > 1<<10 {
			_, _ = io.WriteString(c, f.sent[1<<10:])
		}
	}
}

// ends checks what both ends of the tunnel got, and the records.
func (f first) ends(t *testing.T, g *gateway, c *caller) {
	t.Helper()
	o := g.origin.next(t)
	if f.want == allowlist.NoReason {
		closeWrite(t, c.Conn)
		if got := readAll(t, o); got != f.sent {
			t.Errorf("the origin got %d bytes, want %d", len(got), len(f.sent))
		}
		_ = o.Close()
		c.ended(t)
		if f.would != allowlist.NoReason {
			r := g.next(t, audit.EventDecision)
			if r.Stage != "tls" || r.Verdict != "observe" || r.Reason != "" || r.WouldReason != f.would.String() {
				t.Errorf("record %+v, want a second decision that observes: %s", r, f.would)
			}
			f.checkHello(t, r)
		}
		r := g.next(t, audit.EventTunnelClose)
		if r.Up != int64(len(f.sent)) || r.Reason != "" || r.WouldReason != f.would.String() {
			t.Errorf("record %+v, want %d bytes", r, len(f.sent))
		}
		f.checkHello(t, r)
		return
	}
	if got, err := io.ReadAll(c.reader); string(got) != accessDenied || err != nil {
		t.Errorf("the caller got %q, %v, want an alert", got, err)
	}
	_ = c.Close()
	if got := readAll(t, o); got != "" {
		t.Errorf("the origin got %d bytes", len(got))
	}
	_ = o.Close()
	r := g.next(t, audit.EventDecision)
	if r.Stage != "tls" || r.Verdict != "deny" || r.Reason != f.want.String() || r.Status != 0 {
		t.Errorf("record %+v, want a second decision: %s", r, f.want)
	}
	f.checkHello(t, r)
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "denied" || r.Reason != f.want.String() || r.Up != 0 {
		t.Errorf("record %+v, want denied", r)
	}
}

func (f first) checkHello(t *testing.T, r record) {
	t.Helper()
	if r.SNI != f.sni || r.TLS != f.tls || r.ECH != f.ech {
		t.Errorf("the %s says sni %q, tls %q, ech %t, want %q, %q, %t", r.Event, r.SNI, r.TLS, r.ECH, f.sni, f.tls, f.ech)
	}
}

// helloRows returns the rows about the ClientHello. They follow the rows about tunnels.
func helloRows() []row {
	const strict, auto, off, open = "strict.example", "auto.example", "off.example", "plain-sight.example"
	plain := func(name string) string { return hello{name: name}.bytes() }
	passes := func(name string, h hello) first {
		h.name = strict
		return first{name: name, host: strict, sent: h.bytes(), sni: strict, tls: "match"}
	}
	mismatch := func(name, sni string) first {
		return first{name: name, host: strict, sent: plain(sni), want: allowlist.SNIMismatch, sni: sni, tls: "mismatch"}
	}
	long := strings.Repeat("a", 64) + ".example"
	return []row{
		{"E7", "a ClientHello for the host that was decided: split over segments or TLS records, of a post-quantum size, of 16 kB", "it passes, whole and in order", firsts(
			passes("usual", hello{}), passes("records of 50 bytes", hello{records: 50}), passes("records of 1 byte", hello{records: 1}),
			passes("post-quantum", hello{share: 1216}), passes("16 kB", hello{share: 16 << 10}),
			first{name: "in another spelling", host: strict, sent: plain("Strict.EXAMPLE."), sni: "Strict.EXAMPLE.", tls: "match"},
			first{name: "with more behind it", host: strict, sent: plain(strict) + strings.Repeat("data", 20_000), sni: strict, tls: "match"})},
		{"E8", "a ClientHello for another name (domain fronting), or for what is no name", "`sni-mismatch`: a TLS alert, the connection closes, the origin sees no byte, and a second record says so", firsts(
			mismatch("another host", auto), mismatch("a host below", "a."+strict), mismatch("the name with more before it", "x"+strict), mismatch("a label of 64 bytes", long),
			mismatch("a NUL in it", "strict\x00.example"), mismatch("characters that a terminal obeys", "\u009b31m\u202e\u2028\U000e0041\x7f.example"), mismatch("an address", "127.0.0.1"), mismatch("two final dots", strict+".."))},
		{"E9", "a ClientHello without a name, to a host that a rule names", "`sni-missing`, likewise", firsts(
			first{name: "where TLS is required", host: strict, sent: plain(""), want: allowlist.SNIMissing, tls: "absent"},
			first{name: "where it is not", host: auto, sent: plain(""), want: allowlist.SNIMissing, tls: "absent"})},
		{"E10", "bytes that are not TLS where TLS is required; a ClientHello that is cut short, or that never ends", "`not-tls`, likewise; bounded in bytes (64 KiB) and time", append(firsts(
			first{name: "HTTP in clear", host: strict, sent: "GET / HTTP/1.1\r\nHost: strict.example\r\n\r\n", want: allowlist.NotTLS, tls: "not-tls"},
			first{name: "something like TLS", host: strict, sent: "\x16\x03\x01\x00\x00", want: allowlist.NotTLS, tls: "not-tls"},
			first{name: "something like TLS where it is not required", host: auto, sent: "\x16SSH", want: allowlist.NotTLS, tls: "not-tls"},
			first{name: "another message first", host: strict, sent: "\x16\x03\x03\x00\x04\x02\x00\x00\x00", want: allowlist.NotTLS, tls: "not-tls"},
			first{name: "an alert first", host: strict, sent: "\x15\x03\x03\x00\x02\x01\x00" + plain(strict), want: allowlist.NotTLS, tls: "not-tls"},
			first{name: "an alert first where it is not required", host: auto, sent: "\x15\x03\x03\x00\x02\x01\x5a" + plain(strict), want: allowlist.NotTLS, tls: "not-tls"},
			first{name: "over 64 KiB", host: strict, sent: hello{name: strict, share: 15_000, records: 1}.bytes(), want: allowlist.NotTLS, tls: "not-tls"}),
			scenario{name: "silence", run: func(t *testing.T, g *gateway) { slowHello(t, g, strict, "") }},
			scenario{name: "half a hello", run: func(t *testing.T, g *gateway) { slowHello(t, g, strict, plain(strict)[:40]) }},
			scenario{name: "half a hello where TLS is not required", run: func(t *testing.T, g *gateway) { slowHello(t, g, auto, plain(auto)[:40]) }})},
		{"E11", "on other ports than 443 (`tls: auto`): another protocol, an origin that speaks first", "nothing is held back; a ClientHello is checked all the same", append(firsts(
			first{name: "another protocol", host: auto, sent: "SSH-2.0-client\r\n", tls: "not-tls"},
			first{name: "one that begins like an alert", host: auto, sent: "\x15\x03\x00\x01of 789 bytes", tls: "not-tls"},
			first{name: "a hello for the host", host: auto, sent: plain(auto), sni: auto, tls: "match"},
			first{name: "a hello for another host", host: auto, sent: plain(strict), want: allowlist.SNIMismatch, sni: strict, tls: "mismatch"}),
			scenario{name: "an origin that speaks first", run: func(t *testing.T, g *gateway) { originFirst(t, g, "HELO client\r\n", allowlist.NoReason) }},
			scenario{name: "and then a hello for another host", run: func(t *testing.T, g *gateway) { originFirst(t, g, plain("evil.example"), allowlist.SNIMismatch) }})},
		{"E12", "`tls: off`", "the bytes are not inspected", firsts(
			first{name: "a hello for another host", host: off, sent: plain("evil.example")},
			first{name: "another protocol", host: off, sent: "anything"})},
		{"E13", "Encrypted Client Hello", "the outer name is compared and recorded; `ech: refuse` refuses the ClientHello as `ech-refused`", firsts(
			first{name: "recorded", host: strict, sent: hello{name: strict, ech: true}.bytes(), sni: strict, tls: "match", ech: true},
			first{name: "for another host", host: strict, sent: hello{name: auto, ech: true}.bytes(), want: allowlist.SNIMismatch, sni: auto, tls: "mismatch", ech: true},
			first{name: "refused", host: open, sent: hello{name: open, ech: true}.bytes(), want: allowlist.ECHRefused, sni: open, tls: "match", ech: true},
			first{name: "none, where it is refused", host: open, sent: plain(open), sni: open, tls: "match"})},
		{"E14", "a tunnel to an address that a range allows", "the ClientHello may have no name, or one that the identity may reach on that port", firsts(
			first{name: "no name", who: "strict", host: "127.0.0.1", sent: plain(""), tls: "absent"},
			first{name: "the address itself", who: "strict", host: "127.0.0.1", sent: plain("127.0.0.1"), sni: "127.0.0.1", tls: "match"},
			first{name: "another address", who: "strict", host: "127.0.0.1", sent: plain("127.0.0.2"), want: allowlist.SNIMismatch, sni: "127.0.0.2", tls: "mismatch"},
			first{name: "an allowed name", who: "strict", host: "127.0.0.1", sent: plain("allowed.example"), sni: "allowed.example", tls: "match"},
			first{name: "a name that is not allowed", who: "strict", host: "127.0.0.1", sent: plain("evil.example"), want: allowlist.SNIMismatch, sni: "evil.example", tls: "mismatch"},
			first{name: "a name that is allowed on another port", who: "strict", host: "127.0.0.1", sent: plain("elsewhere.example"), want: allowlist.SNIMismatch, sni: "elsewhere.example", tls: "mismatch"},
			first{name: "in clear", who: "strict", host: "127.0.0.1", sent: "GET / HTTP/1.1\r\n\r\n", want: allowlist.NotTLS, tls: "not-tls"})},
		{"E15", "a TLS client in the tunnel, for the host or for another", "it reaches the origin, or gets the alert `access denied`", []scenario{
			{name: "for the host", run: func(t *testing.T, g *gateway) { realTLS(t, g, strict, false) }},
			{name: "for another", run: func(t *testing.T, g *gateway) { realTLS(t, g, auto, true) }},
		}},
		{"E16", "under `mode: observe`, a ClientHello for a name that no rule allows", "in a tunnel to an address it passes, and is recorded as `observe`, never as a match; in a tunnel to another name, or if a deny rule covers the name, `sni-mismatch`", firsts(
			observedHello("an allowed name", "127.0.0.1", "allowed.example", 0, 0),
			observedHello("a name that no rule allows", "127.0.0.1", "evil.example", 0, allowlist.NotOnAllowlist),
			observedHello("a name that is allowed on another port", "127.0.0.1", "elsewhere.example", 0, allowlist.PortNotAllowed),
			observedHello("a name that is denied", "127.0.0.1", "a.denied.example", allowlist.SNIMismatch, 0),
			observedHello("another address", "127.0.0.1", "127.0.0.2", allowlist.SNIMismatch, 0),
			observedHello("in a tunnel to another name", strict, "evil.example", allowlist.SNIMismatch, 0),
			first{name: "in clear", who: "watched", host: "127.0.0.1", sent: "GET / HTTP/1.1\r\n\r\n", want: allowlist.NotTLS, tls: "not-tls"})},
	}
}

// observedHello returns a ClientHello for the name sni, from a caller in mode observe.
func observedHello(name, host, sni string, want, would allowlist.Reason) first {
	f := first{name: name, who: "watched", host: host, sent: hello{name: sni}.bytes(), want: want, would: would, sni: sni, tls: "match"}
	if want != allowlist.NoReason || would != allowlist.NoReason {
		f.tls = "mismatch"
	}
	return f
}

// slowHello sends less than a ClientHello, and waits until the gateway refuses it.
func slowHello(t *testing.T, g *gateway, host, sent string) {
	g = g.another(t, options{config: gw.Config{HelloTimeout: 200 * time.Millisecond}})
	c := g.call(t, "builder")
	if got := c.ask(t, connectTo(g.at(host))+sent); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	first{want: allowlist.NotTLS, tls: "not-tls"}.ends(t, g, c)
}

// originFirst lets the origin send a text before the caller does.
func originFirst(t *testing.T, g *gateway, sent string, want allowlist.Reason) {
	c := g.call(t, "builder")
	if got := c.ask(t, connectTo(g.at("auto.example"))); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	o := g.origin.next(t)
	_, _ = io.WriteString(o, "220 ready\r\n")
	if text, err := c.reader.ReadString('\n'); text != "220 ready\r\n" || err != nil {
		t.Fatalf("read %q, %v", text, err)
	}
	g.next(t, audit.EventDecision)
	c.send(t, sent)
	g.origin.conns <- o // ends takes the connection from here
	f := first{sent: sent, want: want, tls: "not-tls"}
	if want != allowlist.NoReason {
		f.sni, f.tls = "evil.example", "mismatch"
	}
	f.ends(t, g, c)
}

func realTLS(t *testing.T, g *gateway, sni string, refused bool) {
	c := g.call(t, "builder")
	if got := c.ask(t, connectTo(g.at("strict.example"))); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	o := g.origin.next(t)
	certificate := g.ca.svid(t, "origin")
	served := make(chan error, 1)
	go func(o net.Conn) {
		served <- tls.Server(o, &tls.Config{Certificates: []tls.Certificate{certificate}}).Handshake()
	}(o)
	inner := tls.Client(c, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
	err := inner.Handshake()
	switch {
	case !refused && err != nil:
		t.Errorf("the handshake failed: %v", err)
	case refused && (err == nil || !strings.Contains(err.Error(), "access denied")):
		t.Errorf("the handshake ended with %v, want the alert access denied", err)
	}
	// In TLS 1.3 the client is ready before the origin has its last message, which is lost if
	// the stream is reset now.
	if err := <-served; (err != nil) != refused {
		t.Errorf("the origin's handshake ended with %v", err)
	}
	_ = c.Close()
	_ = o.Close()
	if refused {
		g.next(t, audit.EventDecision)
	}
	g.next(t, audit.EventTunnelClose)
}
