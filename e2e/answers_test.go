package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/e2e/site"
)

// scripted is a name server that answers as a script says, in whatever form.
type scripted struct {
	conn   *net.UDPConn
	script func(q *dns.Msg, name string) []byte
}

func startScripted(t *testing.T, script func(q *dns.Msg, name string) []byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{conn, script}
	var serving sync.WaitGroup
	serving.Go(s.serve)
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

func (s *scripted) serve() {
	buf := make([]byte, 4096)
	for {
		n, peer, err := s.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var q dns.Msg
		if err != nil || q.Unpack(buf[:n]) != nil || len(q.Question) != 1 {
			continue
		}
		if reply := s.script(&q, strings.TrimSuffix(strings.ToLower(q.Question[0].Name), ".")); reply != nil {
			_, _ = s.conn.WriteToUDPAddrPort(reply, peer)
		}
	}
}

// records returns a reply with these records; those behind "--" are in its authority
// section.
func records(q *dns.Msg, change func(*dns.Msg), texts ...string) []byte {
	var m dns.Msg
	m.SetReply(q)
	m.RecursionAvailable = true
	if q.IsEdns0() != nil {
		m.SetEdns0(1232, false)
	}
	section := &m.Answer
	for _, text := range texts {
		if text == "--" {
			section = &m.Ns
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		if strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
			rr.Header().Name = q.Question[0].Name
		}
		*section = append(*section, rr)
	}
	if change != nil {
		change(&m)
	}
	packet, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return packet
}

// code changes the response code of a reply.
func code(rcode int) func(*dns.Msg) { return func(m *dns.Msg) { m.Rcode = rcode } }

const answersSOA = "example. 60 IN SOA ns.example. admin.example. 1 2 3 4 60"

// oddAnswers answers in unusual ways that other resolvers accept.
func oddAnswers(q *dns.Msg, name string) []byte {
	failing := name == "bogus.example" || name == "bad.example" // for every type
	if q.Question[0].Qtype != dns.TypeA && !failing {
		return records(q, nil, "--", answersSOA)
	}
	switch name {
	case "node.example", "1.0/25.example", "-_x.example", "a.zone2.example": // unbound asks for the end of a chain once more
		return records(q, nil, name+". 60 IN A 127.0.0.1")
	case "edge.example":
		return records(q, nil, "edge.example. 60 IN CNAME node.example.", "node.example. 60 IN A 127.0.0.1")
	case "plain.example", "edns.example":
		if name == "edns.example" && q.IsEdns0() != nil {
			q.Extra = nil
			return records(q, code(dns.RcodeFormatError))
		}
		return records(q, nil, name+". 60 IN A 127.0.0.1")
	case "order.example":
		return records(q, nil, "node.example. 60 IN A 127.0.0.1", "edge.example. 60 IN CNAME node.example.", "order.example. 60 IN CNAME edge.example.")
	case "beside.example":
		return records(q, nil, "beside.example. 60 IN CNAME node.example.", "node.example. 60 IN A 127.0.0.1", "other.example. 60 IN A 127.0.0.66")
	case "slash.example":
		return records(q, nil, "slash.example. 60 IN CNAME 1.0/25.example.", "1.0/25.example. 60 IN A 127.0.0.1")
	case "score.example":
		return records(q, nil, "score.example. 60 IN CNAME -_x.example.", "-_x.example. 60 IN A 127.0.0.1")
	case "a.zone.example":
		return records(q, nil, "zone.example. 60 IN DNAME zone2.example.", "a.zone.example. 60 IN CNAME a.zone2.example.", "a.zone2.example. 60 IN A 127.0.0.1")
	case "open.example":
		return records(q, nil, "open.example. 60 IN CNAME plain.example.")
	case "split.example": // only another server knows the target of the alias
		return records(q, code(dns.RcodeNameError), "split.example. 60 IN CNAME db.internal.example.", "--", answersSOA)
	case "bogus.example":
		return records(q, func(m *dns.Msg) {
			m.Rcode = dns.RcodeServerFailure
			if opt := m.IsEdns0(); opt != nil {
				opt.Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus, ExtraText: "no proof\x1b[31m"}}
			}
		})
	case "bad.example":
		return records(q, code(dns.RcodeRefused))
	}
	return records(q, code(dns.RcodeNameError), "--", answersSOA)
}

// emptyAnswers gives answers of no use. The first label of the name says of which kind.
func emptyAnswers(q *dns.Msg, name string) []byte {
	unrecursed := func(m *dns.Msg) { m.RecursionAvailable = false }
	switch name {
	case "header.next.example": // twelve bytes
		return slices.Concat(records(q, code(dns.RcodeServerFailure))[:4], make([]byte, 8))
	case "referral.next.example":
		return records(q, unrecursed, "--", "example. 60 IN NS ns.example.")
	case "lame.next.example":
		return records(q, unrecursed, name+". 60 IN A 127.0.0.66")
	}
	return records(q, code(dns.RcodeServerFailure))
}

// startForwarder runs a program that forwards to a name server.
func startForwarder(t *testing.T, ready string, command string, args ...string) {
	t.Helper()
	p, err := site.Start(exec.Command(command, args...), site.Ready{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s:\n%s%s", command, p.Stdout, p.Stderr)
		}
	})
	output{p.Stderr}.line(t, regexp.MustCompile(ready))
}

// askFor returns the addresses of a name by one server, sorted.
func askFor(t *testing.T, server netip.AddrPort, name string) string {
	t.Helper()
	var q dns.Msg
	q.SetQuestion(name+".", dns.TypeA)
	q.SetEdns0(1232, false)
	reply, _, err := (&dns.Client{Timeout: patience}).Exchange(&q, server.String())
	if err != nil {
		t.Fatalf("%s of %s: %v", name, server, err)
	}
	var found []string
	for _, rr := range reply.Answer {
		if a, ok := rr.(*dns.A); ok && a.A.String() != "127.0.0.66" {
			found = append(found, a.A.String())
		}
	}
	slices.Sort(found)
	return strings.Join(append([]string{dns.RcodeToString[reply.Rcode]}, found...), " ")
}

const answersConfig = `version: 1
policy: policy.yaml
listeners:
  - {name: own, address: "127.0.0.1:0", identity: fixed, id: spiffe://prod.example/stub}
  - {name: dns, address: "127.0.0.1:0", protocol: dns, identity: fixed, id: spiffe://prod.example/stub}
resolver:
  servers: [%q]
  groups:
    - {suffixes: internal.example, servers: %q}
    - {suffixes: next.example, servers: [%q, %q]}
admin: {address: "127.0.0.1:0"}
timeouts: {drain_delay: 0s}
`

const answersPolicy = `version: 1
identities:
  - id: spiffe://prod.example/stub
    allow: [{host: '**.example', ports: [80, 443], addresses: [127.0.0.1/32]}]
`

// startAnswers runs exeat before servers that answer oddly.
func startAnswers(t *testing.T, odd netip.AddrPort) *process {
	t.Helper()
	good := startScripted(t, func(q *dns.Msg, name string) []byte {
		if q.Question[0].Qtype != dns.TypeA {
			return records(q, nil, "--", answersSOA)
		}
		return records(q, nil, name+". 60 IN A 127.0.0.1")
	})
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"policy.yaml": answersPolicy,
		"exeat.yaml":  fmt.Sprintf(answersConfig, odd, good, startScripted(t, emptyAnswers), good),
	})
	return start(t, dir, "serve")
}

// TestDNSAnswersThatOtherResolversTake checks that exeat finds what unbound and dnsmasq
// find when they ask the same server.
func TestDNSAnswersThatOtherResolversTake(t *testing.T) {
	need(t, "unbound", "dnsmasq")
	odd := startScripted(t, oddAnswers)
	p := startAnswers(t, odd)
	free := freeAddresses(t, 2)
	unbound, dnsmasq := free[0], free[1]
	dir := t.TempDir()
	write(t, dir, map[string]string{"unbound.conf": fmt.Sprintf(`server:
  directory: "%[1]s"
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  logfile: ""
  do-daemonize: no
  module-config: "iterator"
  do-not-query-localhost: no
  qname-minimisation: no
  interface: 127.0.0.1@%[2]d
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@%[3]d
remote-control:
  control-enable: no
`, dir, unbound.Port(), odd.Port())})
	startUnbound(t, dir)
	startForwarder(t, `started`, "dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--pid-file="+filepath.Join(dir, "pid"), "--user=root",
		"--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1", fmt.Sprintf("--port=%d", dnsmasq.Port()),
		fmt.Sprintf("--server=127.0.0.1#%d", odd.Port()), "--cache-size=0")
	own := p.listening(t, "dns")
	for _, row := range []struct {
		name, want string
		dnsmasq    bool // says that dnsmasq finds it, too; otherwise it leaves the rest to its client
	}{
		{"plain.example", "NOERROR 127.0.0.1", true},
		{"order.example", "NOERROR 127.0.0.1", true},
		{"beside.example", "NOERROR 127.0.0.1", true},
		{"slash.example", "NOERROR 127.0.0.1", true},
		{"score.example", "NOERROR 127.0.0.1", true},
		{"a.zone.example", "NOERROR 127.0.0.1", true},
		{"open.example", "NOERROR 127.0.0.1", false},
		{"edns.example", "NOERROR 127.0.0.1", false},
		{"gone.example", "NXDOMAIN", true},
	} {
		if got := askFor(t, unbound, row.name); got != row.want {
			t.Errorf("unbound finds %s for %s, want %s", got, row.name, row.want)
		}
		if got := askFor(t, own, row.name); got != row.want {
			t.Errorf("exeat finds %s for %s, want %s", got, row.name, row.want)
		}
		if !row.dnsmasq {
			continue
		}
		if got := askFor(t, dnsmasq, row.name); got != row.want {
			t.Errorf("dnsmasq finds %s for %s, want %s", got, row.name, row.want)
		}
	}
	// Only the second server of a group knows these names.
	for _, name := range []string{"split.example", "header.next.example", "referral.next.example", "lame.next.example", "failed.next.example"} {
		begin := time.Now()
		if got := askFor(t, own, name); got != "NOERROR 127.0.0.1" {
			t.Errorf("exeat finds %s for %s", got, name)
		}
		if took := time.Since(begin); took >= 2*time.Second {
			t.Errorf("%s takes %s: the first server was waited for", name, took)
		}
	}
}

// TestDNSEvidenceOfServersThatFail checks that the records of queries, of CONNECT and of
// plain requests name the server that failed and what it did. Callers are told only the
// code and the extended error. Metrics and the log name the server, too.
func TestDNSEvidenceOfServersThatFail(t *testing.T) {
	odd := startScripted(t, oddAnswers)
	p := startAnswers(t, odd)
	const said = `SERVFAIL, DNSSEC Bogus (EDE 6): "no proof\\u001b[31m"`
	bogus, refused := fmt.Sprintf("server %s (udp): %s", odd, said), fmt.Sprintf("server %s (udp): REFUSED", odd)
	rows := []struct {
		head, name, detail, status string
	}{
		{"CONNECT bogus.example:443 HTTP/1.1\r\nHost: bogus.example:443\r\n\r\n", "bogus.example", bogus, `; rcode="SERVFAIL"; info-code=6`},
		{"GET http://bogus.example/ HTTP/1.1\r\nHost: bogus.example\r\n\r\n", "bogus.example", bogus, `; rcode="SERVFAIL"; info-code=6`},
		{"CONNECT bad.example:443 HTTP/1.1\r\nHost: bad.example:443\r\n\r\n", "bad.example", refused, `; rcode="REFUSED"`},
		{"GET http://bad.example/ HTTP/1.1\r\nHost: bad.example\r\n\r\n", "bad.example", refused, `; rcode="REFUSED"`},
		{"CONNECT gone.example:443 HTTP/1.1\r\nHost: gone.example:443\r\n\r\n", "gone.example", "the name does not exist", `; rcode="NXDOMAIN"`},
	}
	for i, row := range rows {
		conn := p.dial(t, "own")
		if _, err := conn.Write([]byte(row.head)); err != nil {
			t.Fatal(err)
		}
		var answer bytes.Buffer
		buf := make([]byte, 4096)
		for !strings.Contains(answer.String(), "\r\n\r\n") {
			n, err := conn.Read(buf)
			answer.Write(buf[:n])
			if err != nil {
				break
			}
		}
		_ = conn.Close()
		r := p.record(t, "decision", i)
		if r.Host != row.name || r.Reason != "resolve-failed" || r.Detail != row.detail {
			t.Errorf("%.30q: recorded %s, %s, %q; want %q", row.head, r.Host, r.Reason, r.Detail, row.detail)
		}
		if got := answer.String(); !strings.Contains(got, "error=dns_error") || !strings.Contains(got, row.status+"\r\n") || strings.Contains(got, odd.String()) || strings.Contains(got, "no proof") {
			t.Errorf("%.30q: answered %s\nwant %s", row.head, got, row.status)
		}
	}
	var q dns.Msg
	q.SetQuestion("bogus.example.", dns.TypeA)
	q.SetEdns0(1232, false)
	reply, _, err := (&dns.Client{Timeout: patience}).Exchange(&q, p.listening(t, "dns").String())
	if err != nil {
		t.Fatal(err)
	}
	if r := p.record(t, "decision", len(rows)); r.Detail != bogus {
		t.Errorf("a query is recorded with %q", r.Detail)
	}
	if text := reply.String(); reply.Rcode != dns.RcodeServerFailure || !strings.Contains(text, "; EDE: 6 (DNSSEC Bogus): (r=resolve-failed") {
		t.Errorf("the client is told\n%s", text)
	}
	_, metrics := p.admin(t, "metrics")
	for _, cause := range []string{"bogus", "refused"} {
		line := fmt.Sprintf(`egress_resolver_errors_total{cause=%q,server="%s (udp)"} `, cause, odd)
		if i := strings.Index(metrics, line); i < 0 || metrics[i+len(line)] == '0' {
			t.Errorf("metrics without %s", line)
		}
	}
	p.stderr.line(t, regexp.MustCompile(`level=WARN msg="a name server fails" server="`+odd.String()+` \(udp\)" cause=(bogus|refused)`))
	p.stderr.line(t, regexp.MustCompile(`level=INFO msg="a name server answers again" server="`+odd.String()+` \(udp\)"`))
}
