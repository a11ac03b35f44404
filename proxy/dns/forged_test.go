package dns_test

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// In these tests the victim is the identity "mapped", which has a certificate, too. A
// client at 127.0.0.1 that asks the listener with the address map has that identity, as
// a client that forges the address would have it.

// victims returns a policy for the victim, which accepts every proof of its identity.
func victims(port uint16, change func(*allowlist.Entry)) allowlist.Spec {
	at := func(r *allowlist.Rule) {
		r.Ports = []allowlist.PortRange{{First: port, Last: port}}
		r.Addresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	}
	e := entry("mapped", to("*.loop.example", at), to("mine.loop.example", at, func(r *allowlist.Rule) { r.TLS = allowlist.TLSOff }))
	e.Accept = allowlist.ProofsOf(allowlist.ProofX509SVID, allowlist.ProofListener, allowlist.ProofSourceMap)
	if change != nil {
		change(&e)
	}
	return allowlist.Spec{Version: "v", Entries: []allowlist.Entry{e, entry("other", to("*.loop.example", at))}}
}

// newOrigin starts a server that accepts connections and closes them.
func newOrigin(t *testing.T) (port uint16) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// decisions returns the next n records of decisions.
func (e *evidence) decisions(t *testing.T, n int) (all []record) {
	t.Helper()
	for len(all) < n {
		if r := e.next(t); audit.Event(r.Event) == audit.EventDecision {
			all = append(all, r)
		}
	}
	return all
}

// TestForgedDatagramsSpendNoNames checks that a hundred forged queries use up all new
// names below a wildcard that the address has, and none of those that the certificate
// has.
func TestForgedDatagramsSpendNoNames(t *testing.T) {
	const forged = 100 // resolve.DefaultNames
	g, port := newGateway(t, options{resolves: true, names: forged, perSecond: 1 << 20}), newOrigin(t)
	g.swap(t, victims(port, nil))
	attacker := dialUDP(t, g.mapped)
	for i := range forged {
		if got := say(ask(t, attacker, fmt.Sprintf("f%d.loop.example", i))); got != "NOERROR, A 127.0.0.1" {
			t.Fatalf("forged name %d: %s", i, got)
		}
	}
	must(attacker.Write(must(question("beyond.loop.example").Pack()))) // this query is dropped
	for _, r := range g.decisions(t, forged+1) {                       // the records may come in any order
		if (r.Reason == "name-budget") != (r.Host == "beyond.loop.example") {
			t.Errorf("%+v", r)
		}
		if r.Identity != id("mapped").String() || r.IdentitySource != "source-map" || !r.Unproven {
			t.Fatalf("a forged query is recorded as %+v", r)
		}
	}
	victim := g.tls(t, "mapped")
	for i := range 3 {
		name := fmt.Sprintf("v%d.loop.example", i)
		if status := g.connects(t, victim, fmt.Sprintf("%s:%d", name, port)); status != http.StatusOK {
			t.Errorf("the victim's CONNECT to %s is answered %d", name, status)
		}
		if r := g.decisions(t, 1)[0]; r.Verdict != "allow" || r.IdentitySource != "x509-svid" || r.Unproven {
			t.Errorf("recorded as %+v", r)
		}
	}
	for _, wire := range []string{"dot", "doh"} {
		if got := say(ask(t, g.dial(t, wire, "mapped"), wire+".loop.example")); got != "NOERROR, A 127.0.0.1" {
			t.Errorf("the victim's query over %s: %s", wire, got)
		}
		if r := g.decisions(t, 1)[0]; r.Verdict != "allow" || r.IdentitySource != "x509-svid" || r.Unproven {
			t.Errorf("recorded as %+v", r)
		}
	}
}

// TestForgedDatagramsSpendNoQueries checks that forged queries spend none of the
// certificate's queries, neither of the victim's own budget nor of a shared one.
func TestForgedDatagramsSpendNoQueries(t *testing.T) {
	one := allowlist.Limits{DNSPerSecond: 1}
	for name, change := range map[string]func(*allowlist.Spec){
		"own": func(s *allowlist.Spec) { s.Entries[0].Limits = one },
		"shared": func(s *allowlist.Spec) {
			all := entry("**")
			all.SharedLimits = one
			s.Entries = append(s.Entries, all)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{perSecond: 1 << 20})
			spec := victims(443, nil)
			change(&spec)
			g.swap(t, spec)
			c, dropped := dialUDP(t, g.mapped), 0
			victim := g.dial(t, "dot", "mapped")
			const forged = 100
			for i := range forged {
				must(c.Write(must(question(fmt.Sprintf("f%d.loop.example", i)).Pack())))
			}
			for _, r := range g.decisions(t, forged) {
				if !r.Unproven || r.IdentitySource != "source-map" {
					t.Fatalf("a forged query is recorded as %+v", r)
				}
				if r.Reason == "rate-limited" {
					dropped++
				}
			}
			if dropped == 0 {
				t.Error("there is no bound for what is forged")
			}
			if got := say(ask(t, victim, "v.loop.example")); got != "NOERROR, A 127.0.0.1" {
				t.Errorf("the victim's query: %s", got)
			}
			if r := g.decisions(t, 1)[0]; r.Verdict != "allow" || r.IdentitySource != "x509-svid" || r.Unproven {
				t.Errorf("recorded as %+v", r)
			}
		})
	}
}

// TestForgedDatagramsDisplaceNoBinding checks that an answer which the victim got over DoT
// stays bound although one address asks for more names than there is room for. An address
// that was told to a mapped caller only may be used, too.
func TestForgedDatagramsDisplaceNoBinding(t *testing.T) {
	g, port := newGateway(t, options{resolves: true, perSecond: 1 << 20}), newOrigin(t)
	spec := victims(port, nil)
	spec.Entries[0].Allow[0].Ports[0] = allowlist.PortRange{First: 1, Last: 1} // so that these names do not open the port
	g.swap(t, spec)
	victim, literal := g.tls(t, "mapped"), fmt.Sprintf("127.0.0.1:%d", port)
	if status := g.connects(t, victim, literal); status != http.StatusForbidden {
		t.Fatalf("an address that nobody was told: %d", status)
	}
	attacker := g.dial(t, "mapped", "")
	ask(t, attacker, "mine.loop.example")
	if status := g.connects(t, victim, literal); status != http.StatusOK {
		t.Errorf("an address that was told to an address: %d", status)
	}
	ask(t, g.dial(t, "dot", "mapped"), "mine.loop.example")
	for i := range 50 {
		if got := say(ask(t, attacker, fmt.Sprintf("f%d.loop.example", i))); got != "NOERROR, A 127.0.0.1" {
			t.Fatal(got)
		}
	}
	if status := g.connects(t, victim, literal); status != http.StatusOK {
		t.Errorf("the address that the victim was told over DoT, after forged ones: %d", status)
	}
	if status := g.connects(t, g.tls(t, "other"), literal); status != http.StatusForbidden {
		t.Errorf("the address that somebody else was told: %d", status)
	}
}

// TestForgedDenialsAreCollapsedApart checks that a denial over a connection, of the
// same listener or by certificate, is not merged into a denial of a datagram.
func TestForgedDenialsAreCollapsedApart(t *testing.T) {
	g := newGateway(t, options{perSecond: 1 << 20, audit: audit.Config{Collapse: time.Hour}})
	g.swap(t, victims(443, nil))
	attacker := g.dial(t, "mapped", "")
	first := decisionID(ask(t, attacker, "evil.test"))
	for range 20 {
		if got := decisionID(ask(t, attacker, "evil.test")); got != first {
			t.Errorf("a forged denial of the same name has the id %s, want %s", got, first)
		}
	}
	for wire, c := range map[string]client{
		"tcp": &streamClient{dialTCP(t, g.mapped)}, "dot": g.dial(t, "dot", "mapped"), "doh": g.dial(t, "doh", "mapped"),
	} {
		if own := decisionID(ask(t, c, "evil.test")); own == first {
			t.Errorf("the denial over %s is merged with forged ones", wire)
		}
	}
	for _, r := range g.decisions(t, 4) { // one for all forged datagrams, and one for each of the others
		if r.Unproven != (r.ID == first) || (r.IdentitySource == "source-map") != (r.Wire == "tcp" || r.Wire == "udp") || r.Reason != "not-on-allowlist" {
			t.Errorf("recorded as %+v", r)
		}
	}
	closeRecorder(t, g)
	n := 0
	for r := range drained(g) {
		if n++; r.Event != string(audit.EventCollapsed) || r.Count != 20 || !r.Unproven || r.IdentitySource != "source-map" || r.Wire != "udp" {
			t.Errorf("%+v", r)
		}
	}
	if n != 1 {
		t.Errorf("%d records of what was collapsed", n)
	}
}

// closeRecorder waits until all records are written.
func closeRecorder(t *testing.T, g *gateway) {
	t.Helper()
	if err := g.recorder.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// drained yields the records that have been written.
func drained(g *gateway) func(func(record) bool) {
	return func(yield func(record) bool) {
		for len(g.records) > 0 {
			if !yield(<-g.records) {
				return
			}
		}
	}
}

// TestOnlyDatagramsAreUnproven checks records and spans of allowed, denied and
// malformed queries, by every kind of identity that a listener gives.
func TestOnlyDatagramsAreUnproven(t *testing.T) {
	g := newGateway(t, options{})
	for _, row := range []struct {
		wire   string
		client client
		source string
	}{
		{"udp", g.dial(t, "udp", ""), "listener"},
		{"udp", g.dial(t, "mapped", ""), "source-map"},
		{"tcp", g.dial(t, "tcp", ""), "listener"},
		{"tcp", &streamClient{dialTCP(t, g.mapped)}, "source-map"},
		{"dot", g.dial(t, "dot", "sidecar"), "x509-svid"},
		{"doh", g.dial(t, "doh", "sidecar"), "x509-svid"},
	} {
		for _, text := range []string{"allowed.example", "evil.test", "AXFR allowed.example"} {
			g.spans.Reset()
			ask(t, row.client, text)
			r := g.decisions(t, 1)[0]
			if r.Wire != row.wire || r.IdentitySource != row.source || r.Unproven != (row.wire == "udp") {
				t.Errorf("%s over %s: %+v", text, row.wire, r)
			}
			said := false
			for _, span := range g.spans.GetSpans() {
				for _, kv := range span.Attributes {
					said = said || string(kv.Key) == "egress.unproven" && kv.Value.AsBool()
				}
			}
			if said != r.Unproven {
				t.Errorf("%s over %s: the span says unproven: %v", text, row.wire, said)
			}
		}
	}
}

// TestQuarantineCoversEveryProof checks that a quarantine applies at every door and
// ends the connections of the identity, whatever its proof.
func TestQuarantineCoversEveryProof(t *testing.T) {
	g, port := newGateway(t, options{resolves: true}), newOrigin(t)
	g.swap(t, victims(port, nil))
	open := map[string]client{"tcp": &streamClient{dialTCP(t, g.mapped)}, "dot": g.dial(t, "dot", "mapped")}
	for _, c := range open {
		ask(t, c, "mine.loop.example")
	}
	ask(t, g.dial(t, "mapped", ""), "mine.loop.example")
	g.decisions(t, len(open)+1)

	spec := victims(port, nil)
	spec.Quarantine = []allowlist.Quarantined{{Pattern: must(allowlist.ParseIdentityPattern(id("mapped").String())), Reason: "INC-9", At: "quarantine.yaml:1"}}
	g.swap(t, spec)
	for wire, c := range open {
		if _, err := c.(*streamClient).Read(make([]byte, 1)); err == nil {
			t.Errorf("the connection over %s is still open", wire)
		}
	}
	const refused = "NXDOMAIN, soa of loop.example., ede 15 quarantined"
	for wire, c := range map[string]client{
		"udp": g.dial(t, "mapped", ""), "tcp": &streamClient{dialTCP(t, g.mapped)},
		"dot": g.dial(t, "dot", "mapped"), "doh": g.dial(t, "doh", "mapped"),
	} {
		if got := say(ask(t, c, "mine.loop.example")); got != refused {
			t.Errorf("over %s: %s", wire, got)
		}
		if r := g.decisions(t, 1)[0]; r.Reason != "quarantined" || r.Detail != "INC-9" || r.Wire != wire || r.Unproven != (wire == "udp") {
			t.Errorf("over %s: recorded as %+v", wire, r)
		}
	}
	for _, target := range []string{"mine.loop.example", "127.0.0.1"} { // the identity still has a binding to both
		if status := g.connects(t, g.tls(t, "mapped"), fmt.Sprintf("%s:%d", target, port)); status != http.StatusForbidden {
			t.Errorf("CONNECT to %s: %d", target, status)
		}
		if r := g.decisions(t, 1)[0]; r.Reason != "quarantined" || r.Detail != "INC-9" || r.IdentitySource != "x509-svid" {
			t.Errorf("CONNECT to %s: recorded as %+v", target, r)
		}
	}
}

// TestAnswerToADatagramIsBoundedInSize checks what docs/dns.md says about the size of an
// answer that goes to a forged address.
func TestAnswerToADatagramIsBoundedInSize(t *testing.T) {
	g := newGateway(t, options{unmapped: true})
	spec := policy()
	for i := range spec.Entries {
		if spec.Entries[i].Pattern.String() == id("mapped").String() {
			spec.Entries[i].Allow = append(spec.Entries[i].Allow, to("large.example", types(allowlist.TypeTXT)))
		}
	}
	g.swap(t, spec)
	from := func(addr string) udpClient {
		local := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr + ":0"))
		conn := must(net.DialUDP("udp", local, net.UDPAddrFromAddrPort(g.mapped)))
		t.Cleanup(func() { _ = conn.Close() })
		return udpClient{conn}
	}
	for _, row := range []struct {
		from, text string
		most       func(query int) int
	}{
		{"127.0.0.1", "TXT large.example", func(int) int { return 1232 }},
		{"127.0.0.1", "plain TXT large.example", func(int) int { return 512 }},
		{"127.0.0.1", "allowed.example", func(int) int { return 1232 }},
		{"127.0.0.7", "a.io", func(query int) int { return query + 64 }},
		{"127.0.0.7", "plain a.io", func(query int) int { return query }},
		{"127.0.0.7", "TXT " + strings.Repeat("a23456789.", 20) + "example", func(query int) int { return query + 64 }},
	} {
		q := must(question(row.text).Pack())
		answer, err := from(row.from).ask(q)
		if err != nil || len(answer) > row.most(len(q)) {
			t.Errorf("%s from %s: %d bytes for %d, at most %d (%v)", row.text, row.from, len(answer), len(q), row.most(len(q)), err)
		}
	}
	if q := len(must(question("a.io").Pack())); q != 33 {
		t.Errorf("the smallest question has %d bytes", q)
	}
	if q := len(must(question("plain a.io").Pack())); q != 22 {
		t.Errorf("the smallest question without EDNS has %d bytes", q)
	}
}
