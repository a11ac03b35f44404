package hostile

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/forward"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// limitRows returns the rows about limits.
func limitRows(program *program) []row {
	return []row{
		{"H7", "more connections, or handshakes per second, from one address than it may have", "up to an eighth more connections are answered 429 `rate-limited`, further ones and handshakes are closed at once; each is recorded", []scenario{
			{name: "connections", run: sourceConnections},
			{name: "handshakes", only: noWire, run: sourceHandshakes},
		}},
		{"H8", "more requests of one identity per second than it may make, denied ones included", "429 `rate-limited` with Retry-After, without a lookup; other identities are unaffected", []scenario{{name: "denied ones", run: identityRequests}}},
		{"H9", "more open tunnels, or new ones per second, than an identity or a group may have", "429 `tunnel-limit`, `rate-limited`, without a lookup; the end of a tunnel, however it ends, frees its place once", []scenario{
			{name: "tunnels", run: func(t *testing.T, g *gateway) { identityTunnels(t, g, "limits: {tunnels: 2}", "") }},
			{name: "tunnels of a group", run: func(t *testing.T, g *gateway) { identityTunnels(t, g, "", "shared_limits: {tunnels: 2}") }},
			{name: "tunnels per second", run: identityConnects},
		}},
		{"H10", "more bytes within an hour than an identity may send", "its tunnels end with `close_reason` `limit`, and new ones are 429 `upload-limit`", []scenario{
			{name: "all at once", run: identityUpload},
			{name: "to the last byte", run: lastByte},
		}},
		{"H11", "a policy that is loaded many times", "the part of a limit that was used stays used", []scenario{{name: "tunnels and bytes", run: limitsStay}}},
		{"H12", "handshakes that stop half-way, by the hundred", "memory is bounded, others are served meanwhile, and each is closed and recorded", []scenario{{name: "300 of them", only: noWire, run: halfOpen}}},
		{"H13", "a collector of traces that accepts and never answers", "no request waits for it, and every span that is lost is counted", []scenario{{name: "through the program", only: noWire, run: func(t *testing.T, _ *gateway) { deadCollector(t, program) }}}},
		{"H14", "a body that stops half-way; an origin that never answers, answers garbage, or never ends the head of its answer", "closed after the body's time-out; 504 `response-timeout`; 502 `response-failed`; bounded in bytes and time", []scenario{
			{name: "a body that stops", run: slowBody},
			{name: "no answer", run: func(t *testing.T, g *gateway) { badAnswer(t, g, "", allowlist.ResponseTimeout) }},
			{name: "garbage", run: func(t *testing.T, g *gateway) { badAnswer(t, g, "SSH-2.0-x\r\n\r\n", allowlist.ResponseFailed) }},
			{name: "half a head", run: func(t *testing.T, g *gateway) { badAnswer(t, g, "HTTP/1.1 200 OK\r\nX: ", allowlist.ResponseTimeout) }},
			{name: "a head of 1 MiB", run: func(t *testing.T, g *gateway) {
				badAnswer(t, g, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("a", 1<<20), allowlist.ResponseFailed)
			}},
			{name: "a length and chunks", run: func(t *testing.T, g *gateway) {
				badAnswer(t, g, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345", allowlist.ResponseFailed)
			}},
		}},
		{"H15", "lists of names that are compared with each other: more than 256 in `Connection` and `Trailer` of a request, or of an answer", "431 `head-too-large`; 502 `response-failed`: what is compared is bounded, and the work grows with the head and not with its square", namesByThousands()},
	}
}

func sourceConnections(t *testing.T, g *gateway) {
	const most = 16
	g = g.another(t, options{config: gw.Config{Limits: limit.Config{Connections: most}}})
	var held []net.Conn
	for range most {
		held = append(held, g.callPlain(t))
	}
	got := g.askUntil(t, func() *caller { return g.callPlain(t) }, 429)
	if got.reason() != "rate-limited" || got.header.Get("Retry-After") == "" {
		t.Errorf("answered %s %v", got.phrase, got.header)
	}
	before := g.counts()
	turnedAway := false
	for end := time.Now().Add(patience); !turnedAway && time.Now().Before(end); {
		conn := g.connect(t, g.plain)
		held = append(held, conn)
		select {
		case r := <-g.records:
			turnedAway = r.Event == string(audit.EventHandshake) && r.Reason == "rate-limited" && r.Client != ""
			if !turnedAway {
				t.Fatalf("record %+v", r)
			}
		case <-time.After(20 * time.Millisecond):
		}
	}
	if !turnedAway {
		t.Error("there is no end of connections from one address")
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	if n := g.counts(); n != before {
		t.Errorf("%+v for connections beyond a limit, %+v before", n, before)
	}
}

// askUntil sends valid requests until one has the answer status. The first ones may be
// answered 200, because a connection counts only a moment after it was made.
func (g *gateway) askUntil(t *testing.T, call func() *caller, status int) answer {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		c := call()
		got := c.ask(t, g.fill(connectTo("allowed.example:PORT")))
		g.next(t, audit.EventDecision)
		switch got.status {
		case status:
			c.gone(t)
			return got
		case 200:
			g.finish(t, c, g.origin)
		default:
			t.Fatalf("answered %s", got.phrase)
		}
	}
	t.Fatalf("no request is ever answered %d", status)
	return answer{}
}

func sourceHandshakes(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{Limits: limit.Config{Handshakes: 3}}})
	for range 1000 {
		c, err := g.tryCallWith(t, g.ca.svid(t, "builder"))
		if err == nil {
			_ = c.Close()
			continue
		}
		if r := g.next(t, audit.EventHandshake); r.Reason != "rate-limited" {
			t.Errorf("record %+v", r)
		}
		return
	}
	t.Error("a thousand handshakes were made at once")
}

func identityRequests(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{Limits: limit.Config{Requests: 5}}})
	limited := false
	for end := time.Now().Add(patience); !limited && time.Now().Before(end); {
		got := g.call(t, "builder").ask(t, connectTo("secret.example:443"))
		limited = got.status == 429
		if limited && (got.reason() != "rate-limited" || got.header.Get("Retry-After") == "" || !got.close && g.wire != h2) {
			t.Errorf("answered %s %v", got.phrase, got.header)
		}
		if r := g.next(t, audit.EventDecision); r.Reason != got.reason() || r.Status != got.status || r.Verdict != "deny" {
			t.Errorf("record %+v", r)
		}
	}
	if !limited {
		t.Error("an identity may ask as often as it likes")
	}
	if n := g.counts(); n != (counts{}) {
		t.Errorf("%+v for denied requests", n)
	}
	ask{who: "fenced", head: connectTo("allowed.example:443"), host: "allowed.example", reason: allowlist.PortNotAllowed}.run(t, g)
}

func identityTunnels(t *testing.T, g *gateway, limits, shared string) {
	g = g.another(t, options{})
	g.put(t, g.limitedTo(limits, shared))
	for round := range 3 {
		first, o1 := g.open(t)
		second, o2 := g.open(t)
		ask{head: connectTo("allowed.example:PORT"), host: "allowed.example", reason: allowlist.TunnelLimit}.run(t, g)
		if shared == "" {
			ask{who: "ns/a", head: connectTo("allowed.example:PORT"), host: "allowed.example", lookups: 1, dials: 1}.run(t, g)
		}
		if round%2 == 0 {
			first.reset()
		}
		for _, conn := range []net.Conn{first, second, o1, o2} {
			_ = conn.Close()
		}
		for range 2 {
			g.next(t, audit.EventTunnelClose)
		}
		for end := time.Now().Add(patience); g.running.Registry().Len() > 0 && time.Now().Before(end); { // the registry forgets a tunnel a moment after its record
			<-time.After(time.Millisecond)
		}
	}
}

func identityConnects(t *testing.T, g *gateway) {
	g = g.another(t, options{})
	g.put(t, g.limitedTo("limits: {connects_per_second: 2}", ""))
	limited := false
	for end := time.Now().Add(patience); !limited && time.Now().Before(end); {
		before := g.counts()
		c := g.call(t, "builder")
		got := c.ask(t, g.fill(connectTo("allowed.example:PORT")))
		r := g.next(t, audit.EventDecision)
		if got.status == 200 {
			g.finish(t, c, g.origin)
			continue
		}
		limited = true
		if got.status != 429 || r.Reason != "rate-limited" || g.counts() != before {
			t.Errorf("answered %s, record %+v, %+v", got.phrase, r, g.counts())
		}
	}
	if !limited {
		t.Error("an identity may open tunnels as fast as it likes")
	}
}

func identityUpload(t *testing.T, g *gateway) {
	g = g.another(t, options{})
	g.put(t, g.limitedTo("limits: {upload_per_hour: 1MiB}", ""))
	c, o := g.open(t)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = c.Write(make([]byte, 8<<20))
	}()
	got, _ := io.Copy(io.Discard, o)
	_ = o.Close()
	c.gone(t)
	<-sent
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "limit" || r.Reason != "upload-limit" || r.Up != got || got > 3<<20/2 {
		t.Errorf("record %+v, the origin got %d bytes", r, got)
	}
}

// lastByte uses a limit that is too small to be refilled by a byte during the test.
func lastByte(t *testing.T, g *gateway) {
	g = g.another(t, options{})
	g.put(t, g.limitedTo("limits: {upload_per_hour: 1KiB}", ""))
	c, o := g.open(t)
	g.upload(t, c, o, 1<<10)
	ask{head: connectTo("allowed.example:PORT"), host: "allowed.example", reason: allowlist.UploadLimit}.run(t, g)
	g.exceeds(t, c, o)
	ask{who: "ns/a", head: connectTo("allowed.example:PORT"), host: "allowed.example", lookups: 1, dials: 1}.run(t, g)
}

// upload sends n bytes through a tunnel.
func (g *gateway) upload(t *testing.T, c *caller, o *net.TCPConn, n int) {
	t.Helper()
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, o, int64(n)); err != nil {
		t.Fatal(err)
	}
}

// exceeds sends bytes beyond a limit, and checks that none arrive.
func (g *gateway) exceeds(t *testing.T, c *caller, o *net.TCPConn) {
	t.Helper()
	_, _ = c.Write(make([]byte, 50))
	c.gone(t)
	if n, _ := io.Copy(io.Discard, o); n > 0 {
		t.Errorf("the origin got %d bytes more than the limit", n)
	}
	_ = o.Close()
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "limit" || r.Reason != "upload-limit" {
		t.Errorf("record %+v", r)
	}
}

func limitsStay(t *testing.T, g *gateway) {
	g = g.another(t, options{})
	g.put(t, g.limitedTo("limits: {tunnels: 1, upload_per_hour: 8KiB}", ""))
	c, o := g.open(t)
	for i := range 5 {
		g.put(t, g.limitedTo(fmt.Sprintf("limits: {tunnels: 1, upload_per_hour: %dKiB}", 7-i), ""))
		ask{head: connectTo("allowed.example:PORT"), host: "allowed.example", reason: allowlist.TunnelLimit}.run(t, g)
		g.upload(t, c, o, 600)
	}
	g.put(t, g.limitedTo("limits: {tunnels: 1, upload_per_hour: 2KiB}", "")) // 3,000 bytes were sent, of the last limit of 3 KiB
	g.exceeds(t, c, o)
}

func halfOpen(t *testing.T, g *gateway) {
	const count, each = 300, 32 << 10
	g = g.another(t, options{config: gw.Config{HandshakeTimeout: patience}})
	before := heap()
	var all []net.Conn
	for range count {
		c := g.connect(t, g.secure)
		if _, err := c.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	opens(connectTo("allowed.example:PORT"), "allowed.example").run(t, g)
	if after := heap(); after > before+count*each {
		t.Errorf("a half-open handshake holds %d bytes", (after-before)/count)
	}
	for _, c := range all {
		_ = c.Close()
	}
	for range count {
		if r := g.next(t, audit.EventHandshake); r.Reason != "tls-handshake-failed" {
			t.Errorf("record %+v", r)
		}
	}
}

// deadCollector exports spans to a listener whose connections are never read.
func deadCollector(t *testing.T, program *program) {
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hole.Close() }()
	p := program.start(t, func(p *process) string { return p.allowing("allowed.example") },
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+hole.Addr().String(),
		"OTEL_EXPORTER_OTLP_TIMEOUT=200", "OTEL_BSP_EXPORT_TIMEOUT=200", "OTEL_BSP_SCHEDULE_DELAY=50")
	const asked = 5
	for range asked {
		if got := p.status(t, "denied.example"); got != 403 {
			t.Errorf("answered %d", got)
		}
		p.next(t, audit.EventDecision)
	}
	lost := regexp.MustCompile(`egress_spans_total\{result="failed"\} ([0-9]+)`)
	for end := time.Now().Add(patience); ; {
		m := lost.FindStringSubmatch(p.metrics(t))
		if m != nil && m[1] == strconv.Itoa(asked) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("lost spans are counted as %v, want %d", m, asked)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// slowBody sends a part of the body that it announced.
func slowBody(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{Forward: forward.Config{Body: 300 * time.Millisecond}}})
	c := g.call(t, "builder")
	c.send(t, g.fill(post+"Content-Length: 1000\r\n\r\n")+"some")
	o := g.origin.next(t)
	got, _ := io.ReadAll(o)
	if !strings.HasSuffix(string(got), "\r\n\r\nsome") {
		t.Errorf("the origin got %q", got)
	}
	_ = o.Close()
	if r := g.next(t, audit.EventDecision); r.Verdict != "fail" || r.Reason != allowlist.ClientGone.String() {
		t.Errorf("record %+v", r)
	}
	g.next(t, audit.EventTunnelClose)
	c.gone(t)
}

// badAnswer lets the origin answer a plain request with a text that is no valid answer.
func badAnswer(t *testing.T, g *gateway, answer string, want allowlist.Reason) {
	g = g.another(t, options{config: gw.Config{Forward: forward.Config{Response: 500 * time.Millisecond}}})
	c := g.call(t, "builder")
	c.send(t, g.fill(get("http://allowed.example:PORT/")))
	o := g.origin.next(t)
	if _, err := http.ReadRequest(bufio.NewReader(o)); err != nil { // without a request, it would not be an answer
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(o, answer)
	}()
	if got := c.answer(t); got.reason() != want.String() {
		t.Errorf("answered %s (%s), want %s", got.phrase, got.reason(), want)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "fail" || r.Reason != want.String() {
		t.Errorf("record %+v", r)
	}
	g.next(t, audit.EventTunnelClose)
	_ = o.Close()
	<-written
	_ = c.Close()
}

// namesByThousands returns the cases of heads with two lists whose comparison would cost
// the product of their lengths.
func namesByThousands() []scenario {
	list := func(n int) string { return strings.Repeat("a,", n-1) + "a\r\n" }
	const chunked = post + "Transfer-Encoding: chunked\r\n"
	answer := func(fields string) string {
		return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + fields + "\r\n0\r\n\r\n"
	}
	distinct := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "X%d,", i)
		}
		return b.String() + "X\r\n"
	}
	return slices.Concat(
		refusedAs("two lists of thousands", allowlist.HeadTooLarge, chunked+"Connection: "+list(16_000)+"Trailer: "+list(15_000)+"\r\n0\r\n\r\n"),
		refusedAs("257 names in Connection", allowlist.HeadTooLarge, getLine+host+"Connection: "+list(257)+"\r\n"),
		refusedAs("257 names in many lines", allowlist.HeadTooLarge, chunked+strings.Repeat("trailer: "+list(10), 20)+strings.Repeat("connection: "+list(10), 6)+"\r\n0\r\n\r\n"),
		[]scenario{forwarded{head: getLine + host + "Connection: " + list(255) + "A: 1\r\n\r\n", never: []string{"\r\na: 1"}}.named("255 names in Connection")},
		noAnswers(
			answer("Connection: "+list(60_000)+"Trailer: "+distinct(15_000)), answer("Trailer: "+distinct(257)),
			answer("Connection: "+list(257)), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close, "+list(257)+"\r\n"),
	)
}
