package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// sink keeps the verdict and the reason of the last record.
type sink struct {
	verdict allowlist.Verdict
	reason  allowlist.Reason
}

func (s *sink) Write(_ context.Context, records []*audit.Record) error {
	last := records[len(records)-1]
	s.verdict, s.reason = last.Verdict, last.Reason
	return nil
}

// newServer returns a server with allowed.example in its cache. Its policy lets sidecar
// resolve that name and the names below wild.example.
func newServer(tb testing.TB, lookup func(context.Context, resolve.Asker, resolve.Question) (resolve.Answer, error)) *Server {
	tb.Helper()
	resolver := must(resolve.New(resolve.Config{
		Servers: []resolve.Server{{Addr: netip.MustParseAddrPort("127.0.0.1:1")}},
		Hosts: map[allowlist.Host][]netip.Addr{
			must(allowlist.ParseHost("allowed.example")):   {netip.MustParseAddr("93.184.216.34"), netip.MustParseAddr("2606:2800:220:1::1")},
			must(allowlist.ParseHost("many.wild.example")): many(),
		},
	}))
	tb.Cleanup(resolver.Close)
	recorder := must(audit.New(tb.Context(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "test", Sink: &sink{}}}, Tracer: noop.NewTracerProvider().Tracer(""),
	}))
	tb.Cleanup(func() { _ = recorder.Close(context.Background()) })
	if lookup == nil {
		lookup = resolver.Lookup
	}
	current := &live.Current{}
	rule := func(host string) allowlist.Rule {
		return allowlist.Rule{Host: must(allowlist.ParseHostPattern(host))}
	}
	current.Swap(must(allowlist.Compile(allowlist.Spec{Version: "v1", Entries: []allowlist.Entry{{
		Pattern: must(allowlist.ParseIdentityPattern("spiffe://test.example/sidecar")),
		Allow:   []allowlist.Rule{rule("allowed.example"), rule("**.wild.example")},
	}}})), time.Now())
	return must(New(Config{
		Current: current, Registry: &live.Registry{}, Recorder: recorder, Log: slog.New(slog.DiscardHandler),
		Resolver: Resolver{Cached: resolver.Cached, Lookup: lookup, Bind: resolver.Bind},
		Budgets:  limit.NewBudgets(limit.Config{Identity: allowlist.Limits{DNSPerSecond: 1 << 30}}),
	}))
}

// many returns as many addresses as are kept of a server's answer.
func many() []netip.Addr {
	var all []netip.Addr
	for i := range byte(64) {
		all = append(all, netip.AddrFrom4([4]byte{93, 184, 0, i}))
	}
	return all
}

func sidecar() listen.Caller {
	return listen.Caller{ID: spiffeid.RequireFromString("spiffe://test.example/sidecar"), Proof: allowlist.ProofListener}
}

func packetOf(name string, typ uint16, edns bool) []byte {
	m := new(mdns.Msg)
	m.SetQuestion(mdns.Fqdn(name), typ)
	if edns {
		m.SetEdns0(1232, false)
	}
	return must(m.Pack())
}

// discard is a door that drops responses.
type discard struct{}

func (discard) reply(ctx context.Context, x *exchange) { x.done(ctx, nil) }

// TestCacheHitAllocatesNothing covers the steps from the packet to the response, without
// the record.
func TestCacheHitAllocatesNothing(t *testing.T) {
	s := newServer(t, nil)
	caller := sidecar()
	for _, from := range []transport{{wire: wireUDP}, {wire: wireDoT, prefix: 2}} {
		for _, edns := range []bool{false, true} {
			msg := packetOf("Allowed.Example", mdns.TypeA, edns)
			answered := true
			n := testing.AllocsPerRun(200, func() {
				x := s.getExchange(from, discard{}, &caller)
				answered = x.receive(msg) && x.ruling.reason == allowlist.NoReason && len(x.response.buf) > len(msg) && answered
				s.putExchange(x)
			})
			if n != 0 && !raceEnabled || !answered { // the race detector drops pooled exchanges
				t.Errorf("%s, EDNS %t: %v allocations, answered %t", from.wire, edns, n, answered)
			}
		}
	}
}

// TestUnrecordedCacheHitAllocatesNothing checks queries that are allowed and answered when
// only one in many has a span and the sink takes only denials.
func TestUnrecordedCacheHitAllocatesNothing(t *testing.T) {
	s := newServer(t, nil)
	counted := 0
	s.cfg.SpanEvery = 1 << 40
	s.cfg.Recorder = must(audit.New(t.Context(), audit.Config{
		Sinks: []audit.SinkConfig{{
			Name: "denials", Sink: &sink{}, Keep: func(r *audit.Record) bool { return r.Verdict != allowlist.Allow },
		}},
		Tracer: noop.NewTracerProvider().Tracer(""),
		Measure: func(r *audit.Record) {
			if r.Event == audit.EventDecision && r.DNS.Code == "NOERROR" && r.Verdict == allowlist.Allow && r.Dest.Host.String() == "allowed.example" {
				counted++
			}
		},
	}))
	defer func() { _ = s.cfg.Recorder.Close(context.Background()) }()
	caller := sidecar()
	msg := packetOf("allowed.example", mdns.TypeA, true)
	var lookups sync.WaitGroup
	hit := func() {
		s.handle(t.Context(), &lookups, s.getExchange(transport{wire: wireUDP}, discard{}, &caller), msg)
	}
	hit() // the first one has a span
	if n := testing.AllocsPerRun(200, hit); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
	if counted != 202 || s.cfg.Recorder.Stats().Made != 202 {
		t.Errorf("%d of 202 were measured, %d made", counted, s.cfg.Recorder.Stats().Made)
	}
}

// bubble serves one stream inside a bubble and returns the client's end of it.
func bubble(t *testing.T, s *Server) (client net.Conn, ended chan struct{}) {
	t.Helper()
	client, end := net.Pipe()
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		defer end.Close()
		s.ServeStream(t.Context(), &listen.Conn{Conn: end, Caller: sidecar(), Listener: "test"})
	}()
	t.Cleanup(func() { _ = client.Close() })
	return client, ended
}

func framed(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
}

func TestStreamsDoNotWaitForClients(t *testing.T) {
	good := framed(packetOf("allowed.example", mdns.TypeA, false))
	for why, row := range map[string]struct {
		writes []byte
		reads  bool
		want   time.Duration
	}{
		"it says nothing":             {nil, true, idleTimeout},
		"it says half a length":       {good[:1], true, readTimeout},
		"it says half a query":        {good[:9], true, readTimeout},
		"it is idle behind a query":   {good, true, idleTimeout},
		"it does not read its answer": {good, false, writeTimeout},
	} {
		t.Run(why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, ended := bubble(t, newServer(t, nil))
				begin := time.Now()
				if _, err := client.Write(row.writes); err != nil {
					t.Fatal(err)
				}
				if row.reads {
					go func() { _, _ = io.Copy(io.Discard, client) }()
				}
				<-ended
				if got := time.Since(begin); got != row.want {
					t.Errorf("after %s, want %s", got, row.want)
				}
			})
		})
	}
}

// TestDrainedServerAnswersDatagramsOnly checks that a server which has drained gives no
// answers on later connections, and answers datagrams until their socket closes.
func TestDrainedServerAnswersDatagramsOnly(t *testing.T) {
	s := newServer(t, nil)
	s.Drain()
	msg := packetOf("allowed.example", mdns.TypeA, false)
	client, ended := bubble(t, s)
	go func() { _, _ = client.Write(framed(msg)) }()
	if raw, err := io.ReadAll(client); len(raw) > 0 || err != nil {
		t.Errorf("a connection: % x, %v", raw, err)
	}
	<-ended

	u := must(listen.OpenUDP(t.Context(), listen.UDPConfig{
		Name: "test", Address: netip.MustParseAddrPort("127.0.0.1:0"), Fixed: func() spiffeid.ID { return sidecar().ID },
	}))
	served := make(chan error)
	go func() { served <- s.ServeUDP(t.Context(), u) }()
	socket := must(net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(u.Addr())))
	defer socket.Close()
	if err := socket.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Write(msg); err != nil {
		t.Fatal(err)
	}
	var answer mdns.Msg
	buf := make([]byte, 512)
	n, err := socket.Read(buf)
	if err != nil || answer.Unpack(buf[:n]) != nil || len(answer.Answer) != 1 {
		t.Errorf("a datagram: % x, %v", buf[:n], err)
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := s.ServeUDP(t.Context(), u); err != nil {
		t.Errorf("serving what is closed: %v", err)
	}
}

// TestClientThatLeavesHidesNoDenial checks that an answer which does not reach its client
// changes the record of an allowed query, but not that of a denial.
func TestClientThatLeavesHidesNoDenial(t *testing.T) {
	for name, want := range map[string]sink{
		"allowed.example": {allowlist.Fail, allowlist.ClientGone},
		"denied.example":  {allowlist.Deny, allowlist.NotOnAllowlist},
	} {
		out := &sink{}
		recorder := must(audit.New(t.Context(), audit.Config{
			Sinks: []audit.SinkConfig{{Name: "test", Sink: out}}, Tracer: noop.NewTracerProvider().Tracer(""),
		}))
		s := newServer(t, nil)
		s.cfg.Recorder = recorder
		caller := sidecar()
		x := s.getExchange(transport{wire: wireDoT, prefix: 2}, discard{}, &caller)
		x.receive(packetOf(name, mdns.TypeA, true))
		x.prepare(t.Context())
		x.done(t.Context(), io.ErrClosedPipe)
		if err := recorder.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if *out != want {
			t.Errorf("%s: %s %s, want %s %s", name, out.verdict, out.reason, want.verdict, want.reason)
		}
	}
}

// TestHoldersWithoutALookUpAreForgotten checks that nothing is kept for holders without a
// look-up.
func TestHoldersWithoutALookUpAreForgotten(t *testing.T) {
	caller := sidecar()
	u, who := newUsage(Limits{}.withDefaults()), caller.Holder()
	u.begin(who)
	u.begin(who)
	u.end(who)
	if u.running[who] != 1 || u.total != 1 {
		t.Errorf("with a look-up under way: %v, %d in all", u.running, u.total)
	}
	u.end(who)
	if len(u.running) != 0 || u.total != 0 {
		t.Errorf("%v, %d in all", u.running, u.total)
	}
}

// TestMappedHoldersHaveAShareOfAllLookups checks that other holders can still look up
// names however many addresses are forged, and that nothing is kept afterwards.
func TestMappedHoldersHaveAShareOfAllLookups(t *testing.T) {
	u := newUsage(Limits{InFlight: 10, Total: 40}.withDefaults())
	id := sidecar().ID
	forged := func(n int) allowlist.Holder {
		return allowlist.HolderOf(spiffeid.RequireFromPathf(id.TrustDomain(), "/%d", n), allowlist.ProofSourceMap)
	}
	var taken []allowlist.Holder
	for n := range 100 {
		if all, own := u.begin(forged(n)); all && own {
			taken = append(taken, forged(n))
		}
	}
	if len(taken) != 10 {
		t.Errorf("%d lookups by address, want a quarter of 40", len(taken))
	}
	shown := allowlist.HolderOf(id, allowlist.ProofX509SVID)
	for range 10 {
		if all, own := u.begin(shown); !all || !own {
			t.Fatal("who is shown by a certificate has no lookup")
		}
		taken = append(taken, shown)
	}
	if _, own := u.begin(shown); own {
		t.Error("there is no bound for one holder")
	}
	for _, h := range taken {
		u.end(h)
	}
	if len(u.running) != 0 || u.total != 0 || u.mapped != 0 {
		t.Errorf("%v, %d in all, %d mapped", u.running, u.total, u.mapped)
	}
}

func TestNamesAreBounded(t *testing.T) {
	n := newNames()
	for i := range 100_000 {
		if h, ok := n.host([]byte(fmt.Sprintf("n%d.example", i))); !ok || h.String() != fmt.Sprintf("n%d.example", i) {
			t.Fatal(h, ok)
		}
	}
	total := 0
	for i := range n.shards {
		total += len(n.shards[i].known)
	}
	if total > nameShards*namesPerShard {
		t.Errorf("%d names are kept", total)
	}
	for _, bad := range []string{"1.2.3.4", "0x7f", "-a.example", "xn--.example", "a..example"} {
		if h, ok := n.host([]byte(bad)); ok || !h.IsZero() {
			t.Errorf("%s is the host %s", bad, h)
		}
	}
}

// TestEveryReasonHasAnAnswer checks that a reason which no query can have is answered as a
// failure.
func TestEveryReasonHasAnAnswer(t *testing.T) {
	for _, r := range allowlist.Reasons() {
		form, code := answerTo(r)
		blocked := form == nameError || form == noData
		if blocked != (code == edeBlocked) || form == refused != (code == edeProhibited && form != notImpl && r != allowlist.NameBudget) {
			t.Errorf("%s: form %d with extended error %d", r, form, code)
		}
	}
}

// FuzzQuery checks that a packet is answered by at most one message, which belongs to
// it; that the name in a well-formed query is the one that another parser reads; and
// that a name which is not allowed is never looked up.
func FuzzQuery(f *testing.F) {
	for _, name := range []string{"allowed.example", "ALLOWED.example", "a.wild.example", "wild.example", "denied.example", "localhost", ".", `allowed\.example`, "1.0.0.127.in-addr.arpa"} {
		for _, typ := range []uint16{mdns.TypeA, mdns.TypeANY, mdns.TypeAXFR, mdns.TypeTXT} {
			f.Add(packetOf(name, typ, true))
			f.Add(packetOf(name, typ, false))
		}
	}
	asked := new(mdns.Msg)
	asked.SetQuestion("allowed.example.", mdns.TypeA)
	asked.SetEdns0(1232, false)
	asked.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"}, new(mdns.EDNS0_NSID)}
	f.Add(must(asked.Pack()))
	var looked []resolve.Question
	s := newServer(f, func(_ context.Context, _ resolve.Asker, q resolve.Question) (resolve.Answer, error) {
		looked = append(looked, q)
		return resolve.Answer{}, &allowlist.ReasonError{Reason: allowlist.ResolveFailed, Err: io.EOF}
	})
	caller := sidecar()
	f.Fuzz(func(t *testing.T, msg []byte) {
		looked = nil
		before := bytes.Clone(msg)
		x := s.getExchange(transport{wire: wireUDP}, discard{}, &caller)
		if !x.receive(msg) {
			x.lookUp(t.Context())
		}
		x.prepare(t.Context())
		if !bytes.Equal(msg, before) {
			t.Fatal("the packet was changed")
		}
		if x.kind == noQuery {
			if len(msg) >= headLen && msg[2]&0x80 == 0 || !x.response.silent {
				t.Fatalf("% x: ignored", msg)
			}
			return
		}
		checkAnswer(t, x, msg)
		for _, q := range looked {
			if name := q.Name.String(); name != "allowed.example" && !strings.HasSuffix(name, ".wild.example") {
				t.Fatalf("% x: %s was looked up", msg, name)
			}
		}
	})
}

func checkAnswer(t *testing.T, x *exchange, msg []byte) {
	t.Helper()
	var a mdns.Msg
	if err := a.Unpack(x.response.buf); err != nil {
		t.Fatalf("% x: the answer % x: %v", msg, x.response.buf, err)
	}
	if a.Id != binary.BigEndian.Uint16(msg) || !a.Response || len(x.response.buf) > x.query.payload {
		t.Fatalf("% x: the answer % x", msg, x.response.buf)
	}
	if x.kind != wellFormedQuery {
		return
	}
	var q mdns.Msg
	if err := q.Unpack(msg); err != nil || len(q.Question) != 1 {
		t.Fatalf("% x: taken for a query: %v", msg, err)
	}
	if want := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, ".")); want != x.query.host.String() {
		t.Fatalf("% x: read as %s, not %s", msg, x.query.host, want)
	}
	if a.Question[0] != q.Question[0] || (a.IsEdns0() != nil) != (q.IsEdns0() != nil) {
		t.Fatalf("% x: the answer %v", msg, &a)
	}
	_, granted := x.server.cfg.Resolver.Cached(x.query.resolverQuestion(), x.start)
	if allowed := x.ruling.decision.Allowed(); len(a.Answer) > 0 && !allowed && a.Question[0].Qtype != mdns.TypeANY && !strings.HasSuffix(x.query.host.String(), "localhost") {
		t.Fatalf("% x: denied, granted %t, and the answer %v", msg, granted, &a)
	}
}

// BenchmarkHit answers an allowed query from the cache, with a record and without a
// span, as a datagram between two reads of the socket.
func BenchmarkHit(b *testing.B) {
	s := newServer(b, nil)
	caller := sidecar()
	msg := packetOf("allowed.example", mdns.TypeA, true)
	var lookups sync.WaitGroup
	b.ReportAllocs()
	for b.Loop() {
		s.handle(b.Context(), &lookups, s.getExchange(transport{wire: wireUDP}, discard{}, &caller), msg)
	}
}

// BenchmarkMany answers such a query with as many addresses as an answer can have.
func BenchmarkMany(b *testing.B) {
	s := newServer(b, nil)
	caller, msg := sidecar(), packetOf("many.wild.example", mdns.TypeA, true)
	var lookups sync.WaitGroup
	b.ReportAllocs()
	for b.Loop() {
		s.handle(b.Context(), &lookups, s.getExchange(transport{wire: wireUDP}, discard{}, &caller), msg)
	}
}

// BenchmarkDenial answers a query for a name that is not allowed.
func BenchmarkDenial(b *testing.B) {
	s := newServer(b, nil)
	caller := sidecar()
	msg := packetOf("denied.example", mdns.TypeA, true)
	var lookups sync.WaitGroup
	b.ReportAllocs()
	for b.Loop() {
		s.handle(b.Context(), &lookups, s.getExchange(transport{wire: wireUDP}, discard{}, &caller), msg)
	}
}

// BenchmarkSizes reads queries with more and more options. The time per byte must not
// grow with their size.
func BenchmarkSizes(b *testing.B) {
	for size := 64; size < maxQuery; size *= 4 {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			msg := packetOf("allowed.example", mdns.TypeA, true)
			options := bytes.Repeat([]byte{0xff, 0, 0, 0}, size/4)
			binary.BigEndian.PutUint16(msg[len(msg)-2:], uint16(len(options)))
			msg = append(msg, options...)
			var q query
			known := newNames()
			b.SetBytes(int64(len(msg)))
			for b.Loop() {
				if q.parse(msg, known) != wellFormedQuery {
					b.Fatal("no query")
				}
			}
		})
	}
}
