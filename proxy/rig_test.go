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
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/front"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/limit"
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
	limits      limit.Config                                  // a zero field is more than any test needs
	enforced    func(live.Enforcement)                        // nil is nobody
	source      func(*gatewaytest.Identity) gw.IdentitySource // nil: that source itself
	descriptors gw.Descriptors                                // nil: any number
	maxRevoke   live.MaxRevoke                                // of what is applied, and not confirmed
}

func (o *options) defaults() {
	const plenty = 1 << 20
	o.slots = cmp.Or(o.slots, 1000)
	if o.enforced == nil {
		o.enforced = func(live.Enforcement) {}
	}
	if o.source == nil {
		o.source = func(i *gatewaytest.Identity) gw.IdentitySource { return i }
	}
	l := &o.limits
	l.Connections, l.Handshakes = cmp.Or(l.Connections, plenty), cmp.Or(l.Handshakes, plenty)
	l.Strangers = cmp.Or(l.Strangers, time.Hour)
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
	identity *gatewaytest.Identity
	current  *live.Current
	registry *live.Registry
	budgets  *limit.Budgets
	proxy    *proxy.Proxy
	own      states
	made     uint64 // records before the test began

	secure, plain netip.AddrPort // of the two listeners
}

func newGateway(tb testing.TB, o options) *gateway {
	tb.Helper()
	o.defaults()
	g := &gateway{evidence: o.evidence, ca: newCA(tb), names: newNames(), origin: newOrigin(tb), own: states{did: new(atomic.Pointer[live.Enforcement])}}
	if g.evidence == nil {
		g.evidence = newEvidence(tb)
	}
	g.identity = gatewaytest.NewIdentity(g.snapshot(tb, g.ca, 1))
	policies := gatewaytest.NewPolicy(nil)
	made, err := gw.New(tb.Context(), gw.Config{
		Policy: policies, Identity: o.source(g.identity), Recorder: g.recorder, Log: slog.New(slog.DiscardHandler),
		Resolver: gw.Resolver{Resolve: g.names.lead, Bound: o.bound},
		Listeners: []gw.Listener{
			{Name: "secure", Address: "127.0.0.1:0"},
			{Name: "plain", Address: "127.0.0.1:0", Identity: gw.Fixed, ID: id("sidecar")},
		},
		HostAddresses: func() ([]netip.Addr, error) { return nil, nil },
		Front:         front.Config{HeadTimeout: o.headTimeout}, HelloTimeout: o.hello, DialTimeout: o.dialTimeout,
		Tunnel: o.tunnel, Forward: o.forward, Limits: o.limits, MaxConnections: o.slots, Descriptors: o.descriptors, MaxRevoke: o.maxRevoke,
		Metrics: gw.Metrics{Enforced: func(e live.Enforcement) {
			g.own.did.Store(&e)
			o.enforced(e)
		}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	parts := made.Parts()
	g.current, g.registry, g.budgets, g.proxy, g.own.Enforcer = parts.Current, parts.Registry, parts.Budgets, parts.Proxy, parts.Enforcer
	listening := made.Listening()
	g.secure, g.plain = netip.MustParseAddrPort(listening[0].Addr.String()), netip.MustParseAddrPort(listening[1].Addr.String())
	g.serve(tb, made)
	if !o.noPolicy {
		first, err := allowlist.Compile(g.policy())
		if err != nil {
			tb.Fatal(err)
		}
		policies.Put(first)
	}
	g.made = g.recorder.Stats().Sinks[0].Made
	return g
}

// snapshot is the gateway's identity, issued by an authority, which it trusts.
func (g *gateway) snapshot(tb testing.TB, ca *testCA, generation uint64) *identity.Snapshot {
	tb.Helper()
	snapshot, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: ca.issue(tb, "spiffe://test.example/gateway"), Bundles: []*x509bundle.Bundle{ca.bundle()}, Generation: generation,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return snapshot
}

// serve serves the gateway until the test ends, or asks for the rest of the records.
func (g *gateway) serve(tb testing.TB, made *gw.Gateway) {
	tb.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { made.Serve(ctx) })
	end := sync.OnceFunc(func() {
		stop()
		serving.Wait()
	})
	g.served = append(g.served, end)
	tb.Cleanup(end)
}

// swap puts a policy in force that also knows the gateway's own listeners, with
// its limits, and tells nobody: whoever is on its way finds out by itself.
func (g *gateway) swap(tb testing.TB, spec allowlist.Spec) {
	tb.Helper()
	policy, err := allowlist.Compile(spec)
	if err != nil {
		tb.Fatal(err)
	}
	local := allowlist.Local{Listeners: []netip.AddrPort{g.secure, g.plain}}
	g.current.Swap(policy.WithClassifier(allowlist.NewClassifier(local)), time.Now())
	g.budgets.Apply(policy)
}

// states puts states in force, which end what they forbid.
type states struct {
	*live.Enforcer

	did *atomic.Pointer[live.Enforcement] // the last time
}

// put puts a policy in force; nil is one that allows nobody anything.
func (e states) put(ctx context.Context, p *allowlist.Policy) live.Enforcement {
	if p == nil {
		p, _ = allowlist.Compile(allowlist.Spec{Version: "none"})
	}
	e.Confirm(ctx, gatewaytest.Only(p))
	return *e.did.Load()
}

// enforcer returns the gateway's own.
func (g *gateway) enforcer() states { return g.own }

// another returns an enforcer over other states than the gateway's, which trusts
// every certificate: what it puts in force is so no more when the gateway looks.
func (g *gateway) another(t *testing.T) states {
	t.Helper()
	e := states{did: new(atomic.Pointer[live.Enforcement])}
	var err error
	e.Enforcer, err = live.NewEnforcer(live.EnforcerConfig{
		Current: new(live.Current), Registry: g.registry, Trusts: func([]*x509.Certificate) bool { return true },
		Enforced: func(_ context.Context, done live.Enforcement) { e.did.Store(&done) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
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
	Event         string   `json:"event"`
	ID            string   `json:"id"`
	Listener      string   `json:"listener"`
	Protocol      string   `json:"protocol"`
	Identity      string   `json:"identity"`
	Host          string   `json:"host"`
	Port          uint16   `json:"port"`
	Method        string   `json:"method"`
	Path          string   `json:"path"`
	Address       string   `json:"address"`
	Verdict       string   `json:"verdict"`
	Reason        string   `json:"reason"`
	Detail        string   `json:"detail"`
	WouldReason   string   `json:"would_reason"`
	Status        int      `json:"status"`
	Policy        string   `json:"policy"`
	Generation    uint64   `json:"generation"`
	Stage         string   `json:"stage"`
	SNI           string   `json:"sni"`
	TLS           string   `json:"tls"`
	ECH           bool     `json:"ech"`
	AddressClass  string   `json:"address_class"`
	Dropped       int      `json:"addresses_dropped"`
	Refused       []string `json:"addresses_refused"`
	Up            int64    `json:"up"`
	Down          int64    `json:"down"`
	CloseReason   string   `json:"close_reason"`
	TraceID       string   `json:"trace_id"`
	SpanID        string   `json:"span_id"`
	CallerTraceID string   `json:"caller_trace_id"`
	Count         uint64   `json:"count"` // of a summary
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
		switch audit.Event(r.Event) { //nolint:exhaustive // the tests know what they have put in force
		case audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
			continue
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
	// way is how every look-up leads to the addresses; nil is without an alias.
	way atomic.Pointer[allowlist.Way]
}

// over makes every look-up lead over names.
func (n *names) over(inspect bool, names ...string) {
	way := allowlist.Way{Inspect: inspect}
	for _, name := range names {
		host, err := allowlist.ParseHost(name)
		if err != nil {
			panic(err) // a constant of a test
		}
		way.Via = append(way.Via, host)
	}
	n.way.Store(&way)
}

// lead asks the decision about the way, as package resolve does.
func (n *names) lead(ctx context.Context, dec *allowlist.Decision) ([]allowlist.Resolved, error) {
	var way allowlist.Way
	if w := n.way.Load(); w != nil && !dec.Dest.Host.IsAddr() {
		way = *w
	}
	addrs, err := n.resolve(ctx, dec)
	if why := dec.CheckWay(way); err == nil && why != allowlist.NoReason {
		return nil, &allowlist.ReasonError{Reason: why}
	}
	return gatewaytest.On(way, addrs...), err
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
