package dns_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestTooManyQueries checks that a query over the limit is refused on a stream, dropped
// in a datagram, and recorded in both cases, and that another identity is not affected.
func TestTooManyQueries(t *testing.T) {
	g := newGateway(t, options{perSecond: 1})
	stream := g.dial(t, "tcp", "sidecar")
	refused := false
	for range 50 {
		if say(ask(t, stream, "denied.example")) == "REFUSED, ede 18 rate-limited" {
			refused = true
			break
		}
	}
	if !refused {
		t.Fatal("50 queries were answered within the limit of one a second")
	}
	datagrams := g.dial(t, "udp", "sidecar").(udpClient)
	before := g.Stats().DNS.Shed
	for range 50 {
		if _, err := datagrams.Write(must(question("denied.example").Pack())); err != nil {
			t.Fatal(err)
		}
	}
	for {
		if r := g.next(t); r.Wire == "udp" && r.Reason == "rate-limited" {
			if r.RCode != "" || r.Answers != nil || g.Stats().DNS.Shed == before {
				t.Errorf("record %+v, shed %+v", r, g.Stats().DNS)
			}
			break
		}
	}
	if got := say(ask(t, g.dial(t, "dot", "other"), "other.example")); got != "NOERROR, A 93.184.216.36" {
		t.Errorf("another identity: %s", got)
	}
	nobody := g.dial(t, "dot", "")
	for range 50 { // all callers without an identity share a budget, too
		if say(ask(t, nobody, "denied.example")) == "REFUSED, ede 18 rate-limited" {
			return
		}
	}
	t.Error("50 queries without an identity were answered within the limit of one a second")
}

// TestQueryLimitsOfThePolicy checks that the policy's limits override the default, can be
// shared, and change with the policy.
func TestQueryLimitsOfThePolicy(t *testing.T) {
	g := newGateway(t, options{})
	refused := func(c client) bool {
		for range 50 {
			if say(ask(t, c, "denied.example")) == "REFUSED, ede 18 rate-limited" {
				return true
			}
		}
		return false
	}
	set := func(own, shared int) {
		spec, all := policy(), entry("**")
		spec.Entries[0].Limits.DNSPerSecond, all.SharedLimits.DNSPerSecond = own, shared
		spec.Entries = append(spec.Entries, all)
		g.swap(t, spec)
	}
	sidecar, other := g.dial(t, "dot", "sidecar"), g.dial(t, "doh", "other")
	set(1, 0)
	if !refused(sidecar) || refused(other) {
		t.Error("a limit of one identity: that identity is not refused, or another one is")
	}
	set(0, 1)
	if !refused(sidecar) || !refused(other) {
		t.Error("a shared limit: not both are refused")
	}
	set(0, 0)
	if refused(sidecar) || refused(other) {
		t.Error("without them somebody is refused")
	}
}

// holding returns a look-up function that blocks until the test ends or release is
// called.
func holding(t *testing.T) (instead func(lookup) lookup, waiting chan string, release func()) {
	t.Helper()
	gate := make(chan struct{})
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	waiting = make(chan string, 1024)
	instead = func(lookup) lookup {
		return func(ctx context.Context, _ resolve.Asker, _ resolve.Question) (resolve.Answer, error) {
			waiting <- ""
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return resolve.Answer{}, &allowlist.ReasonError{Reason: allowlist.ResolveTimeout, Err: context.DeadlineExceeded}
		}
	}
	return instead, waiting, release
}

func TestTooManyLookups(t *testing.T) {
	for _, row := range []struct {
		limits dns.Limits
		want   string
	}{
		{dns.Limits{InFlight: 3}, "REFUSED, ede 18 rate-limited"},
		{dns.Limits{Total: 3}, "REFUSED, ede 18 busy"},
	} {
		lookup, waiting, release := holding(t)
		g := newGateway(t, options{limits: row.limits, lookup: lookup})
		c := g.dial(t, "dot", "sidecar").(*streamClient)
		for i := range 3 {
			if _, err := c.Write(framed(must(question(fmt.Sprintf("a%d.wild.example", i)).Pack()))); err != nil {
				t.Fatal(err)
			}
			<-waiting
		}
		if got := say(ask(t, c, "b.wild.example")); got != row.want {
			t.Errorf("%s, want %s", got, row.want)
		}
		if got := say(ask(t, c, "denied.example")); got != "NXDOMAIN, soa of example., ede 15 not-on-allowlist" {
			t.Errorf("a denial needs no room: %s", got)
		}
		release()
		for range 3 {
			if _, err := readMessage(c); err != nil {
				t.Fatal(err)
			}
		}
		if got := say(ask(t, c, "b.wild.example")); got != "SERVFAIL, ede 22 resolve-timeout" {
			t.Errorf("with room again: %s", got)
		}
	}
}

// TestQueriesOfOneStreamAreBounded checks that a query beyond the bound is not even read.
func TestQueriesOfOneStreamAreBounded(t *testing.T) {
	lookup, waiting, release := holding(t)
	g := newGateway(t, options{limits: dns.Limits{PerStream: 4}, lookup: lookup})
	c := g.dial(t, "tcp", "sidecar").(*streamClient)
	for i := range 8 {
		if _, err := c.Write(framed(must(question(fmt.Sprintf("a%d.wild.example", i)).Pack()))); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		<-waiting
	}
	if got := say(ask(t, g.dial(t, "tcp", "sidecar"), "denied.example")); got != "NXDOMAIN, soa of example., ede 15 not-on-allowlist" {
		t.Errorf("on another connection: %s", got)
	}
	if len(waiting) != 0 {
		t.Error("a fifth query was read")
	}
	release()
	for range 8 {
		if _, err := readMessage(c); err != nil {
			t.Fatal(err)
		}
	}
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
		<-time.After(10 * time.Millisecond) // between two polls
	}
}

// TestDistinctNamesAreBounded checks the bound on the names below a wildcard that are sent
// to servers.
func TestDistinctNamesAreBounded(t *testing.T) {
	g := newGateway(t, options{names: 10})
	c := g.dial(t, "dot", "sidecar")
	answers := map[string]int{}
	for i := range 50 {
		answers[say(ask(t, c, fmt.Sprintf("n%d.wild.example", i)))]++
	}
	if answers["NOERROR, A 93.184.216.34"] != 10 || answers["SERVFAIL, ede 18 name-budget"] != 40 || g.upstream.packets.Load() != 10 {
		t.Errorf("%v, %d packets", answers, g.upstream.packets.Load())
	}
}

// TestQuestionsSentForTheSameNamesAreBounded checks that queries for the same few names
// below a wildcard, in any order and letter case and over any door, are sent no more often
// than the bound allows, and that names in the cache and other names are still answered.
func TestQuestionsSentForTheSameNamesAreBounded(t *testing.T) {
	g := newGateway(t, options{names: 2})
	doors := []client{g.dial(t, "tcp", ""), g.dial(t, "dot", "sidecar"), g.dial(t, "doh", "sidecar")}
	ask(t, doors[0], "kept.wild.example")
	answers := map[string]int{}
	for i := range 60 {
		name := []string{"zero.wild.example", "Zero.wILD.example"}[i/3%2]
		answers[say(ask(t, doors[i%len(doors)], name))]++
	}
	if answers["NOERROR, A 93.184.216.34"] != 19 || answers["SERVFAIL, ede 18 name-budget"] != 41 || g.upstream.packets.Load() != 20 {
		t.Errorf("%v, %d packets", answers, g.upstream.packets.Load())
	}
	for _, name := range []string{"kept.wild.example", "allowed.example"} {
		if got := say(ask(t, doors[0], name)); got != "NOERROR, A 93.184.216.34" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestStateEndsConnectionsOfUnknownIdentities checks that a state which does not know an
// identity any more closes the connections of this identity and no others.
func TestStateEndsConnectionsOfUnknownIdentities(t *testing.T) {
	g := newGateway(t, options{})
	dot, doh := g.dial(t, "dot", "other").(*streamClient), g.dial(t, "doh", "other")
	stays, unknown := g.dial(t, "dot", "sidecar"), g.dial(t, "dot", "stranger")
	for _, c := range []client{dot, doh, stays, unknown} {
		ask(t, c, "other.example")
	}
	if n := g.Registry().Len(); n != 3 {
		t.Errorf("%d connections are registered, want those whose identity is known", n)
	}
	spec := policy()
	spec.Entries = spec.Entries[:len(spec.Entries)-1] // without the entry of other
	g.swap(t, spec)
	if rest, err := io.ReadAll(dot); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("DoT: % x, %v", rest, err)
	}
	if got := say(ask(t, stays, "allowed.example")); got != "NOERROR, A 93.184.216.34" {
		t.Errorf("the other identity: %s", got)
	}
	if got := say(ask(t, doh, "other.example")); got != "NXDOMAIN, soa of example., ede 15 identity-unknown" {
		t.Errorf("on a new connection: %s", got)
	}
	waitFor(t, "end of the registered connections", func() bool { return g.Registry().Len() == 1 })
}

// TestAnswerForbiddenDuringTheLookUpIsNotSent checks that the answer to a running look-up
// is not sent.
func TestAnswerForbiddenDuringTheLookUpIsNotSent(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	g := newGateway(t, options{lookup: func(resolver lookup) lookup {
		return func(ctx context.Context, a resolve.Asker, q resolve.Question) (resolve.Answer, error) {
			held <- struct{}{}
			<-release
			return resolver(ctx, a, q)
		}
	}})
	c := g.dial(t, "udp", "").(udpClient)
	if _, err := c.Write(must(question("allowed.example").Pack())); err != nil {
		t.Fatal(err)
	}
	<-held
	spec := policy()
	spec.Entries[0].Deny = append(spec.Entries[0].Deny, to("allowed.example"))
	g.swap(t, spec)
	close(release)
	if raw, err := c.read(patience); err != nil || raw[3]&0xf != 2 {
		t.Errorf("% x, %v", raw, err)
	}
	if r := g.next(t); r.text() != "fail cut-off A SERVFAIL local" || r.Generation != 2 || r.Detail != "revoked" {
		t.Errorf("record %+v", r)
	}
}

func TestPanicEndsOneQuery(t *testing.T) {
	g := newGateway(t, options{lookup: func(resolver lookup) lookup {
		return func(ctx context.Context, a resolve.Asker, q resolve.Question) (resolve.Answer, error) {
			if q.Name.String() == "alias.example" {
				panic("the resolver of this test panics")
			}
			return resolver(ctx, a, q)
		}
	}})
	for i, wire := range wires() {
		c := g.dial(t, wire, "sidecar")
		if got := say(ask(t, c, "alias.example")); got != "SERVFAIL, ede 0 internal-error" {
			t.Errorf("%s: %s", wire, got)
		}
		if r := g.next(t); r.text() != "fail internal-error A SERVFAIL local" {
			t.Errorf("%s: record %+v", wire, r)
		}
		if got := say(ask(t, c, "allowed.example")); got != "NOERROR, A 93.184.216.34" {
			t.Errorf("%s: behind it %s", wire, got)
		}
		g.next(t)
		if got := g.Stats().DNS.Panics; got != uint64(i+1) {
			t.Errorf("%s: %d panics", wire, got)
		}
	}
}

// TestQueryIsRefusedIfItCannotBeRecorded checks that a query is refused if its record
// cannot be written, also if the answer is in the cache.
func TestQueryIsRefusedIfItCannotBeRecorded(t *testing.T) {
	g := newGateway(t, options{audit: audit.Config{Required: true}})
	g.lossy = true
	for i, wire := range wires() {
		c := g.dial(t, wire, "sidecar")
		g.full.Store(false)
		if got := say(ask(t, c, "allowed.example")); got != "NOERROR, A 93.184.216.34" {
			t.Errorf("%s: %s", wire, got)
		}
		if r := g.next(t); r.Verdict != "allow" {
			t.Errorf("%s: record %+v", wire, r)
		}
		g.full.Store(true)
		for _, name := range []string{"allowed.example", "denied.example"} {
			if got := say(ask(t, c, name)); got != "SERVFAIL, ede 0 audit-unavailable" {
				t.Errorf("%s: %s: %s", wire, name, got)
			}
		}
		// The record of each of the two queries failed twice: before the answer, and
		// when the query had ended.
		waitFor(t, "end of writing", func() bool { return g.recorder.Stats().Sinks[0].Failed == uint64(4*(i+1)) })
		g.none(t)
	}
}

// TestDroppedQueryWaitsForNoRecord checks, with required records and a disk that hangs,
// that queries over a limit do not delay others.
func TestDroppedQueryWaitsForNoRecord(t *testing.T) {
	hangs, disk := io.Pipe()
	g := newGateway(t, options{limits: dns.Limits{InFlight: 1}, audit: audit.Config{
		Required: true, Sinks: []audit.SinkConfig{{Name: "hangs", Sink: audit.NewLines(disk, native.Render)}},
	}})
	t.Cleanup(func() { _ = hangs.Close() })
	g.lossy = true
	c := g.dial(t, "udp", "").(udpClient)
	const queries = 100
	for range queries {
		if _, err := c.Write(must(question("denied.example").Pack())); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "reading of the queries", func() bool { return g.Stats().DNS.Shed >= queries/2 })
}

// TestIdenticalDenialsShareARecord checks that the answer names the record that it
// shares.
func TestIdenticalDenialsShareARecord(t *testing.T) {
	g := newGateway(t, options{audit: audit.Config{Collapse: time.Hour}})
	c := g.dial(t, "dot", "sidecar")
	first := decisionID(ask(t, c, "denied.example"))
	for range 3 {
		if got := decisionID(ask(t, c, "denied.example")); got != first {
			t.Errorf("id %s, want that of the first, %s", got, first)
		}
	}
	if got := decisionID(ask(t, c, "AAAA denied.example")); got == first {
		t.Error("another type is not identical")
	}
}

// lastSpan calls ends for every span, before the query of the span is done.
type lastSpan struct {
	sdktrace.SpanExporter

	ends func()
}

func (s lastSpan) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	s.ends()
	return nil
}

// TestConnectionOutlivesItsQueries checks that a connection, also a closed one over
// HTTP/2, does not end before its queries: their records would be made after the recorder
// has closed.
func TestConnectionOutlivesItsQueries(t *testing.T) {
	for _, wire := range []string{"tcp", "dot", "doh"} {
		ending, end := make(chan struct{}), make(chan struct{})
		exporter := lastSpan{tracetest.NewNoopExporter(), func() {
			close(ending)
			<-end
		}}
		provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
		g := newGateway(t, options{audit: audit.Config{Tracer: provider.Tracer("test")}})
		c := g.dial(t, wire, "sidecar")
		left := make(chan error)
		go func() {
			_, err := c.ask(must(question("denied.example").Pack()))
			left <- err
		}()
		<-ending
		g.Registry().EndAll(tunnel.Drain)
		for range 20 { // a connection that does not wait would have ended by then
			if g.Registry().Len() == 0 {
				t.Errorf("%s: the connection ended before its query", wire)
				break
			}
			<-time.After(10 * time.Millisecond)
		}
		close(end)
		waitFor(t, "end of the connection", func() bool { return g.Registry().Len() == 0 })
		<-left
	}
}

// slow makes the handshakes of clients wait until goOn is called. begun receives when
// one begins.
func slow(t *testing.T, configs ...*tls.Config) (begun chan string, goOn func()) {
	t.Helper()
	gate := make(chan struct{})
	goOn = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(goOn)
	begun = make(chan string, 1024)
	for _, config := range configs {
		certificate := config.Certificates[0]
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			begun <- ""
			<-gate
			return &certificate, nil
		}
	}
	return begun, goOn
}

// TestDrain checks that running queries are answered and that every connection ends,
// also one whose handshake is running, which gets no answer.
func TestDrain(t *testing.T) {
	t.Parallel()
	lookup, waiting, release := holding(t)
	g := newGateway(t, options{lookup: lookup, drain: 2 * patience})
	idle, busy, web := g.dial(t, "dot", "sidecar").(*streamClient), g.dial(t, "tcp", "sidecar").(*streamClient), g.dial(t, "doh", "sidecar")
	ask(t, idle, "denied.example")
	ask(t, web, "denied.example")
	if _, err := busy.Write(framed(must(question("a.wild.example").Pack()))); err != nil {
		t.Fatal(err)
	}
	<-waiting

	config, lateWeb := g.tls(t, "sidecar", "dot"), g.dialDoH(t, "sidecar")
	begun, goOn := slow(t, config, lateWeb.Transport.(*http.Transport).TLSClientConfig)
	denied := must(question("denied.example").Pack())
	late := make([]chan error, 2)
	for i, c := range []client{&streamClient{tls.Client(dialTCP(t, g.dot), config)}, lateWeb} {
		late[i] = make(chan error, 1)
		go func() {
			_, err := c.ask(denied)
			late[i] <- err
		}()
		<-begun
	}
	if err := idle.SetReadDeadline(time.Now().Add(patience)); err != nil { // less than its idle timeout
		t.Fatal(err)
	}
	g.stop()
	if _, err := readMessage(idle); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the idle connection: %v", err)
	}
	goOn()
	for i, wire := range []string{"DoT", "DoH"} {
		if err := <-late[i]; err == nil {
			t.Errorf("a connection that comes later over %s is answered", wire)
		}
	}
	release()
	if raw, err := readMessage(busy); err != nil || raw[3]&0xf != 2 {
		t.Errorf("what was under way: % x, %v", raw, err)
	}
	waitFor(t, "end of the connections", func() bool { return g.Registry().Len() == 0 })
}
