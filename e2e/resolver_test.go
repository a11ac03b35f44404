package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// nameServer answers queries over UDP on loopback, and keeps their names.
type nameServer struct {
	conn *net.UDPConn

	mu    sync.Mutex
	asked []string // names of the queries, in lower case
}

// newNameServer returns a name server that resolves every name to 127.0.0.1, and
// alias.example by way of node.cdn.example.
func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{conn: conn}
	var serving sync.WaitGroup
	serving.Go(n.serve)
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
	return n
}

func (n *nameServer) serve() {
	buf := make([]byte, 4096)
	for {
		size, peer, err := n.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an ICMP error, because a client has gone
			continue
		}
		if reply := n.reply(buf[:size]); reply != nil {
			_, _ = n.conn.WriteToUDPAddrPort(reply, peer)
		}
	}
}

func (n *nameServer) reply(query []byte) []byte {
	var q, m dns.Msg
	if q.Unpack(query) != nil || len(q.Question) != 1 {
		return nil
	}
	name := strings.ToLower(q.Question[0].Name)
	n.mu.Lock()
	n.asked = append(n.asked, strings.TrimSuffix(name, "."))
	n.mu.Unlock()
	m.SetReply(&q)
	if name == "alias.example." {
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: "node.cdn.example."})
		name = "node.cdn.example."
	}
	if q.Question[0].Qtype == dns.TypeA {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(127, 0, 0, 1)})
	} else {
		m.Ns = append(m.Ns, &dns.SOA{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60}, Ns: "ns.example.", Mbox: "admin.example.", Minttl: 60})
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}

// names returns the distinct names of the queries, sorted.
func (n *nameServer) names() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(n.asked)))
}

// TestResolver checks that the name server is asked only for names that the policy
// allows, and for no more names below a wildcard than names_per_minute.
func TestResolver(t *testing.T) {
	server := newNameServer(t)
	s := newReloadSite(t)
	policy := s.allowing("'**.wild.example'", "alias.example", "exact.example")
	policy = strings.ReplaceAll(policy, "owner: team-ci", "deny: [{host: node.cdn.example}], owner: team-ci")
	write(t, s.dir, map[string]string{"policy.yaml": policy})
	p := s.serveConfig(t, strings.Replace(siteConfig, "resolver:\n", "resolver:\n  servers: [\""+server.conn.LocalAddr().String()+"\"]\n  names_per_minute: 3\n", 1))
	decisions := 0
	check := func(host string, status int, verdict, reason string) {
		t.Helper()
		if got := s.status(t, p, host); got != status {
			t.Errorf("%s: answered %d, want %d", host, got, status)
		}
		got := p.record(t, "decision", decisions)
		decisions++
		if got.Host != host || got.Verdict != verdict || got.Reason != reason {
			t.Errorf("recorded %s as %s, %s; want %s as %s, %s", got.Host, got.Verdict, got.Reason, host, verdict, reason)
		}
	}
	check("evil.example", 403, "deny", "not-on-allowlist")
	for i := range 3 {
		check(fmt.Sprintf("n%d.wild.example", i), 200, "allow", "")
	}
	for i := range 5 {
		check(fmt.Sprintf("m%d.wild.example", i), 429, "deny", "name-budget")
	}
	check("n1.wild.example", 200, "allow", "") // this name is in the cache
	check("exact.example", 200, "allow", "")   // this name matches no wildcard
	check("alias.example", 403, "deny", "denied-by-rule")
	want := []string{"alias.example", "exact.example", "n0.wild.example", "n1.wild.example", "n2.wild.example"}
	if got := server.names(); !slices.Equal(got, want) {
		t.Errorf("the name server was asked for %q, want %q", got, want)
	}
}

// TestLocalhost checks that localhost names mean loopback for every kind of request, if a
// rule allows the address, and that the name server is never asked for them.
func TestLocalhost(t *testing.T) {
	server := newNameServer(t)
	s := newReloadSite(t)
	rule := func(host, addresses string) string {
		return fmt.Sprintf("      - {host: %q, ports: [%d]%s}\n", host, s.port, addresses)
	}
	write(t, s.dir, map[string]string{"policy.yaml": "version: 1\nidentities:\n  - id: " + gateway + "\n    allow:\n" +
		rule("localhost", ", addresses: [127.0.0.1/32, '::1/128']") + rule("**.open.localhost", ", addresses: 127.0.0.1/32") + rule("shut.localhost", "")})
	p := s.serveConfig(t, strings.Replace(siteConfig, "resolver:\n", "resolver:\n  servers: [\""+server.conn.LocalAddr().String()+"\"]\n", 1))
	open := fmt.Sprint("127.0.0.1:", s.port)
	for i, row := range []struct {
		method, host string
		record       record
	}{
		{"CONNECT", "localhost", record{Host: "localhost", Verdict: "allow", Status: 200, Address: open}},
		{"CONNECT", "LocalHost.", record{Host: "localhost", Verdict: "allow", Status: 200, Address: open}},
		{"CONNECT", "a.b.open.localhost", record{Host: "a.b.open.localhost", Verdict: "allow", Status: 200, Address: open, Class: "loopback"}},
		{"CONNECT", "shut.localhost", record{Host: "shut.localhost", Verdict: "deny", Status: 403, Reason: "resolved-address-denied", Class: "loopback"}},
		{"GET", "localhost", record{Host: "localhost", Verdict: "fail", Status: 502, Reason: "response-failed", Address: open}}, // the origin echoes the request
		{"GET", "shut.localhost", record{Host: "shut.localhost", Verdict: "deny", Status: 403, Reason: "resolved-address-denied", Class: "loopback"}},
	} {
		target := fmt.Sprint(row.host, ":", s.port)
		if row.method == "GET" {
			target = "http://" + target + "/"
		}
		conn, err := net.Dial("tcp", p.listening(t, "own").String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s:%d\r\nConnection: close\r\n\r\n", row.method, target, row.host, s.port); err != nil {
			t.Fatal(err)
		}
		got := p.record(t, "decision", i)
		_ = conn.Close()
		got = record{Host: got.Host, Verdict: got.Verdict, Status: got.Status, Reason: got.Reason, Address: got.Address, Class: got.Class}
		if got != row.record {
			t.Errorf("%s %s: recorded %+v, want %+v", row.method, row.host, got, row.record)
		}
	}
	if got := server.names(); len(got) > 0 {
		t.Errorf("the name server was asked for %q", got)
	}
}
