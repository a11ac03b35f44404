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

// patience bounds every wait of these tests. No wait should last nearly as long.
const patience = 30 * time.Second

// options holds what a test changes of a gateway.
type options struct {
	evidence    *evidence // nil means evidence of its own
	noPolicy    bool
	slots       int // 0 means 1000
	headTimeout time.Duration
	dialTimeout time.Duration
	hello       time.Duration // HelloTimeout
	tunnel      tunnel.Config
	forward     forward.Config
	bound       func(spiffeid.ID, netip.Addr, time.Time) []resolve.Binding
	limits      limit.Config                                    // a zero field means more than any test needs
	enforced    func(live.Enforcement)                          // called after each enforcement; may be nil
	source      func(*gatewaytest.Identity) gw.IdentityProvider // returns the source to use; nil means the identity itself
	descriptors gw.Descriptors                                  // nil means no limit
	maxRevoke   live.MaxRevoke                                  // bounds policies that are applied without confirmation
	socks5      bool                                            // there is a listener for SOCKS5, whose callers are all builder
}

func (o *options) defaults() {
	const plenty = 1 << 20
	o.slots = cmp.Or(o.slots, 1000)
	if o.enforced == nil {
		o.enforced = func(live.Enforcement) {}
	}
	if o.source == nil {
		o.source = func(i *gatewaytest.Identity) gw.IdentityProvider { return i }
	}
	l := &o.limits
	l.Connections, l.Handshakes = cmp.Or(l.Connections, plenty), cmp.Or(l.Handshakes, plenty)
	l.Strangers = cmp.Or(l.Strangers, time.Hour)
	l.Requests = cmp.Or(l.Requests, plenty)
	l.Identity = l.Identity.Or(allowlist.Limits{Tunnels: plenty, ConnectsPerSecond: plenty, UploadPerHour: 1 << 50})
}

// gateway is a real gateway in this process, with an origin behind it. It has a listener
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
	made     uint64 // number of records before the test began

	secure, plain netip.AddrPort // addresses of the two listeners
	socks5        netip.AddrPort // address of the listener for SOCKS5; zero if there is none
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
	listeners := []gw.Listener{
		{Name: "secure", Address: "127.0.0.1:0"},
		{Name: "plain", Address: "127.0.0.1:0", Identity: gw.Fixed, ID: id("sidecar")},
	}
	if o.socks5 {
		listeners = append(listeners, gw.Listener{Name: "socks5", Address: "127.0.0.1:0", Protocol: gw.SOCKS5, Identity: gw.Fixed, ID: id("builder")})
	}
	made, err := gw.New(tb.Context(), gw.Config{
		Policy: policies, Identity: o.source(g.identity), Recorder: g.recorder, Log: slog.New(slog.DiscardHandler),
		Resolver:  gw.Resolver{Resolve: g.names.lead, Bound: o.bound},
		Listeners: listeners, HostAddresses: func() ([]netip.Addr, error) { return nil, nil },
		Front: front.Config{HeadTimeout: o.headTimeout}, HelloTimeout: o.hello, DialTimeout: o.dialTimeout,
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
	if o.socks5 {
		g.socks5 = netip.MustParseAddrPort(listening[2].Addr.String())
	}
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

// snapshot returns an identity of the gateway that an authority has issued, with that
// authority in its bundle.
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

// serve serves the gateway until the test ends or calls rest.
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

// swap puts a policy in force that also knows the gateway's own listeners, with its limits.
// It does not enforce the policy: requests under way must notice the new state themselves.
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

// states puts states in force and enforces them.
type states struct {
	*live.Enforcer

	did *atomic.Pointer[live.Enforcement] // the last enforcement
}

// put puts a policy in force and enforces it. nil means a policy that allows nothing.
func (e states) put(ctx context.Context, p *allowlist.Policy) live.Enforcement {
	if p == nil {
		p, _ = allowlist.Compile(allowlist.Spec{Version: "none"})
	}
	e.Confirm(ctx, gatewaytest.Only(p))
	return *e.did.Load()
}

// enforcer returns the gateway's own enforcer.
func (g *gateway) enforcer() states { return g.own }

// another returns an enforcer that enforces states on the gateway's registry without putting
// them in force in the gateway: they are no longer in force when the gateway checks the
// state. It trusts every certificate.
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

// emptied waits until the registry is empty. A tunnel leaves it a moment after its record.
func (g *gateway) emptied(t *testing.T) {
	t.Helper()
	g.left(t, 0)
}

// left waits until at most n are in the registry.
func (g *gateway) left(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); g.registry.Len() > n; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d are still in the registry, want %d", g.registry.Len(), n)
		}
	}
}

// bindings returns the bindings of names that the DNS door has answered with an address.
func bindings(names ...string) []resolve.Binding {
	all := make([]resolve.Binding, 0, len(names))
	for _, name := range names {
		host, err := allowlist.ParseHost(name)
		if err != nil {
			panic(err) // a constant of a test
		}
		all = append(all, resolve.Binding{Name: host})
	}
	return all
}

// evidence holds the records of gateways, in the order in which they were written, and their
// spans.
type evidence struct {
	recorder *audit.Recorder
	records  chan record
	spans    *tracetest.InMemoryExporter
	full     atomic.Bool       // writing fails as if the disk were full
	lossy    bool              // records may be lost in this test
	stuck    chan struct{}     // each write waits until it receives or the channel is closed; nil: none waits
	begun    func(span string) // called when a span begins; may be nil
	served   []func()          // functions that stop the gateways which are recorded here
}

// record is one record as a reader of the log sees it.
type record struct {
	Event         string   `json:"event"`
	ID            string   `json:"id"`
	Listener      string   `json:"listener"`
	Protocol      string   `json:"protocol"`
	Wire          string   `json:"wire"`
	Identity      string   `json:"identity"`
	Attributed    string   `json:"attributed"`
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
	Count         uint64   `json:"count"` // number of decisions in a summary
}

func newEvidence(tb testing.TB) *evidence {
	tb.Helper()
	return newEvidenceWith(tb, audit.Config{})
}

// newEvidenceWith returns evidence with a configuration, of which it sets the sink and the
// tracer.
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

// begins is a span processor that calls begun.
type begins struct{ *evidence }

func (b begins) OnStart(_ context.Context, span sdktrace.ReadWriteSpan) {
	if b.begun != nil {
		b.begun(span.Name())
	}
}

func (begins) OnEnd(sdktrace.ReadOnlySpan)      {}
func (begins) Shutdown(context.Context) error   { return nil }
func (begins) ForceFlush(context.Context) error { return nil }

// Write stands in for a log file.
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
		switch audit.Event(r.Event) { //nolint:exhaustive // events of states that the tests themselves have put in force
		case audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
			continue
		}
		e.records <- r
	}
	return len(p), nil
}

// next waits for the next record, which must have the given event.
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

// rest stops the gateways, because callers may get their answers before the records are
// made, and then the recorder. It returns the records that were not read.
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

// names is the resolver. It has a script for each name, and counts the look-ups.
type names struct {
	lookups atomic.Int64
	// The look-up of held.example sends to asked, and then waits for answer.
	asked, answer chan struct{}
	twice         atomic.Bool // once.example was looked up before
	// way is the way by which every look-up leads to the addresses; nil means that there
	// is no alias.
	way atomic.Pointer[allowlist.Way]
}

// over makes every look-up lead over these names.
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

// lead checks the way against the decision, as package resolve does.
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
	case "late.example": // also uses up the time for connecting
		<-ctx.Done()
		return loopback, nil
	case "inner.example":
		return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("169.254.169.254")}, nil
	case "unreachable.example": // no TCP connection to this address is possible
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

// origin accepts connections on loopback, counts them and passes them to the test.
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

// request is a request that has come to the origin.
type request struct {
	*http.Request
	raw  string // head and body as they came
	body string
	conn net.Conn // the connection that the request came on
}

// serve answers every request that comes to the origin from now on, until the test ends. The
// connection is closed after an answer that begins with "close:".
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
