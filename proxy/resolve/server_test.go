package resolve

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// patience bounds every wait of these tests. It is much longer than any of them should
// take.
const patience = 30 * time.Second

// server is a DNS server on loopback, over UDP and TCP or TLS on one port. It answers
// by its script and records the questions.
type server struct {
	addr   netip.AddrPort
	script func(q asked) answer
	tls    *tls.Config // for TLS over TCP; nil means plain TCP

	mu    sync.Mutex
	asked []string // such as "udp A api.example"
	heard *sync.Cond
	conns map[net.Conn]bool // open TCP connections
	dials int               // number of TCP connections so far
	udp   *net.UDPConn
}

// asked is a question to the server.
type asked struct {
	network string
	name    string // in lower case, without the final dot
	typ     uint16
	n       int // number of earlier questions of this network, name and type
	edns    bool
}

// answer is an answer in a script.
type answer struct {
	silent    bool
	hangup    bool // close the connection instead of answering
	truncated bool
	code      int
	records   []string // the records after "--" are in the authority section
	change    func(*dns.Msg)
	raw       func(query []byte) []byte                       // the whole reply, which replaces all else
	before    func(s *server, m dns.Msg, peer netip.AddrPort) // over UDP, called before the answer is sent
	wait      <-chan struct{}
}

// always returns a script with the same answer to every question.
func always(a answer) func(asked) answer { return func(asked) answer { return a } }

// addresses returns a script that answers with the addresses of the type in the
// question, with a time to live of a minute.
func addresses(texts ...string) func(asked) answer {
	return func(q asked) answer { return answer{records: addressRecords(q, texts...)} }
}

func addressRecords(q asked, texts ...string) []string {
	var records []string
	for _, text := range texts {
		addr := netip.MustParseAddr(text)
		switch {
		case q.typ == dns.TypeA && addr.Is4():
			records = append(records, q.name+". 60 IN A "+text)
		case q.typ == dns.TypeAAAA && addr.Is6():
			records = append(records, q.name+". 60 IN AAAA "+text)
		}
	}
	if len(records) == 0 {
		records = []string{"--", ". 60 IN SOA ns.example. admin.example. 1 2 3 4 60"}
	}
	return records
}

func newServer(tb testing.TB, script func(asked) answer) *server {
	tb.Helper()
	return newTLSServer(tb, nil, script)
}

func newTLSServer(tb testing.TB, cfg *tls.Config, script func(asked) answer) *server {
	tb.Helper()
	udp, tcp := listenBoth(tb)
	s := &server{
		addr: netip.MustParseAddrPort(udp.LocalAddr().String()), script: script, tls: cfg,
		conns: map[net.Conn]bool{}, udp: udp,
	}
	s.heard = sync.NewCond(&s.mu)
	var serving sync.WaitGroup
	serving.Go(s.serveUDP)
	serving.Go(func() { s.serveTCP(tcp, &serving) })
	tb.Cleanup(func() {
		_ = udp.Close()
		_ = tcp.Close()
		s.hangUp()
		serving.Wait()
	})
	return s
}

// listenBoth listens on a port that is free for both UDP and TCP.
func listenBoth(tb testing.TB) (*net.UDPConn, *net.TCPListener) {
	tb.Helper()
	var err error
	for range 20 {
		var udp *net.UDPConn
		udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			continue
		}
		addr := netip.MustParseAddrPort(udp.LocalAddr().String())
		var tcp *net.TCPListener
		if tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr)); err == nil {
			return udp, tcp
		}
		_ = udp.Close()
	}
	tb.Fatal(err)
	return nil, nil
}

func (s *server) serveUDP() {
	buf := make([]byte, 4096)
	for {
		n, peer, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an ICMP error of a client that has left
			continue
		}
		query := bytes.Clone(buf[:n])
		reply, a := s.reply(query, "udp")
		if a.before != nil {
			var m dns.Msg
			_ = m.Unpack(query)
			m.Response = true
			a.before(s, m, peer)
		}
		if reply != nil {
			_, _ = s.udp.WriteToUDPAddrPort(reply, peer)
		}
	}
}

// send sends a message to a resolver from the server's address.
func (s *server) send(m dns.Msg, peer netip.AddrPort) {
	if packet, err := m.Pack(); err == nil {
		_, _ = s.udp.WriteToUDPAddrPort(packet, peer)
	}
}

func (s *server) serveTCP(l *net.TCPListener, serving *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if s.tls != nil {
			conn = tls.Server(conn, s.tls)
		}
		s.mu.Lock()
		s.conns[conn] = true
		s.dials++
		s.mu.Unlock()
		serving.Go(func() { s.serveConn(conn, serving) })
	}
}

// serveConn answers each question in a goroutine of its own, so that answers may
// overtake each other.
func (s *server) serveConn(conn net.Conn, serving *sync.WaitGroup) {
	var writing sync.Mutex
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			break
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			break
		}
		serving.Go(func() {
			reply, a := s.reply(query, "tcp")
			if a.hangup {
				_ = conn.Close()
			}
			if reply == nil {
				return
			}
			writing.Lock()
			defer writing.Unlock()
			_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
		})
	}
	_ = conn.Close()
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
}

// hangUp closes the TCP connections.
func (s *server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		_ = conn.Close()
	}
}

// reply returns the answer to a query, or nil for none.
func (s *server) reply(query []byte, network string) ([]byte, answer) {
	var q, m dns.Msg
	if q.Unpack(query) != nil || len(q.Question) != 1 {
		return nil, answer{}
	}
	about := asked{
		network: network, typ: q.Question[0].Qtype,
		name: strings.TrimSuffix(strings.ToLower(q.Question[0].Name), "."), edns: q.IsEdns0() != nil,
	}
	line := network + " " + dns.TypeToString[about.typ] + " " + about.name
	s.mu.Lock()
	for _, before := range s.asked {
		if before == line {
			about.n++
		}
	}
	s.asked = append(s.asked, line)
	s.heard.Broadcast()
	s.mu.Unlock()
	a := s.script(about)
	if a.wait != nil {
		<-a.wait
	}
	if a.silent || a.hangup {
		return nil, a
	}
	if a.raw != nil {
		return a.raw(query), a
	}
	m.SetReply(&q)
	m.RecursionAvailable, m.Truncated, m.Rcode = true, a.truncated, a.code
	section := &m.Answer
	for _, text := range a.records {
		if text == "--" {
			section = &m.Ns
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		*section = append(*section, rr)
	}
	if a.change != nil {
		a.change(&m)
	}
	reply, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return reply, a
}

// questions returns all questions so far, sorted.
func (s *server) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.asked))
}

// connections returns the number of TCP connections so far.
func (s *server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

// await waits until the server has got n questions.
func (s *server) await(t *testing.T, n int) {
	t.Helper()
	timer := time.AfterFunc(patience, s.heard.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.asked) < n {
		if time.Now().After(deadline) {
			t.Fatalf("asked %q, want %d questions", s.asked, n)
		}
		s.heard.Wait()
	}
}

func host(tb testing.TB, s string) allowlist.Host {
	tb.Helper()
	h, err := allowlist.ParseHost(s)
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

func question(tb testing.TB, name string, typ uint16) Question {
	tb.Helper()
	return Question{Name: host(tb, name), Type: typ}
}

// newResolver returns a resolver that asks the given servers, unless cfg has servers.
func newResolver(tb testing.TB, cfg Config, servers ...*server) *Resolver {
	tb.Helper()
	for _, s := range servers {
		cfg.Servers = append(cfg.Servers, Server{Addr: s.addr})
	}
	if cfg.Servers == nil {
		cfg.Servers = []Server{{Addr: netip.MustParseAddrPort("127.0.0.1:1")}}
	}
	r, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	r.familyDelay = patience
	return r
}

// impatient shortens the time for each try of a server.
func (r *Resolver) impatient(try time.Duration) *Resolver {
	for _, u := range r.upstreams {
		u.tryTimeout = try
	}
	return r
}

// lookup looks up a name and returns the addresses in the answer, or its code, and its
// origin; or the reason of the error.
func lookup(t *testing.T, r *Resolver, name string, typ uint16) string {
	t.Helper()
	ctx, cancel := newContext(t)
	defer cancel()
	a, err := r.Lookup(ctx, Asker{}, question(t, name, typ))
	return describe(t, a, err)
}

func describe(tb testing.TB, a Answer, err error) string {
	tb.Helper()
	if err != nil {
		var known *allowlist.ReasonError
		if !errors.As(err, &known) {
			tb.Fatalf("an error without reason: %v", err)
		}
		return known.Reason.String()
	}
	var words []string
	for addr := range a.msg.Addrs() {
		words = append(words, addr.String())
	}
	if a.msg.Negative() {
		words = append(words, dns.RcodeToString[a.RCode()])
	}
	return strings.Join(append(words, "from", a.Origin().String()), " ")
}
