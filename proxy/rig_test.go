package proxy_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; nothing should come near it.
const patience = 30 * time.Second

// options are what a test changes of a gateway.
type options struct {
	evidence    *evidence // nil: of its own
	noPolicy    bool
	slots       int // 0: 1000
	headTimeout time.Duration
	dialTimeout time.Duration
	hello       time.Duration // for a ClientHello
	tunnel      tunnel.Config
	forward     forward.Config
	bound       func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding
	limits      limit.Config // a zero field is more than any test needs
}

func (o *options) defaults() {
	const plenty = 1 << 20
	o.slots = cmp.Or(o.slots, 1000)
	l := &o.limits
	l.Connections, l.Handshakes = cmp.Or(l.Connections, plenty), cmp.Or(l.Handshakes, plenty)
	l.Requests = cmp.Or(l.Requests, plenty)
	l.Identity = l.Identity.Or(allowlist.Limits{Tunnels: plenty, ConnectsPerSecond: plenty, UploadPerHour: 1 << 50})
}

// gateway is a real one in this process, with an origin behind it: a listener
// that asks for certificates, and one without TLS whose callers are all sidecar.
type gateway struct {
	*evidence
	ca       *testCA
	names    *names
	origin   *origin
	current  live.Current
	registry live.Registry
	sources  *limit.Sources
	budgets  *limit.Budgets
	proxy    *proxy.Proxy

	secure, plain netip.AddrPort // of the two listeners
}

func newGateway(tb testing.TB, o options) *gateway {
	tb.Helper()
	o.defaults()
	g := &gateway{
		evidence: o.evidence, sources: limit.NewSources(o.limits), budgets: limit.NewBudgets(o.limits),
		ca: newCA(tb), names: newNames(), origin: newOrigin(tb),
	}
	if g.evidence == nil {
		g.evidence = newEvidence(tb)
	}
	dialer, err := dial.New(dial.Config{Resolve: g.names.resolve, Timeout: o.dialTimeout})
	if err != nil {
		tb.Fatal(err)
	}
	g.proxy, err = proxy.New(proxy.Config{
		Current: &g.current, Registry: &g.registry, Dialer: dialer, Recorder: g.recorder,
		Log: slog.New(slog.DiscardHandler), HeadTimeout: o.headTimeout, HelloTimeout: o.hello, Tunnel: o.tunnel, Forward: o.forward,
		Budgets: g.budgets, Bound: o.bound,
	})
	if err != nil {
		tb.Fatal(err)
	}
	slots := listen.NewSlots(o.slots)
	g.secure = g.serve(tb, g.secureListener(tb), slots)
	g.plain = g.serve(tb, listen.Config{Name: "plain", Fixed: func() spiffeid.ID { return id("sidecar") }}, slots)
	if !o.noPolicy {
		g.swap(tb, g.policy())
	}
	return g
}

// secureListener asks for certificates of the test's own authority.
func (g *gateway) secureListener(tb testing.TB) listen.Config {
	tb.Helper()
	own := g.ca.issue(tb, "spiffe://test.example/gateway")
	snapshot, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: own,
		Bundles:     []*x509bundle.Bundle{g.ca.bundle()},
		Generation:  1,
	})
	if err != nil {
		tb.Fatal(err)
	}
	source := fixedSource{snapshot}
	verifier, err := identity.NewVerifier(source)
	if err != nil {
		tb.Fatal(err)
	}
	config, err := identity.ServerConfig{Source: source, Verifier: verifier}.TLS()
	if err != nil {
		tb.Fatal(err)
	}
	return listen.Config{
		Name: "secure", TLS: config, Verifier: verifier, Realm: "test.example",
		HandshakeFailed: func(_ context.Context, client netip.AddrPort, err error) {
			if !errors.Is(err, io.EOF) {
				g.recorder.Event(audit.Record{
					Event: audit.EventHandshake, Listener: "secure", Client: client,
					Reason: allowlist.TLSHandshakeFailed, Detail: err.Error(),
				})
			}
		},
	}
}

// refused records a connection that was closed without an answer.
func (g *gateway) refused(listener string) func(context.Context, netip.AddrPort, allowlist.Reason, string) {
	return func(_ context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
		g.recorder.Event(audit.Record{Event: audit.EventHandshake, Listener: listener, Client: client, Reason: why, Detail: detail})
	}
}

type fixedSource struct{ snapshot *identity.Snapshot }

func (s fixedSource) Snapshot() *identity.Snapshot { return s.snapshot }

// serve serves a listener until the test ends, or asks for the rest of the records.
func (g *gateway) serve(tb testing.TB, cfg listen.Config, slots *listen.Slots) netip.AddrPort {
	tb.Helper()
	cfg.Address, cfg.Slots, cfg.Log = "127.0.0.1:0", slots, slog.New(slog.DiscardHandler)
	cfg.Sources, cfg.Refused = g.sources, g.refused(cfg.Name)
	l, err := listen.Listen(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cut := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := l.Serve(ctx, g.proxy.Serve); err != nil {
			tb.Error(err)
		}
	})
	end := sync.OnceFunc(func() {
		g.registry.EndAll(tunnel.Drain)
		g.proxy.Drain()
		cut()
		_ = l.Close()
		serving.Wait()
	})
	g.served = append(g.served, end)
	tb.Cleanup(end)
	return netip.MustParseAddrPort(l.Addr().String())
}

// swap puts a policy in force that also knows the gateway's own listeners.
func (g *gateway) swap(tb testing.TB, spec allowlist.Spec) {
	tb.Helper()
	policy, err := allowlist.Compile(spec)
	if err != nil {
		tb.Fatal(err)
	}
	local := allowlist.Local{Listeners: []netip.AddrPort{g.secure, g.plain}}
	g.current.Swap(policy.WithClassifier(allowlist.NewClassifier(local)), time.Now())
}

// enforcer makes the gateway's states end what they forbid.
func (g *gateway) enforcer(t *testing.T) *live.Enforcer {
	t.Helper()
	return enforcerOf(t, &g.current, &g.registry)
}

// enforcerOf returns an enforcer that trusts every certificate.
func enforcerOf(t *testing.T, current *live.Current, registry *live.Registry) *live.Enforcer {
	t.Helper()
	enforcer, err := live.NewEnforcer(live.EnforcerConfig{
		Current: current, Registry: registry, Trusts: func([]*x509.Certificate) bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	return enforcer
}

// emptied waits until nothing is open: a tunnel leaves a moment after its record.
func (g *gateway) emptied(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); g.registry.Len() > 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d are still in the registry", g.registry.Len())
		}
	}
}

// bindings are what the DNS door has told of an address: that it is these names'.
func bindings(names ...string) []resolve.Binding {
	all := make([]resolve.Binding, 0, len(names))
	for _, name := range names {
		host, err := allowlist.ParseHost(name)
		if err != nil {
			panic(err) // the name is the test's own
		}
		all = append(all, resolve.Binding{Name: host})
	}
	return all
}

// evidence is what gateways leave behind: records in the order in which they
// were written, and spans.
type evidence struct {
	recorder *audit.Recorder
	records  chan record
	spans    *tracetest.InMemoryExporter
	full     atomic.Bool       // the disk
	lossy    bool              // the test means it to be
	stuck    chan struct{}     // the sink takes nothing until it is closed; nil: it is quick
	begun    func(span string) // is told of every span that begins; nil is nobody
	served   []func()          // end the listeners whose callers are recorded here
}

// record is a line of evidence as a reader of the log sees it.
type record struct {
	Event         string `json:"event"`
	ID            string `json:"id"`
	Listener      string `json:"listener"`
	Protocol      string `json:"protocol"`
	Identity      string `json:"identity"`
	Host          string `json:"host"`
	Port          uint16 `json:"port"`
	Method        string `json:"method"`
	Path          string `json:"path"`
	Address       string `json:"address"`
	Verdict       string `json:"verdict"`
	Reason        string `json:"reason"`
	Detail        string `json:"detail"`
	WouldReason   string `json:"would_reason"`
	Status        int    `json:"status"`
	Policy        string `json:"policy"`
	Generation    uint64 `json:"generation"`
	Stage         string `json:"stage"`
	SNI           string `json:"sni"`
	TLS           string `json:"tls"`
	ECH           bool   `json:"ech"`
	AddressClass  string `json:"address_class"`
	Dropped       int    `json:"addresses_dropped"`
	Up            int64  `json:"up"`
	Down          int64  `json:"down"`
	CloseReason   string `json:"close_reason"`
	TraceID       string `json:"trace_id"`
	SpanID        string `json:"span_id"`
	CallerTraceID string `json:"caller_trace_id"`
	Count         uint64 `json:"count"` // of a summary
}

func newEvidence(tb testing.TB) *evidence {
	tb.Helper()
	return newEvidenceWith(tb, audit.Config{})
}

// newEvidenceWith sets the sink and the tracer of a configuration.
func newEvidenceWith(tb testing.TB, cfg audit.Config) *evidence {
	tb.Helper()
	return startEvidence(tb, cfg, &evidence{})
}

func startEvidence(tb testing.TB, cfg audit.Config, e *evidence) *evidence {
	tb.Helper()
	e.records, e.spans = make(chan record, audit.DefaultQueue), tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithSyncer(e.spans), sdktrace.WithSpanProcessor(begins{e}))
	var err error
	cfg.Sinks = []audit.SinkConfig{{Name: "test", Sink: audit.NewLines(e, native.Render)}}
	cfg.Tracer = provider.Tracer("test")
	e.recorder, err = audit.New(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { e.rest(tb) })
	return e
}

// begins tells the evidence of spans that begin.
type begins struct{ *evidence }

func (b begins) OnStart(_ context.Context, span sdktrace.ReadWriteSpan) {
	if b.begun != nil {
		b.begun(span.Name())
	}
}

func (begins) OnEnd(sdktrace.ReadOnlySpan)      {}
func (begins) Shutdown(context.Context) error   { return nil }
func (begins) ForceFlush(context.Context) error { return nil }

// Write takes the place of a log file.
func (e *evidence) Write(p []byte) (int, error) {
	if e.stuck != nil {
		<-e.stuck
	}
	if e.full.Load() {
		return 0, syscall.ENOSPC
	}
	for line := range bytes.Lines(p) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return 0, fmt.Errorf("record %q: %w", line, err)
		}
		e.records <- r
	}
	return len(p), nil
}

// next waits for the next record, which must be of that event.
func (e *evidence) next(t *testing.T, event audit.Event) record {
	t.Helper()
	select {
	case r := <-e.records:
		if r.Event != string(event) {
			t.Fatalf("record %+v, want the event %s", r, event)
		}
		return r
	case <-time.After(patience):
		t.Fatalf("no record of the event %s", event)
		return record{}
	}
}

// rest ends what is recorded, whose callers may have their answers before the
// records are made, then the recorder, and returns the records that nobody has
// taken.
func (e *evidence) rest(tb testing.TB) []record {
	tb.Helper()
	for _, end := range e.served {
		end()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := e.recorder.Close(ctx); err != nil {
		tb.Error(err)
	}
	if stats := e.recorder.Stats(); stats.Lost() > 0 && !e.lossy {
		tb.Errorf("records were lost: %+v", stats)
	}
	var left []record
	for len(e.records) > 0 {
		left = append(left, <-e.records)
	}
	return left
}

// names is the resolver: a script for each name, and a count of the questions.
type names struct {
	lookups atomic.Int64
	// asked and answer stop the lookup of held.example between two steps of a
	// test.
	asked, answer chan struct{}
	twice         atomic.Bool // once.example was asked for
}

func newNames() *names {
	return &names{asked: make(chan struct{}), answer: make(chan struct{})}
}

func (n *names) resolve(ctx context.Context, dec *allowlist.Decision) ([]netip.Addr, error) {
	host := dec.Dest.Host
	if host.IsAddr() {
		return []netip.Addr{host.Addr()}, nil
	}
	n.lookups.Add(1)
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	switch host.String() {
	case "unknown.example":
		return nil, errors.New("no such host")
	case "empty.example":
		return nil, nil
	case "slow.example":
		return nil, context.DeadlineExceeded
	case "many.wild.example":
		return nil, &allowlist.ReasonError{Reason: allowlist.NameBudget}
	case "late.example": // uses up the time that is there for connecting, too
		<-ctx.Done()
		return loopback, nil
	case "inner.example":
		return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("169.254.169.254")}, nil
	case "unreachable.example": // no route leads to a TCP connection with it
		return []netip.Addr{netip.MustParseAddr("255.255.255.255")}, nil
	case "mixed.example":
		return append(loopback, netip.MustParseAddr("10.0.0.1")), nil
	case "panic.example":
		panic("the resolver of this test panics")
	case "once.example":
		if n.twice.Swap(true) {
			panic("the resolver of this test panics, the second time")
		}
	case "held.example":
		n.asked <- struct{}{}
		<-n.answer
	}
	return loopback, nil
}

// origin accepts connections on loopback, counts them and hands them over.
type origin struct {
	port     uint16
	accepted atomic.Int64
	conns    chan *net.TCPConn
}

func newOrigin(tb testing.TB) *origin {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	o := &origin{port: netip.MustParseAddrPort(l.Addr().String()).Port(), conns: make(chan *net.TCPConn, 1024)}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			o.accepted.Add(1)
			o.conns <- conn.(*net.TCPConn)
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		accepting.Wait()
		for len(o.conns) > 0 {
			_ = (<-o.conns).Close()
		}
	})
	return o
}

// next returns the next connection that the gateway made.
func (o *origin) next(t *testing.T) *net.TCPConn {
	t.Helper()
	select {
	case conn := <-o.conns:
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return conn
	case <-time.After(patience):
		t.Fatal("the gateway made no connection to the origin")
		return nil
	}
}

// request is one that came to the origin.
type request struct {
	*http.Request
	raw  string // as it came, head and body
	body string
	conn net.Conn // that it came on
}

// serve answers every request that comes to the origin from now on, until the
// test ends. An answer that begins with "close:" is the last on its connection.
func (o *origin) serve(tb testing.TB, answer func(request) string) {
	tb.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			select {
			case conn := <-o.conns:
				serving.Go(func() {
					defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
					defer func() { _ = conn.Close() }()
					serveRequests(conn, answer)
				})
			case <-ctx.Done():
				return
			}
		}
	})
	tb.Cleanup(func() {
		stop()
		serving.Wait()
	})
}

func serveRequests(conn net.Conn, answer func(request) string) {
	var raw bytes.Buffer
	reader := bufio.NewReader(io.TeeReader(conn, &raw))
	for {
		req, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		text, last := strings.CutPrefix(answer(request{Request: req, raw: raw.String(), body: string(body), conn: conn}), "close:")
		raw.Reset()
		if _, err := io.WriteString(conn, text); err != nil || last {
			return
		}
	}
}
