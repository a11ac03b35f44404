package dns_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/dns"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests. It is much longer than any of them should
// take.
const patience = 20 * time.Second

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func id(name string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://test.example/" + name) }

// options are the settings of a test's gateway.
type options struct {
	address     string // address of the listeners; "" means IPv4 loopback
	limits      dns.Limits
	connections int // connections that a source address may have open; 0 means more than any test needs
	streams     int // connections over all DNS listeners; 0 means the default
	requests    int // connections over all listeners for requests; 0 means the default
	perSecond   int // queries of an identity per second; 0 means the default
	inspect     bool
	names       int // bound on distinct names; 0 means the default
	audit       audit.Config
	drain       time.Duration // time for running requests when the gateway is stopped
	log         slog.Handler  // nil discards the log
	noPolicy    bool
	resolves    bool               // says that names of requests are resolved, too, and that requests may go to an address from an answer
	unmapped    bool               // says that only 127.0.0.1 is mapped
	descriptors *limit.Descriptors // for connections to servers; nil means no limit
	// lookup returns the function that replaces the resolver's.
	lookup func(resolver lookup) lookup
}

type lookup = func(ctx context.Context, a resolve.Asker, q resolve.Question) (resolve.Answer, error)

// gateway is a real gateway in this process with an upstream server. Its resolver
// answers queries, and finds no address for a request.
type gateway struct {
	*evidence
	*gw.Gateway
	ca       *authority.Authority
	minting  sync.Mutex
	minted   map[string]tls.Certificate // by name of the identity
	upstream *upstream
	policies *gatewaytest.Policy
	stop     func() // begins to drain
	told     cutsTold

	dns, mapped, dot, doh, connect, both netip.AddrPort // addresses of the listeners
}

// cutsTold counts the connections that were closed for want of a slot.
type cutsTold struct {
	mu     sync.Mutex
	counts map[string]int // by listener and cause
}

func (c *cutsTold) add(listener string, why limit.Cause, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[listener+" "+why.String()] += n
}

// cuts returns the counts of a listener that are not zero, one word for each cause.
func (g *gateway) cuts(listener string) string {
	g.told.mu.Lock()
	defer g.told.mu.Unlock()
	var all []string
	for _, why := range limit.Causes() {
		if n := g.told.counts[listener+" "+why.String()]; n > 0 {
			all = append(all, fmt.Sprint(why, " ", n))
		}
	}
	return strings.Join(all, ", ")
}

// wires returns the wires on which a client has the identity sidecar. The wires both and
// both-h2 are DoH on a listener that takes CONNECTs, too, over HTTP/1.1 and HTTP/2.
func wires() []string { return []string{"udp", "tcp", "dot", "doh", "both", "both-h2"} }

// recorded returns the word for a wire in records.
func recorded(wire string) string {
	if strings.HasPrefix(wire, "both") {
		return "doh"
	}
	return wire
}

func newGateway(t *testing.T, o options) *gateway {
	t.Helper()
	g := &gateway{evidence: newEvidence(t, o.audit), upstream: newUpstream(t), policies: gatewaytest.NewPolicy(nil)}
	if !o.noPolicy {
		g.policies = gatewaytest.NewPolicy(compiled(t, policy()))
	}
	var err error
	if g.ca, err = authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example")}); err != nil {
		t.Fatal(err)
	}
	resolver, err := resolve.New(resolve.Config{Servers: []resolve.Server{{Addr: g.upstream.addr}}, Names: o.names, Descriptors: o.descriptors})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(resolver.Close)
	look := resolver.Lookup
	if o.lookup != nil {
		look = o.lookup(look)
	}
	const plenty = 1 << 20
	resolved := gw.Resolver{
		Resolve: func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) { return nil, nil },
		DNS:     dns.Resolver{Cached: resolver.Cached, Lookup: look, Bind: resolver.Bind},
	}
	if o.resolves {
		resolved.Resolve, resolved.Bound = resolver.Resolve, resolver.Bound
	}
	opened := listeners(cmp.Or(o.address, "127.0.0.1") + ":0")
	if o.unmapped {
		delete(opened[1].Sources, netip.MustParsePrefix("127.0.0.0/8"))
	}
	g.Gateway = open(t, gw.Config{
		Policy: g.policies, Identity: gatewaytest.NewIdentity(g.snapshot(t)), Recorder: g.recorder, Log: slog.New(cmp.Or[slog.Handler](o.log, slog.DiscardHandler)),
		Resolver:      resolved,
		Listeners:     opened,
		HostAddresses: func() ([]netip.Addr, error) { return nil, nil },
		Limits: limit.Config{
			Connections: cmp.Or(o.connections, plenty), Handshakes: plenty, Requests: plenty, Strangers: time.Hour,
			Identity: allowlist.Limits{ConnectsPerSecond: plenty, DNSPerSecond: o.perSecond},
		},
		Metrics: gw.Metrics{Shed: g.told.add},
		DNS:     o.limits, DNSConnections: o.streams, MaxConnections: o.requests, Inspect: o.inspect, DrainTimeout: o.drain,
	})
	for i, addr := range []*netip.AddrPort{&g.dns, &g.mapped, &g.dot, &g.doh, &g.connect, &g.both} {
		*addr = netip.MustParseAddrPort(g.Listening()[i].Addr.String())
	}
	ctx, stop := context.WithCancel(context.Background())
	g.stop = stop
	var serving sync.WaitGroup
	serving.Go(func() { g.Serve(ctx) })
	t.Cleanup(func() {
		stop()
		serving.Wait()
	})
	return g
}

// open opens a gateway. It retries, since a port that is free for TCP may be taken for
// UDP.
func open(t *testing.T, cfg gw.Config) *gw.Gateway {
	t.Helper()
	for range 100 {
		g, err := gw.New(t.Context(), cfg)
		if err == nil {
			return g
		}
		if !strings.Contains(err.Error(), "is taken") {
			t.Fatal(err)
		}
	}
	t.Fatal("no port is free for both")
	return nil
}

// listeners returns one listener of each kind. The loopback addresses are mapped;
// 127.0.0.1 has an identity of its own.
func listeners(address string) []gw.Listener {
	return []gw.Listener{
		{Name: "dns", Address: address, Protocol: gw.DNS, Identity: gw.Fixed, ID: id("sidecar")},
		{Name: "mapped", Address: address, Protocol: gw.DNS, Identity: gw.SourceMap, Sources: map[netip.Prefix]spiffeid.ID{
			netip.MustParsePrefix("127.0.0.0/8"): id("nobody"), netip.MustParsePrefix("127.0.0.1/32"): id("mapped"),
			netip.MustParsePrefix("::1/128"): id("mapped"),
		}},
		{Name: "dot", Address: address, Protocol: gw.DoT},
		{Name: "doh", Address: address, Protocol: gw.DoH},
		{Name: "connect", Address: address},
		{Name: "both", Address: address, Protocol: gw.ConnectAndDoH},
	}
}

// mint returns the certificate of an identity, which is made once.
func (g *gateway) mint(t *testing.T, name string) tls.Certificate {
	t.Helper()
	g.minting.Lock()
	defer g.minting.Unlock()
	if made, ok := g.minted[name]; ok {
		return made
	}
	svid, err := g.ca.Mint(authority.Options{ID: id(name), DNS: []string{"gateway.example"}})
	if err != nil {
		t.Fatal(err)
	}
	if g.minted == nil {
		g.minted = make(map[string]tls.Certificate)
	}
	g.minted[name] = svid.TLS()
	return g.minted[name]
}

// snapshot returns the gateway's identity.
func (g *gateway) snapshot(t *testing.T) *identity.Snapshot {
	t.Helper()
	snapshot, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: g.mint(t, "gateway"), Bundles: []*x509bundle.Bundle{g.ca.X509Bundle()}, Generation: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

// The policies of these tests, as sentences.

func to(host string, options ...func(*allowlist.Rule)) allowlist.Rule {
	r := allowlist.Rule{At: "policy.yaml:1", Host: must(allowlist.ParseHostPattern(host))}
	for _, o := range options {
		o(&r)
	}
	return r
}

func types(types ...allowlist.QueryType) func(*allowlist.Rule) {
	return func(r *allowlist.Rule) { r.Types = types }
}

func into(ranges ...string) func(*allowlist.Rule) {
	return func(r *allowlist.Rule) {
		for _, p := range ranges {
			r.Addresses = append(r.Addresses, netip.MustParsePrefix(p))
		}
	}
}

func ended(r *allowlist.Rule) { r.Expires = time.Now().Add(-time.Hour) }

func entry(name string, allow ...allowlist.Rule) allowlist.Entry {
	return allowlist.Entry{Pattern: must(allowlist.ParseIdentityPattern("spiffe://test.example/" + name)), Allow: allow}
}

// policy lets sidecar resolve the names that the upstream server of these tests knows.
func policy() allowlist.Spec {
	sidecar := entry("sidecar",
		to("allowed.example"), to("*.one.example"), to("**.wild.example"), to("alias.example"), to("hidden.example"), to("bad-alias.example"),
		to("text.example", types(allowlist.TypeTXT)), to("inner.example"), to("mixed.example"), to("db.example", into("10.20.0.0/16")),
		to("service.example", types(allowlist.TypeSVCB)), to("gone.example"), to("empty.example"), to("broken.example"), to("many.example"), to("huge.example", types(allowlist.TypeTXT)), to("large.example", types(allowlist.TypeTXT)),
		to("crowd.example"), to("throng.example"), to("brief.example"), to("brief-gone.example"), to("*.shell.example", types(allowlist.TypeSSHFP, allowlist.TypeTLSA, allowlist.TypeURI)),
		to("old.example", ended), to("printer.local"),
		to("shut.localhost"), to("open.localhost", into("127.0.0.1/32", "::1/128"), types(allowlist.TypeTXT)), to("half.localhost", into("127.0.0.1/32")), to("deep.below.example"))
	sidecar.Deny = []allowlist.Rule{to("denied.wild.example"), {CIDR: netip.MustParsePrefix("8.8.4.0/24")}}
	observed := entry("observed")
	observed.Mode, observed.ObserveUntil = allowlist.ModeObserve, time.Now().Add(time.Hour)
	mapped := entry("mapped", to("allowed.example"))
	mapped.Accept = allowlist.ProofsOf(allowlist.ProofSourceMap)
	return allowlist.Spec{
		Version: "v1", Entries: []allowlist.Entry{sidecar, observed, mapped, entry("legacy", to("allowed.example")), entry("other", to("other.example"))},
		Quarantine: []allowlist.Quarantined{{Pattern: must(allowlist.ParseIdentityPattern("spiffe://test.example/legacy")), Reason: "INC-1", At: "policy.yaml:2"}},
	}
}

func compiled(t *testing.T, spec allowlist.Spec) *allowlist.Policy {
	t.Helper()
	policy, err := allowlist.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

// swap puts a policy into force.
func (g *gateway) swap(t *testing.T, spec allowlist.Spec) {
	t.Helper()
	g.policies.Put(compiled(t, spec))
}

// upstream is a DNS server that knows some names, and counts the packets that it gets.
type upstream struct {
	addr    netip.AddrPort
	packets atomic.Int64
	every   atomic.Bool // says that it knows every name
	down    atomic.Bool // says that it does not answer
}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	conn, l := samePort(t)
	u := &upstream{addr: netip.MustParseAddrPort(conn.LocalAddr().String())}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, peer, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if reply := u.reply(buf[:n], 1232); reply != nil {
				_, _ = conn.WriteToUDPAddrPort(reply, peer)
			}
		}
	})
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { u.stream(conn) })
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		_ = l.Close()
		serving.Wait()
	})
	return u
}

// samePort listens on a port that is free for both TCP and UDP.
func samePort(t *testing.T) (*net.UDPConn, net.Listener) {
	t.Helper()
	for range 100 {
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(l.Addr().String())))
		if err == nil {
			return conn, l
		}
		_ = l.Close()
	}
	t.Fatal("no port is free for both")
	return nil, nil
}

func (u *upstream) stream(conn net.Conn) {
	defer conn.Close()
	for {
		msg, err := readMessage(conn)
		if err != nil {
			return
		}
		if _, err := conn.Write(framed(u.reply(msg, 65535))); err != nil {
			return
		}
	}
}

func (u *upstream) reply(msg []byte, limit int) []byte {
	u.packets.Add(1)
	var q mdns.Msg
	if u.down.Load() || q.Unpack(msg) != nil {
		return nil
	}
	a := new(mdns.Msg)
	a.SetReply(&q)
	a.RecursionAvailable = true
	name := strings.ToLower(q.Question[0].Name)
	lines, known := zone()[name]
	if !known && u.every.Load() {
		lines, known = []string{name + " 60 A 93.184.216.34"}, true
	}
	switch {
	case name == "huge.example.": // with an OPT it would exceed the length of a message
		lines = slices.Repeat([]string{"huge.example. 60 TXT" + strings.Repeat(` "`+strings.Repeat("x", 249)+`"`, 4)}, 64)
	case name == "many.example.":
		for i := range 3900 {
			lines = append(lines, fmt.Sprintf("many.example. 60 A 93.184.%d.%d", i/256, i%256))
		}
	case name == "broken.example.":
		a.Rcode = mdns.RcodeServerFailure
	case strings.HasPrefix(name, "ede-"): // SERVFAIL with the extended error of that number
		a.Rcode = mdns.RcodeServerFailure
		a.SetEdns0(1232, false)
		number, _, _ := strings.Cut(name[len("ede-"):], ".")
		a.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_EDE{InfoCode: uint16(must(strconv.Atoi(number))), ExtraText: "said the server"}}
		return must(a.Pack())
	case strings.HasPrefix(name, "to-"): // an alias without records of its target
		a.Answer = []mdns.RR{must(mdns.NewRR(name + " 60 CNAME " + name[len("to-"):]))}
		return must(a.Pack())
	case strings.HasSuffix(name, ".loop.example."):
		lines = []string{name + " 60 A 127.0.0.1"}
	case !known && !strings.HasSuffix(name, ".wild.example.") && !strings.HasSuffix(name, ".observed.example."):
		a.Rcode = mdns.RcodeNameError
	case strings.HasPrefix(name, "zero"): // never cached
		lines = []string{name + " 0 A 93.184.216.34"}
	case !known:
		lines = []string{name + " 60 A 93.184.216.34"}
	}
	u.fill(a, &q, lines)
	a.Truncate(limit)
	return must(a.Pack())
}

// fill adds the aliases and the records of the queried type to an answer.
func (u *upstream) fill(a, q *mdns.Msg, lines []string) {
	for _, line := range lines {
		rr := must(mdns.NewRR(line))
		if strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
			rr.Header().Name = q.Question[0].Name // with the letter case of the question
		}
		if h := rr.Header(); h.Rrtype == q.Question[0].Qtype || h.Rrtype == mdns.TypeCNAME {
			a.Answer = append(a.Answer, rr)
		}
	}
	if len(a.Answer) == 0 {
		soa := "example. 300 SOA ns.example. admin.example. 1 2 3 4 300"
		if strings.EqualFold(a.Question[0].Name, "brief-gone.example.") {
			soa = "example. 1 SOA ns.example. admin.example. 1 2 3 4 1"
		}
		a.Ns = append(a.Ns, must(mdns.NewRR(soa)))
	}
}

func zone() map[string][]string {
	large := make([]string, 0, 40)
	for i := range 40 {
		large = append(large, fmt.Sprintf("large.example. 60 TXT %q", strings.Repeat("x", 60)+fmt.Sprint(i)))
	}
	crowd := func(name string, n int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("%s 60 A 93.184.217.%d", name, i))
		}
		return all
	}
	return map[string][]string{
		"crowd.example.":     crowd("crowd.example.", 12),
		"throng.example.":    crowd("throng.example.", 100),
		"allowed.example.":   {"allowed.example. 60 A 93.184.216.34", "allowed.example. 60 AAAA 2606:2800:220:1::1"},
		"x.one.example.":     {"x.one.example. 60 A 93.184.216.34"},
		"alias.example.":     {"alias.example. 60 CNAME cdn.elsewhere.example.", "cdn.elsewhere.example. 60 A 93.184.216.35"},
		"bad-alias.example.": {"bad-alias.example. 60 CNAME denied.wild.example.", "denied.wild.example. 60 A 93.184.216.35"},
		"text.example.":      {`text.example. 60 TXT "hello"`},
		"inner.example.":     {"inner.example. 60 A 10.0.0.1", "inner.example. 60 A 169.254.169.254"},
		"hidden.example.":    {"hidden.example. 60 A 8.8.4.4"},
		"mixed.example.":     {"mixed.example. 60 A 10.0.0.1", "mixed.example. 60 A 93.184.216.34"},
		"db.example.":        {"db.example. 60 A 10.20.0.1"},
		"service.example.":   {`service.example. 60 HTTPS 1 . alpn="h2" ipv4hint="10.0.0.1,93.184.216.34" ech="AEX+DQBBZAAgACB="`},
		"a.shell.example.": {
			"a.shell.example. 60 SSHFP 4 2 " + strings.Repeat("0F", 32), "a.shell.example. 60 TLSA 3 1 1 " + strings.Repeat("f0", 32),
			`a.shell.example. 60 URI 10 1 "ftp://Shell.example/pub"`, "a.shell.example. 60 A 93.184.216.34",
		},
		"cut.shell.example.": {`cut.shell.example. 60 TYPE52 \# 3 030101`},
		"empty.example.":     {},
		"large.example.":     large,
		"brief.example.":     {"brief.example. 1 A 93.184.216.37"},
		"printer.local.":     {"printer.local. 60 A 93.184.216.34"},
		"other.example.":     {"other.example. 60 A 93.184.216.36"},
	}
}

// evidence collects the records of gateways.
type evidence struct {
	recorder *audit.Recorder
	records  chan record
	spans    *tracetest.InMemoryExporter
	full     atomic.Bool // says that the disk is full
	lossy    bool        // says that the test expects records to be lost
}

// record is a record as a reader of the log sees it.
type record struct {
	Event, ID, Listener, Protocol, Wire, Identity, Host, Verdict, Reason, Mode string

	Unproven       bool
	IdentitySource string `json:"identity_source"`
	WouldReason    string `json:"would_reason"`
	Class          string `json:"address_class"`
	Detail         string
	Attributed     string
	QType          string `json:"qtype"`
	RCode          string `json:"rcode"`
	Answers        *int   `json:"answers"`
	Filtered       int    `json:"filtered"`
	Source         string `json:"source"`
	Answered       []string
	Refused        []string `json:"addresses_refused"`
	Instance       string
	Owner, Ticket  string
	Policy         string
	Generation     uint64
	Count          uint64
}

func newEvidence(t *testing.T, cfg audit.Config) *evidence {
	t.Helper()
	e := &evidence{records: make(chan record, audit.DefaultQueue), spans: tracetest.NewInMemoryExporter()}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithSyncer(e.spans))
	if cfg.Sinks == nil {
		cfg.Sinks = []audit.SinkConfig{{Name: "test", Sink: audit.NewLines(e, native.Render)}}
	}
	if cfg.Tracer == nil {
		cfg.Tracer = provider.Tracer("test")
	}
	var err error
	if e.recorder, err = audit.New(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := e.recorder.Close(ctx); err != nil {
			t.Error(err)
		}
		if stats := e.recorder.Stats(); stats.Lost() > 0 && !e.lossy {
			t.Errorf("records were lost: %+v", stats)
		}
	})
	return e
}

// Write takes lines of the log, in place of a file.
func (e *evidence) Write(p []byte) (int, error) {
	if e.full.Load() {
		return 0, syscall.ENOSPC
	}
	for line := range bytes.Lines(p) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return 0, fmt.Errorf("record %q: %w", line, err)
		}
		switch audit.Event(r.Event) { //nolint:exhaustive // the tests know which policy is in force
		case audit.EventPolicyReload, audit.EventQuarantine:
			continue
		}
		select {
		case e.records <- r:
		default: // a test with very many records does not read them
		}
	}
	return len(p), nil
}

func (e *evidence) next(t *testing.T) record {
	t.Helper()
	select {
	case r := <-e.records:
		return r
	case <-time.After(patience):
		t.Fatal("no record")
		return record{}
	}
}

func (e *evidence) none(t *testing.T) {
	t.Helper()
	select {
	case r := <-e.records:
		t.Errorf("a record that nobody expects: %+v", r)
	default:
	}
}

// clients

// client sends queries over one wire.
type client interface {
	// ask sends a packet and returns the answer. The error says that there is none.
	ask(msg []byte) ([]byte, error)
}

var errSilence = errors.New("no answer")

// dial connects over a wire as an identity; "" presents no certificate. Over udp and
// tcp every client has the identity sidecar.
func (g *gateway) dial(t *testing.T, wire, name string) client {
	t.Helper()
	switch wire {
	case "udp":
		return dialUDP(t, g.dns)
	case "mapped":
		return dialUDP(t, g.mapped)
	case "tcp":
		return &streamClient{dialTCP(t, g.dns)}
	case "dot":
		conn := tls.Client(dialTCP(t, g.dot), g.tls(t, name, "dot"))
		return &streamClient{conn}
	case "doh":
		return g.dialDoH(t, name)
	case "both":
		return g.dialBoth(t, name, "http/1.1")
	case "both-h2":
		return g.dialBoth(t, name, "h2")
	}
	t.Fatal(wire)
	return nil
}

func (g *gateway) tls(t *testing.T, name string, protocols ...string) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(g.ca.Bundle())
	config := &tls.Config{RootCAs: roots, ServerName: "gateway.example", NextProtos: protocols}
	if name != "" {
		config.Certificates = []tls.Certificate{g.mint(t, name)}
	}
	return config
}

func dialTCP(t *testing.T, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn := must(net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr)))
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

type udpClient struct{ *net.UDPConn }

func dialUDP(t *testing.T, addr netip.AddrPort) udpClient {
	t.Helper()
	conn := must(net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr)))
	t.Cleanup(func() { _ = conn.Close() })
	return udpClient{conn}
}

func (c udpClient) ask(msg []byte) ([]byte, error) {
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	return c.read(patience)
}

func (c udpClient) read(wait time.Duration) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	buf := make([]byte, 65535)
	n, err := c.Read(buf)
	return buf[:n], err
}

type streamClient struct{ net.Conn }

func (c *streamClient) ask(msg []byte) ([]byte, error) {
	if _, err := c.Write(framed(msg)); err != nil {
		return nil, err
	}
	return readMessage(c)
}

func framed(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
}

func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

type dohClient struct {
	*http.Client
	url string
}

func (g *gateway) dialDoH(t *testing.T, name string) *dohClient {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: g.tls(t, name), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &dohClient{&http.Client{Transport: transport, Timeout: 2 * patience}, "https://" + g.doh.String() + dns.DoHPath}
}

// dialBoth returns a client for queries on the listener that takes CONNECTs, too. protocol
// is that of ALPN.
func (g *gateway) dialBoth(t *testing.T, name, protocol string) *dohClient {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig: g.tls(t, name, protocol), ForceAttemptHTTP2: protocol == "h2",
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, g.both.String())
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &dohClient{&http.Client{Transport: transport, Timeout: 2 * patience}, "https://gateway.example:" + strconv.Itoa(int(g.both.Port())) + dns.DoHPath}
}

func (c *dohClient) ask(msg []byte) ([]byte, error) {
	resp, err := c.Post(c.url, "application/dns-message", bytes.NewReader(msg))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%w: %s", errSilence, resp.Status)
	}
	return body, err
}

// question returns a query for "TYPE name" or "name" with an OPT, and without one after
// "plain".
func question(text string) *mdns.Msg {
	text, plain := strings.CutPrefix(text, "plain ")
	kind, name, found := strings.Cut(text, " ")
	if !found {
		kind, name = "A", text
	}
	typ, ok := mdns.StringToType[kind]
	if !ok {
		panic(kind)
	}
	m := new(mdns.Msg)
	m.SetQuestion(mdns.Fqdn(name), typ)
	if !plain {
		m.SetEdns0(1232, false)
	}
	return m
}

// ask sends a query and parses the answer.
func ask(t *testing.T, c client, text string) *mdns.Msg {
	t.Helper()
	q := question(text)
	raw, err := c.ask(must(q.Pack()))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	a := new(mdns.Msg)
	if err := a.Unpack(raw); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if a.Id != q.Id || !a.Response || !a.RecursionAvailable || len(a.Question) != 1 || a.Question[0] != q.Question[0] {
		t.Errorf("%s: header %+v, question %v", text, a.MsgHdr, a.Question)
	}
	if (a.IsEdns0() != nil) != (q.IsEdns0() != nil) {
		t.Errorf("%s: OPT in the answer: %v", text, a.IsEdns0())
	}
	return a
}

// say returns an answer as text: the code, the data of the records, "soa of OWNER", and
// the number of the extended error with its reason.
func say(a *mdns.Msg) string {
	words := []string{mdns.RcodeToString[a.Rcode]}
	if a.Truncated {
		words = append(words, "truncated")
	}
	for _, rr := range a.Answer {
		words = append(words, strings.Join(strings.Fields(rr.String())[3:], " "))
	}
	for _, rr := range a.Ns {
		words = append(words, "soa of "+rr.Header().Name)
	}
	if opt := a.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*mdns.EDNS0_EDE); ok {
				reason, _, _ := strings.Cut(ede.ExtraText, " d=")
				words = append(words, strings.TrimSpace(fmt.Sprintf("ede %d %s", ede.InfoCode, strings.TrimPrefix(reason, "r="))))
			}
		}
	}
	return strings.Join(words, ", ")
}

// decisionID returns the id in the text of the extended error.
func decisionID(a *mdns.Msg) string {
	for _, o := range a.IsEdns0().Option {
		if ede, ok := o.(*mdns.EDNS0_EDE); ok {
			_, id, _ := strings.Cut(ede.ExtraText, " d=")
			return id
		}
	}
	return ""
}
