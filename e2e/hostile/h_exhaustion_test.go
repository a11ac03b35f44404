package hostile

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/front"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/limit"
)

func exhaustionRows() []row {
	return []row{
		{"H1", "a request head that comes slowly, or stops", "408 after the head timeout, and the connection closes; one that sent nothing is closed in silence", []scenario{
			{name: "half a head", only: h1, run: slowHead},
			{name: "a byte now and then", only: h1, run: drip},
			{name: "nothing", only: h1, run: silence},
		}},
		{"H2", "a TLS handshake that comes slowly, or stops", "closed after the handshake timeout", []scenario{
			{name: "half a hello", only: noWire, run: slowHandshake},
		}},
		{"H3", "a name server that does not answer", "504 after the dial timeout", []scenario{{name: "stalled", run: stalledLookup}}},
		{"H4", "more connections than there are slots: silent ones, on a listener with or without TLS, or tunnels of one identity", "a silent one is closed for the next one of the same share, and is counted in one `summary` a second; beyond its share an identity is answered 503 `busy`; no tunnel is ended, and every other identity is served; memory is bounded by the number of slots", []scenario{
			{name: "silent ones without TLS", only: h1, run: func(t *testing.T, g *gateway) {
				silentCallers(t, g, func(g *gateway) netip.AddrPort { return g.plain })
			}},
			{name: "silent ones over TLS", only: h1, run: func(t *testing.T, g *gateway) {
				silentCallers(t, g, func(g *gateway) netip.AddrPort { return g.secure })
			}},
			{name: "tunnels of one identity", only: h1, run: tooManyTunnels},
		}},
		{"H5", "heads as long as they may be, on many connections", "memory is bounded by the limit of a head, and returned", []scenario{
			{name: "64 KiB each", only: h1, run: longHeads}, {name: "64 KiB before each tunnel", run: tunnelsBehindLongHeads},
		}},
		{"H6", "a sink that does not write its records, while one identity sends denied requests as fast as it can", "no request waits for it; the flood is counted exactly, and no other identity's record is lost", []scenario{{name: "stuck", run: floodOfDenials}}},
	}
}

func slowHead(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{Front: front.Config{HeadTimeout: 200 * time.Millisecond}}})
	c := g.call(t, "builder")
	c.send(t, "CONNECT allowed.example:443 HTTP/1.1\r\nHost: ")
	if got := c.answer(t); got.reason() != allowlist.HeadTimeout.String() || !got.close {
		t.Errorf("answered %s", got.phrase)
	}
	c.gone(t)
	g.next(t, audit.EventDecision)
}

// drip sends a head byte by byte until the gateway answers, because the timeout is that
// of the whole head and not of one read.
func drip(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{Front: front.Config{HeadTimeout: 300 * time.Millisecond}}})
	c := g.call(t, "builder")
	done := make(chan struct{})
	var dripping sync.WaitGroup
	dripping.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		_, err := io.WriteString(c, "CONNECT allowed.example:443 HTTP/1.1\r\nHost: ")
		for err == nil {
			select {
			case <-done:
				return
			case <-tick.C:
				_, err = io.WriteString(c, "a")
			}
		}
	})
	got := c.answer(t)
	close(done)
	dripping.Wait()
	if got.reason() != allowlist.HeadTimeout.String() {
		t.Errorf("answered %s", got.phrase)
	}
	c.gone(t)
	g.next(t, audit.EventDecision)
}

func silence(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{Front: front.Config{HeadTimeout: 200 * time.Millisecond}}})
	g.call(t, "builder").ended(t)
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("records of a connection that asked nothing: %+v", left)
	}
}

func slowHandshake(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{HandshakeTimeout: 200 * time.Millisecond}})
	conn := g.connect(t, g.secure)
	if _, err := conn.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, conn)
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.TLSHandshakeFailed.String() {
		t.Errorf("record %+v", r)
	}
}

func stalledLookup(t *testing.T, g *gateway) {
	g = g.another(t, options{config: gw.Config{DialTimeout: 200 * time.Millisecond}})
	g.names.say("allowed.example", answerSet{stall: true})
	ask{head: connectTo("allowed.example:PORT"), host: "allowed.example", reason: allowlist.ResolveTimeout, lookups: 1}.run(t, g)
}

// silentCallers opens silent connections to one listener. They must not keep others from
// being served.
func silentCallers(t *testing.T, g *gateway, listener func(*gateway) netip.AddrPort) {
	const slots, silent = 64, 200
	g = g.another(t, options{config: gw.Config{MaxConnections: slots, HandshakeTimeout: time.Hour, Front: front.Config{HeadTimeout: time.Hour}}})
	open := g.call(t, "builder")
	if got := open.ask(t, g.fill(connectTo("allowed.example:PORT"))); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	origin := g.origin.next(t)
	before := heap()
	for range silent {
		g.connect(t, listener(g))
	}
	c := g.openSoon(t)
	if after := heap(); after > before+8<<20 {
		t.Errorf("%d silent connections hold %d KiB", silent, (after-before)>>10)
	}
	g.finish(t, c, g.origin)
	open.send(t, "still here")
	got := make([]byte, 10)
	if _, err := io.ReadFull(origin, got); err != nil || string(got) != "still here" {
		t.Errorf("through the tunnel came %q, %v", got, err)
	}
	_ = open.Close()
	_ = origin.Close()
	g.next(t, audit.EventTunnelClose)
	for end := time.Now().Add(patience); g.displaced.Load() < silent-slots/4; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the summaries count %d connections that were closed", g.displaced.Load())
		}
	}
}

// tooManyTunnels opens more tunnels than one identity may have.
func tooManyTunnels(t *testing.T, g *gateway) {
	const slots = 16
	g = g.another(t, options{config: gw.Config{MaxConnections: slots}})
	most := limit.SharesOf(slots).PerIdentity
	builder := func(tb testing.TB) *caller {
		tb.Helper()
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if c, err := g.tryCallWith(tb, g.ca.svid(tb, "builder")); err == nil {
				return c
			}
		}
		tb.Fatal("no handshake passes")
		return nil
	}
	var held []net.Conn
	for range most {
		c, _ := g.soon(t, builder, "")
		held = append(held, c, g.origin.next(t))
	}
	if _, got := g.soon(t, builder, "busy"); got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("answered %s %v", got.phrase, got.header)
	}
	g.finish(t, g.openSoon(t), g.origin)
	for _, conn := range held {
		_ = conn.Close()
	}
	for range most {
		g.next(t, audit.EventTunnelClose)
	}
}

// longHeads leaves many connections in the middle of a head.
func longHeads(t *testing.T, g *gateway) {
	const conns, each = 200, 64 << 10
	g = g.another(t, options{})
	before := heap()
	var held []net.Conn
	head := g.fill(line) + host + "X: " + strings.Repeat("a", each-200)
	for range conns {
		c := g.callPlain(t)
		c.send(t, head)
		held = append(held, c)
	}
	during := heap()
	for _, conn := range held {
		_ = conn.Close()
	}
	for range conns {
		if r := g.next(t, audit.EventDecision); r.Reason != allowlist.ClientGone.String() {
			t.Errorf("record %+v", r)
		}
	}
	after := heap()
	// The text of the heads is kept once; the kernel may hold bytes that were not read.
	if most := uint64(conns*each*3/2 + 16<<20); during > before+most {
		t.Errorf("%d MiB for %d heads of %d KiB", (during-before)>>20, conns, each>>10)
	}
	if after > before+8<<20 {
		t.Errorf("%d MiB are not returned", (after-before)>>20)
	}
}

// tunnelsBehindLongHeads checks that tunnels behind long heads take no more memory than
// those behind short ones.
func tunnelsBehindLongHeads(t *testing.T, g *gateway) {
	const tunnels, most = 100, 8 << 10 // most is for each tunnel, in bytes
	g = g.another(t, options{})
	open := func(fields string) int {
		head := g.fill(line) + g.fill(host) + fields + "\r\n"
		if g.wire == h2 {
			head = beginning(t, head)
		}
		before := heap()
		for range tunnels {
			if _, err := io.WriteString(g.connect(t, g.plain), head); err != nil {
				t.Fatal(err)
			}
			if r := g.next(t, audit.EventDecision); r.Status != 200 {
				t.Fatalf("record %+v", r)
			}
			g.origin.next(t)
		}
		return int(heap()) - int(before)
	}
	open("") // allocates what lasts, such as pools
	short := open("")
	if long := open("X: " + strings.Repeat("a", 60<<10) + "\r\n"); long > short+tunnels*most {
		t.Errorf("%d tunnels hold %d KiB, and %d behind long heads", tunnels, short>>10, long>>10)
	}
}

// heap returns the bytes in use. It collects twice, because a pool keeps its values for
// one more cycle.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func floodOfDenials(t *testing.T, g *gateway) {
	const tunnels, denials = 20, 600
	g = g.another(t, options{queue: 1024, stuck: make(chan struct{})})
	before := g.recorder.Stats().Sinks[0].Made
	var flooding sync.WaitGroup
	flood := g.call(t, "wide")
	flooding.Go(func() {
		for range denials { // on one connection, so that no handshake slows the flood
			if got := flood.ask(t, get("http://127.0.0.1:443/")); got.status != 403 {
				t.Errorf("answered %s", got.phrase)
			}
		}
		_ = flood.Close()
	})
	for range tunnels {
		c := g.call(t, "builder")
		if got := c.ask(t, g.fill(connectTo("allowed.example:PORT"))); got.status != 200 {
			t.Errorf("answered %s", got.phrase)
		}
		_ = g.origin.next(t).Close()
		c.gone(t)
	}
	flooding.Wait()
	for end := time.Now().Add(patience); g.recorder.Stats().Sinks[0].Made < before+denials+2*tunnels; {
		if time.Now().After(end) {
			t.Fatalf("records are missing: %+v", g.recorder.Stats())
		}
		runtime.Gosched()
	}
	close(g.stuck)
	var others, denied uint64
	for _, r := range g.rest(t) {
		switch {
		case r.Event == string(audit.EventSummary):
			denied += r.Count
		case r.Identity == id("builder"):
			others++
		default:
			denied++
		}
	}
	if others != 2*tunnels || denied != denials {
		t.Errorf("%d records of the other identity and %d denials, want %d and %d", others, denied, 2*tunnels, denials)
	}
}
