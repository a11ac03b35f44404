package dns_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/dns"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// stuck is a writer that blocks until it is released.
type stuck struct {
	io.Writer

	let chan struct{}
}

func (s stuck) Write(p []byte) (int, error) {
	<-s.let
	return s.Writer.Write(p)
}

// TestForgedDatagramsHideNoOtherDenials sends queries from 1,000 sources without an
// identity, more than the queue has room for, while the sink blocks. It checks that the
// first denial of a caller with an identity, of one in another network, and of one on
// another listener is still recorded.
func TestForgedDatagramsHideNoOtherDenials(t *testing.T) {
	e := &evidence{records: make(chan record, audit.DefaultQueue)}
	sink := stuck{e, make(chan struct{})}
	recorder := must(audit.New(context.Background(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "stuck", Sink: audit.NewLines(sink, native.Render)}}, Tracer: noop.NewTracerProvider().Tracer(""), Queue: 1024,
	}))
	ca := must(authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example")}))
	// Denied names are not looked up.
	resolver := must(resolve.New(resolve.Config{Servers: []resolve.Server{{Addr: netip.MustParseAddrPort("127.0.0.1:9")}}}))
	defer resolver.Close()
	const plenty = 1 << 20
	mapped := map[netip.Prefix]spiffeid.ID{netip.MustParsePrefix("127.0.0.1/32"): id("mapped")}
	g := open(t, gw.Config{
		Policy: gatewaytest.NewPolicy(compiled(t, policy())), Recorder: recorder, Log: slog.New(slog.DiscardHandler),
		Identity: gatewaytest.NewIdentity((&gateway{ca: ca}).snapshot(t)),
		Listeners: []gw.Listener{
			{Name: "first", Address: "127.0.0.1:0", Protocol: gw.DNS, Identity: gw.SourceMap, Sources: mapped},
			{Name: "second", Address: "127.0.0.1:0", Protocol: gw.DNS, Identity: gw.SourceMap, Sources: mapped},
		},
		Resolver: gw.Resolver{
			Resolve: func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) { return nil, nil },
			DNS:     dns.Resolver{Cached: resolver.Cached, Lookup: resolver.Lookup, Bind: resolver.Bind},
		},
		HostAddresses: func() ([]netip.Addr, error) { return nil, nil },
		Limits:        limit.Config{Identity: allowlist.Limits{DNSPerSecond: plenty}},
	})
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { g.Serve(ctx) })
	listening := g.Listening()
	deny := func(listener int, source string) string {
		t.Helper()
		to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(listening[listener].Addr.String()))
		conn := must(net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(source), 0)), to))
		defer func() { _ = conn.Close() }()
		return decisionID(ask(t, udpClient{conn}, "denied.example"))
	}
	const forged = 1000
	source := func(i int) string { return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}).String() }
	for i := range forged {
		deny(0, source(i))
	}
	victims := map[string]string{
		deny(0, "127.0.0.1"):   "a caller with an identity",
		deny(0, "127.200.0.1"): "a caller in another network",
		deny(1, source(0)):     "a caller on another listener",
	}
	for i := range forged {
		deny(0, source(i))
	}
	close(sink.let)
	stop()
	serving.Wait()
	if err := recorder.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	close(e.records)
	var counted uint64
	for r := range e.records {
		delete(victims, r.ID)
		if counted++; r.Event == string(audit.EventSummary) {
			counted += r.Count - 1
		}
	}
	for _, who := range victims {
		t.Errorf("the first denial of %s has no record", who)
	}
	if counted != 2*forged+3 {
		t.Errorf("%d denials are counted, want %d", counted, 2*forged+3)
	}
}
