package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newContext(tb testing.TB) (context.Context, context.CancelFunc) {
	tb.Helper()
	return context.WithTimeout(tb.Context(), patience)
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// decide returns the decision on a request of spiffe://td.example/a for port 443 of a
// name, by a policy with the given allowed and denied patterns.
func decide(tb testing.TB, name string, allow, deny []string) *allowlist.Decision {
	tb.Helper()
	rules := func(patterns []string) []allowlist.Rule {
		var list []allowlist.Rule
		for _, text := range patterns {
			p, err := allowlist.ParseHostPattern(text)
			if err != nil {
				tb.Fatal(err)
			}
			list = append(list, allowlist.Rule{Host: p, Ports: []allowlist.PortRange{{First: 443, Last: 443}}})
		}
		return list
	}
	id, err := allowlist.ParseIdentityPattern("spiffe://td.example/a")
	if err != nil {
		tb.Fatal(err)
	}
	policy, err := allowlist.Compile(allowlist.Spec{Entries: []allowlist.Entry{{Pattern: id, Allow: rules(allow), Deny: rules(deny)}}})
	if err != nil {
		tb.Fatal(err)
	}
	dec := policy.Decide(allowlist.Request{
		ID: spiffeid.RequireFromString("spiffe://td.example/a"), Proof: allowlist.ProofX509SVID,
		Dest: allowlist.Destination{Host: host(tb, name), Port: 443},
	})
	return &dec
}

// resolve resolves an allowed name and returns its addresses, sorted, or the reason of
// the error.
func resolve(t *testing.T, r *Resolver, name string) string {
	t.Helper()
	return resolveFor(t, r, &allowlist.Decision{
		Outcome: allowlist.Outcome{Verdict: allowlist.Allow},
		Request: allowlist.Request{Dest: allowlist.Destination{Host: host(t, name), Port: 443}},
	})
}

func resolveFor(t *testing.T, r *Resolver, dec *allowlist.Decision) string {
	t.Helper()
	ctx, cancel := newContext(t)
	defer cancel()
	got, err := r.Resolve(ctx, dec)
	if err != nil {
		return describe(t, Answer{}, err)
	}
	slices.SortFunc(got, func(a, b allowlist.Resolved) int { return a.Addr.Compare(b.Addr) })
	var words []string
	for _, a := range got {
		words = append(words, a.Addr.String())
	}
	return strings.Join(words, " ")
}

func check(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func (s *server) wasAsked(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, s.questions()); diff != "" {
		t.Errorf("questions (-want +got):\n%s", diff)
	}
}

// TestWithoutAServer checks that configured hosts and address literals are resolved
// without asking a server.
func TestWithoutAServer(t *testing.T) {
	hosts := map[allowlist.Host][]netip.Addr{
		host(t, "db.internal.example"): addrs("::ffff:10.0.0.1", "2001:db8::1"),
		host(t, "empty.example"):       nil,
	}
	s := newServer(t, always(answer{code: dns.RcodeNameError}))
	r := newResolver(t, Config{Hosts: hosts}, s)
	hosts[host(t, "late.example")] = addrs("10.0.0.2") // the resolver has its own copy of the map
	check(t, resolve(t, r, "db.internal.example"), "10.0.0.1 2001:db8::1")
	check(t, resolve(t, r, "empty.example"), "")
	check(t, resolve(t, r, "192.0.2.1"), "192.0.2.1")
	check(t, resolve(t, r, "::ffff:192.0.2.1"), "192.0.2.1")
	check(t, resolve(t, r, "2001:db8::1"), "2001:db8::1")
	check(t, lookup(t, r, "db.internal.example", dns.TypeAAAA), "2001:db8::1 from local")
	check(t, lookup(t, r, "db.internal.example", dns.TypeMX), "NOERROR from local")
	s.wasAsked(t)
	check(t, resolve(t, r, "late.example"), "resolve-failed")
}

// TestNamesAreLookedUpWithoutASuffix checks that a name is looked up as it is and without a
// suffix, even a single label and a name that does not exist.
func TestNamesAreLookedUpWithoutASuffix(t *testing.T) {
	for _, name := range []string{"api.example", "single-label", "_svc._tcp.wild.example"} {
		s := newServer(t, always(answer{code: dns.RcodeNameError}))
		check(t, resolve(t, newResolver(t, Config{}, s), name), "resolve-failed")
		s.wasAsked(t, "udp A "+name, "udp AAAA "+name)
	}
}

// TestQuestionsThatAreNeverSent checks that types which are never asked for, address
// literals, zero questions and zero decisions are errors, and that no server is asked.
func TestQuestionsThatAreNeverSent(t *testing.T) {
	s := newServer(t, addresses("192.0.2.1"))
	r := newResolver(t, Config{}, s)
	for _, typ := range []uint16{dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR, dns.TypeNULL, dns.TypeKEY, dns.TypeOPT, 11, 65280, 65535, 0} {
		check(t, lookup(t, r, "api.example", typ), "resolve-failed")
	}
	check(t, lookup(t, r, "192.0.2.1", dns.TypeA), "resolve-failed")
	_, err := r.Lookup(t.Context(), Asker{}, Question{Type: dns.TypeA})
	check(t, describe(t, Answer{}, err), "resolve-failed")
	_, err = r.Resolve(t.Context(), &allowlist.Decision{Request: allowlist.Request{Dest: allowlist.Destination{Host: host(t, "api.example"), Port: 443}}})
	check(t, describe(t, Answer{}, err), "internal-error")
	s.wasAsked(t)
}

// TestAddressesOfBothFamilies checks that the addresses of both families are returned,
// also if one of them fails.
func TestAddressesOfBothFamilies(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		switch {
		case q.name == "both.example":
			return answer{records: addressRecords(q, "192.0.2.1", "192.0.2.2", "2001:db8::1")}
		case q.name == "mapped.example" && q.typ == dns.TypeAAAA:
			return answer{records: []string{"mapped.example. 60 IN AAAA ::ffff:192.0.2.7"}}
		case q.name == "half.example" && q.typ == dns.TypeA: // the other family fails
			return answer{records: addressRecords(q, "192.0.2.3")}
		case q.name == "empty.example":
			return answer{}
		}
		return answer{code: dns.RcodeServerFailure}
	})
	r := newResolver(t, Config{}, s)
	check(t, resolve(t, r, "both.example"), "192.0.2.1 192.0.2.2 2001:db8::1")
	check(t, resolve(t, r, "mapped.example"), "192.0.2.7")
	check(t, resolve(t, r, "half.example"), "192.0.2.3")
	check(t, resolve(t, r, "empty.example"), "")
	check(t, resolve(t, r, "broken.example"), "resolve-failed")
}

// TestOneFamilyDoesNotWaitLongForTheOther checks a server that does not answer for
// AAAA.
func TestOneFamilyDoesNotWaitLongForTheOther(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		return answer{silent: q.typ == dns.TypeAAAA, records: addressRecords(q, "192.0.2.1")}
	})
	r := newResolver(t, Config{}, s).impatient(patience)
	r.familyDelay = time.Millisecond
	check(t, resolve(t, r, "api.example"), "192.0.2.1")
}

// TestAliases checks which aliases of an allowed name the policy accepts.
func TestAliases(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		a := answer{records: []string{q.name + ". 60 IN CNAME edge.cdn.example.", "edge.cdn.example. 60 IN CNAME node.cdn.example."}}
		for _, r := range addressRecords(q, "192.0.2.1", "2001:db8::1") {
			a.records = append(a.records, strings.Replace(r, q.name, "node.cdn.example", 1))
		}
		return a
	})
	trust, inspect := newResolver(t, Config{}, s), newResolver(t, Config{Inspect: true}, s)
	rows := []struct {
		name           string
		allow, deny    []string
		trust, inspect string
	}{
		{
			name: "no rule names them", allow: []string{"api.example"},
			trust: "192.0.2.1 2001:db8::1", inspect: "not-on-allowlist",
		},
		{
			name: "all are allowed", allow: []string{"api.example", "*.cdn.example"},
			trust: "192.0.2.1 2001:db8::1", inspect: "192.0.2.1 2001:db8::1",
		},
		{
			name: "only the first is allowed", allow: []string{"api.example", "edge.cdn.example"},
			trust: "192.0.2.1 2001:db8::1", inspect: "not-on-allowlist",
		},
		{
			name: "the last is denied", allow: []string{"api.example", "*.cdn.example"}, deny: []string{"node.cdn.example"},
			trust: "denied-by-rule", inspect: "denied-by-rule",
		},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			dec := decide(t, "api.example", row.allow, row.deny)
			check(t, resolveFor(t, trust, dec), row.trust)
			check(t, resolveFor(t, inspect, dec), row.inspect)
		})
	}
}

// TestEachAddressHasItsOwnWay checks that an address has the way in its own answer,
// because the two families may have different aliases.
func TestEachAddressHasItsOwnWay(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		if q.typ == dns.TypeA {
			return answer{records: []string{q.name + ". 60 IN CNAME edge.example.", "edge.example. 60 IN CNAME node.example.", "node.example. 60 IN A 192.0.2.1"}}
		}
		return answer{records: []string{q.name + ". 60 IN AAAA 2001:db8::1"}}
	})
	for _, inspect := range []bool{false, true} {
		r := newResolver(t, Config{Inspect: inspect, Hosts: map[allowlist.Host][]netip.Addr{host(t, "own.example"): addrs("192.0.2.2")}}, s)
		ways := func(name string) map[string]string {
			ctx, cancel := newContext(t)
			defer cancel()
			got, err := r.Resolve(ctx, decide(t, name, []string{name, "edge.example", "node.example"}, nil))
			if err != nil {
				t.Fatal(err)
			}
			all := map[string]string{}
			for _, a := range got {
				if all[a.Addr.String()] = fmt.Sprint(a.Way.Via); len(a.Way.Via) > 0 && a.Way.Inspect != inspect {
					t.Errorf("the way to %s is to be inspected: %v", a.Addr, a.Way.Inspect)
				}
			}
			return all
		}
		for range 2 { // from the server, and from the cache
			want := map[string]string{"192.0.2.1": "[edge.example node.example]", "2001:db8::1": "[]"}
			if diff := cmp.Diff(want, ways("api.example")); diff != "" {
				t.Errorf("ways (-want +got):\n%s", diff)
			}
		}
		if diff := cmp.Diff(map[string]string{"192.0.2.2": "[]"}, ways("own.example")); diff != "" {
			t.Errorf("ways (-want +got):\n%s", diff)
		}
	}
}

// TestATruncatedAnswerIsAskedAgainOverTCP checks that the same server is asked over TCP
// after a truncated answer.
func TestATruncatedAnswerIsAskedAgainOverTCP(t *testing.T) {
	script := func(q asked) answer {
		return answer{truncated: q.network == "udp", records: addressRecords(q, "192.0.2.1")}
	}
	s, other := newServer(t, script), newServer(t, script)
	check(t, lookup(t, newResolver(t, Config{}, s, other), "api.example", dns.TypeA), "192.0.2.1 from upstream")
	s.wasAsked(t, "tcp A api.example", "udp A api.example")
	other.wasAsked(t)
}

// TestOtherLetterCase checks that the resolver asks again over TCP after an answer with
// other letter case, which may be forged or from a server that does not keep the case.
func TestOtherLetterCase(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		a := answer{records: addressRecords(q, "192.0.2.1")}
		if q.network == "udp" {
			a.records = addressRecords(q, "192.0.2.66")
			a.change = swapCase
		}
		return a
	})
	check(t, lookup(t, newResolver(t, Config{}, s), "api.example", dns.TypeA), "192.0.2.1 from upstream")
	s.wasAsked(t, "tcp A api.example", "udp A api.example")
}

// swapCase changes the case of each letter in the question.
func swapCase(m *dns.Msg) {
	m.Question[0].Name = strings.Map(func(r rune) rune {
		if r >= 'A' {
			return r ^ 0x20
		}
		return r
	}, m.Question[0].Name)
}

// TestForgedAnswersAreIgnored checks that forged answers which come first are ignored.
func TestForgedAnswersAreIgnored(t *testing.T) {
	forge := func(m dns.Msg) dns.Msg {
		rr, _ := dns.NewRR(m.Question[0].Name + " 60 IN A 192.0.2.66")
		m.Answer = []dns.RR{rr}
		return m
	}
	rows := map[string]func(s *server, m dns.Msg, peer netip.AddrPort){
		"another id": func(s *server, m dns.Msg, peer netip.AddrPort) { m.Id ^= 1; s.send(forge(m), peer) },
		"another question": func(s *server, m dns.Msg, peer netip.AddrPort) {
			m.Question[0].Name = "b.example."
			s.send(forge(m), peer)
		},
		"another type": func(s *server, m dns.Msg, peer netip.AddrPort) {
			m.Question[0].Qtype = dns.TypeTXT
			s.send(forge(m), peer)
		},
		"a query": func(s *server, m dns.Msg, peer netip.AddrPort) { m.Response = false; s.send(forge(m), peer) },
		"rubbish": func(s *server, _ dns.Msg, peer netip.AddrPort) {
			_, _ = s.udp.WriteToUDPAddrPort([]byte("rubbish"), peer)
		},
		"nothing": func(s *server, _ dns.Msg, peer netip.AddrPort) { _, _ = s.udp.WriteToUDPAddrPort(nil, peer) },
		"another source": func(_ *server, m dns.Msg, peer netip.AddrPort) {
			conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				panic(err)
			}
			defer func() { _ = conn.Close() }()
			forged := forge(m)
			packet, _ := forged.Pack()
			_, _ = conn.WriteToUDPAddrPort(packet, peer)
		},
	}
	for name, before := range rows {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, always(answer{records: []string{"api.example. 60 IN A 192.0.2.1"}, before: before}))
			check(t, lookup(t, newResolver(t, Config{}, s), "api.example", dns.TypeA), "192.0.2.1 from upstream")
			s.wasAsked(t, "udp A api.example")
		})
	}
}

// TestEachQueryHasItsOwnPort checks that no two queries have the same port, so that
// nobody can guess where an answer is expected.
func TestEachQueryHasItsOwnPort(t *testing.T) {
	var mu sync.Mutex
	ports, ids := map[uint16]bool{}, map[uint16]bool{}
	s := newServer(t, always(answer{before: func(_ *server, m dns.Msg, peer netip.AddrPort) {
		mu.Lock()
		defer mu.Unlock()
		ports[peer.Port()], ids[m.Id] = true, true
	}}))
	r := newResolver(t, Config{}, s)
	for range 8 {
		check(t, lookup(t, r, "api.example", dns.TypeA), "NOERROR from upstream")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ports) < 4 || len(ids) < 4 {
		t.Errorf("eight queries from %d ports with %d ids", len(ports), len(ids))
	}
}

// closedPort returns the address of a port on which nothing listens.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	udp, tcp := listenBoth(t)
	_ = udp.Close()
	_ = tcp.Close()
	return netip.MustParseAddrPort(udp.LocalAddr().String())
}

// TestFailover checks that the next server is asked after each kind of failure.
func TestFailover(t *testing.T) {
	rows := map[string]answer{
		"a silent server":                    {silent: true},
		"a failing server":                   {code: dns.RcodeServerFailure},
		"a refusing server":                  {code: dns.RcodeRefused},
		"a server without EDNS":              {code: dns.RcodeFormatError},
		"a chain that starts elsewhere":      {records: []string{"evil.example. 60 IN A 192.0.2.66"}},
		"a record of another class":          {records: []string{"api.example. 60 CH A 192.0.2.66"}},
		"a server that hangs up":             {hangup: true},
		"an answer to another question":      {change: func(m *dns.Msg) { m.Question[0].Name = "evil.example." }},
		"an answer with another id":          {change: func(m *dns.Msg) { m.Id ^= 1 }},
		"truncated, over TCP, too":           {truncated: true},
		"an alias that leads to itself":      {records: []string{"api.example. 60 IN CNAME api.example."}},
		"NXDOMAIN with an address":           {code: dns.RcodeNameError, records: []string{"api.example. 60 IN A 192.0.2.66"}},
		"another letter case, over TCP, too": {change: swapCase},
	}
	for name, first := range rows {
		for _, protocol := range []Protocol{UDP, TCP} {
			t.Run(protocol.String()+": "+name, func(t *testing.T) {
				s := newServer(t, always(first))
				good := newServer(t, addresses("192.0.2.1"))
				r := newResolver(t, Config{Servers: []Server{{Protocol: protocol, Addr: s.addr}, {Protocol: protocol, Addr: good.addr}}})
				r.upstreams[0].tryTimeout = 300 * time.Millisecond
				check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream")
			})
		}
	}
	for _, protocol := range []Protocol{UDP, TCP} {
		good := newServer(t, addresses("192.0.2.1"))
		r := newResolver(t, Config{Servers: []Server{{Protocol: protocol, Addr: closedPort(t)}, {Protocol: protocol, Addr: good.addr}}})
		check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream")
	}
}

// TestAnAnswerEndsTheSearch checks that no other server is asked after an answer that a
// name does not exist.
func TestAnAnswerEndsTheSearch(t *testing.T) {
	yes := newServer(t, addresses("192.0.2.1"))
	for want, a := range map[string]answer{"NXDOMAIN from upstream": {code: dns.RcodeNameError}, "NOERROR from upstream": {}} {
		check(t, lookup(t, newResolver(t, Config{}, newServer(t, always(a)), yes), "api.example", dns.TypeA), want)
	}
	yes.wasAsked(t)
}

// TestAllServersFail checks that each server is tried twice, and that the error is that
// of the last one.
func TestAllServersFail(t *testing.T) {
	silent := []*server{newServer(t, always(answer{silent: true})), newServer(t, always(answer{silent: true}))}
	check(t, lookup(t, newResolver(t, Config{}, silent...).impatient(150*time.Millisecond), "api.example", dns.TypeA), "resolve-timeout")
	for _, s := range silent {
		s.wasAsked(t, "udp A api.example", "udp A api.example")
	}
	failing := newServer(t, always(answer{code: dns.RcodeServerFailure}))
	check(t, lookup(t, newResolver(t, Config{}, failing), "api.example", dns.TypeA), "resolve-failed")
	failing.wasAsked(t, "udp A api.example", "udp A api.example")
}

func TestLookUpEndsWithTheCallersTime(t *testing.T) {
	s := newServer(t, always(answer{silent: true}))
	r := newResolver(t, Config{}, s)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := r.Lookup(ctx, Asker{}, question(t, "api.example", dns.TypeA))
	check(t, describe(t, Answer{}, err), "resolve-timeout")
	gone, leave := context.WithCancel(t.Context())
	leave()
	_, err = r.Lookup(gone, Asker{}, question(t, "api.example", dns.TypeA))
	check(t, describe(t, Answer{}, err), "resolve-failed")
}

// TestFailingServerIsAskedLater checks that a server which does not answer is asked
// after the others, twice as long each time, until it answers.
func TestFailingServerIsAskedLater(t *testing.T) {
	a, b := &upstream{}, &upstream{}
	g := &group{servers: []*upstream{a, b}}
	now := time.Now()
	rows := []struct {
		after time.Duration
		err   error // result of the first server
		first *upstream
	}{
		{after: 0, first: a},
		{after: 0, err: errors.New("silence"), first: b},
		{after: 999 * time.Millisecond, first: b},
		{after: time.Millisecond, first: a},
		{after: 0, err: errors.New("silence"), first: b},
		{after: 1999 * time.Millisecond, first: b},
		{after: time.Millisecond, first: a},
		{after: 0, err: context.DeadlineExceeded, first: b},
		{after: 4 * time.Second, first: a},
	}
	for i, row := range rows {
		now = now.Add(row.after)
		if row.err != nil {
			a.update(row.err, now)
		}
		if order := g.order(now); order[0] != row.first || len(order) != 2 {
			t.Errorf("row %d: %v", i, order)
		}
	}
	for range 10 {
		a.update(errors.New("silence"), now)
	}
	if a.backoff != 8*time.Second {
		t.Errorf("ten at the same time make it rest for %v", a.backoff)
	}
	for range 10 {
		now = now.Add(maxBackoff)
		a.update(errors.New("silence"), now)
	}
	if !a.isHealthy(now.Add(maxBackoff)) || a.isHealthy(now.Add(maxBackoff-1)) {
		t.Errorf("rests for %v, want %v", a.backoff, maxBackoff)
	}
	a.update(nil, now)
	if !a.isHealthy(now) || a.backoff != 0 {
		t.Error("an answer does not make it well")
	}
	a.update(errStreamFull, now)
	if !a.isHealthy(now) {
		t.Error("it rests because we ask too much")
	}
}

// TestTheSilentServerIsAskedLast checks that the server that is silent is asked after
// the others.
func TestTheSilentServerIsAskedLast(t *testing.T) {
	silent, good := newServer(t, always(answer{silent: true})), newServer(t, addresses("192.0.2.1"))
	r := newResolver(t, Config{}, silent, good)
	r.upstreams[0].tryTimeout, r.upstreams[0].backoff = 100*time.Millisecond, maxBackoff
	for _, name := range []string{"a.example", "b.example", "c.example"} {
		check(t, lookup(t, r, name, dns.TypeA), "192.0.2.1 from upstream")
	}
	silent.wasAsked(t, "udp A a.example")
}

// TestSuffixChoosesTheGroupOfServers checks that the longest suffix of a name decides
// which servers are asked for it.
func TestSuffixChoosesTheGroupOfServers(t *testing.T) {
	others, corp, lab := newServer(t, addresses("192.0.2.1")), newServer(t, addresses("192.0.2.2")), newServer(t, addresses("192.0.2.3"))
	r := newResolver(t, Config{Groups: []Group{
		{Suffixes: []allowlist.Host{host(t, "corp.example"), host(t, "10.in-addr.arpa")}, Servers: []Server{{Addr: corp.addr}}},
		{Suffixes: []allowlist.Host{host(t, "lab.corp.example")}, Servers: []Server{{Addr: lab.addr}}},
	}}, others)
	for name, want := range map[string]string{
		"example": "192.0.2.1", "xcorp.example": "192.0.2.1", "corp.example.com": "192.0.2.1",
		"corp.example": "192.0.2.2", "a.b.corp.example": "192.0.2.2", "xlab.corp.example": "192.0.2.2", "1.0.0.10.in-addr.arpa": "192.0.2.2",
		"lab.corp.example": "192.0.2.3", "a.lab.corp.example": "192.0.2.3",
	} {
		check(t, lookup(t, r, name, dns.TypeA), want+" from upstream")
	}
}

// TestNewRefusesMistakes checks the error of New for each mistake in the configuration.
func TestNewRefusesMistakes(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:53")
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	group := func(suffixes ...allowlist.Host) Config {
		return Config{Servers: []Server{{Addr: at}}, Groups: []Group{{Suffixes: suffixes, Servers: []Server{{Addr: at}}}}}
	}
	for want, cfg := range map[string]Config{
		"no address":            {Servers: []Server{{}}},
		"has no protocol":       {Servers: []Server{{Addr: at, Protocol: 9}}},
		"DoT, which needs one":  {Servers: []Server{{Addr: at, Protocol: DoT}}},
		"a name goes with DoT":  {Servers: []Server{{Addr: at, Name: "dns.example"}}},
		"only with DoT":         {Servers: []Server{{Addr: at, CA: empty}}},
		"no certificate in":     {Servers: []Server{{Addr: at, Protocol: DoT, Name: "dns.example", CA: empty}}},
		"the authorities of":    {Servers: []Server{{Addr: at, Protocol: DoT, Name: "dns.example", CA: empty + ".not"}}},
		"has no servers":        {Servers: []Server{{Addr: at}}, Groups: []Group{{Suffixes: []allowlist.Host{host(t, "a.example")}}}},
		"two groups have":       group(host(t, "a.example"), host(t, "a.example")),
		"is no suffix of names": group(host(t, "10.0.0.1")),
		`"" is no suffix`:       group(allowlist.Host{}),
	} {
		r, err := New(cfg)
		if err == nil || !strings.Contains(err.Error(), want) || r != nil {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestSystemServers checks which servers are taken from a resolv.conf.
func TestSystemServers(t *testing.T) {
	at := func(texts ...string) []Server {
		var list []Server
		for _, s := range texts {
			list = append(list, Server{Addr: netip.AddrPortFrom(netip.MustParseAddr(s), 53)})
		}
		return list
	}
	for text, want := range map[string][]Server{
		"": at("127.0.0.1"),
		"# a comment\nsearch corp.example\nnameserver 10.0.0.1\noptions ndots:5\n":                        at("10.0.0.1"),
		"nameserver\t2001:db8::1 \nnameserver fe80::1%lo\n":                                               at("2001:db8::1", "fe80::1%lo"),
		"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n":                at("1.1.1.1", "1.1.1.2", "1.1.1.3"),
		"nameserver dns.example\nnameserver\n;nameserver 10.0.0.9\n nameservers 10.0.0.8\nnameserver ::1": at("::1"),
	} {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := systemServers(path)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	got, err := systemServers(filepath.Join(t.TempDir(), "none"))
	if err != nil || !slices.Equal(got, at("127.0.0.1")) {
		t.Errorf("without a file: %v, %v", got, err)
	}
	if got, err := systemServers(t.TempDir()); err == nil {
		t.Errorf("of what is no file: %v", got)
	}
	r, err := New(Config{}) // the servers of this system
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}

// TestLocalhost checks that no server is asked for localhost or a name below it, and
// that the configuration cannot change these names.
func TestLocalhost(t *testing.T) {
	s := newServer(t, addresses("8.8.8.8", "2001:db8::1"))
	r := newResolver(t, Config{Groups: []Group{{Suffixes: []allowlist.Host{host(t, "a.example")}, Servers: []Server{{Addr: s.addr}}}}}, s)
	for _, name := range []string{"localhost", "LocalHost.", "x.localhost", "a.b.LOCALHOST."} {
		check(t, resolve(t, r, name), "127.0.0.1 ::1")
		check(t, lookup(t, r, name, dns.TypeA), "127.0.0.1 from local")
		check(t, lookup(t, r, name, dns.TypeAAAA), "::1 from local")
		for _, typ := range []uint16{dns.TypeHTTPS, dns.TypeTXT, dns.TypeSRV, dns.TypeCNAME, dns.TypeANY} {
			check(t, lookup(t, r, name, typ), "NOERROR from local")
		}
	}
	s.wasAsked(t)
	check(t, lookup(t, r, "notlocalhost", dns.TypeA), "8.8.8.8 from upstream")
	check(t, lookup(t, r, "localhost.example", dns.TypeA), "8.8.8.8 from upstream")
	servers := []Server{{Addr: s.addr}}
	for _, name := range []string{"localhost", "x.localhost"} {
		for _, cfg := range []Config{
			{Servers: servers, Hosts: map[allowlist.Host][]netip.Addr{host(t, name): addrs("10.0.0.1")}},
			{Servers: servers, Groups: []Group{{Suffixes: []allowlist.Host{host(t, name)}, Servers: servers}}},
		} {
			if r, err := New(cfg); err == nil {
				r.Close()
				t.Errorf("%s can be configured", name)
			}
		}
	}
}
