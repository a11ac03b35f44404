package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

func question(tb testing.TB, name string, typ uint16) Question {
	tb.Helper()
	h, err := allowlist.ParseHost(name)
	if err != nil {
		tb.Fatal(err)
	}
	return Question{Name: h, Type: typ}
}

func newQuery(tb testing.TB, name string, typ uint16, mixed bool) *Query {
	tb.Helper()
	q, err := NewQuery(question(tb, name, typ), mixed)
	if err != nil {
		tb.Fatal(err)
	}
	return q
}

// upstream returns a server's answer to a query with the given records; those after
// "--" are in the authority section.
func upstream(tb testing.TB, q *Query, change func(*dns.Msg), records ...string) []byte {
	tb.Helper()
	var asked, m dns.Msg
	if err := asked.Unpack(q.Packet()); err != nil {
		tb.Fatal(err)
	}
	m.SetReply(&asked)
	m.RecursionAvailable, m.Compress = true, true
	m.SetEdns0(1232, false)
	section := &m.Answer
	for _, text := range records {
		if text == "--" {
			section = &m.Ns
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			tb.Fatalf("%s: %v", text, err)
		}
		*section = append(*section, rr)
	}
	if change != nil {
		change(&m)
	}
	packet, err := m.Pack()
	if err != nil {
		tb.Fatal(err)
	}
	return packet
}

// only is a filter that allows the listed addresses and names.
type only []string

// Addr implements Filter.
func (o only) Addr(addr netip.Addr) bool { return slices.Contains(o, addr.String()) }

// Hop implements Filter.
func (o only) Hop(name allowlist.Host) bool { return slices.Contains(o, name.String()) }

// everything is a filter that allows everything.
type everything struct{}

// Addr implements Filter.
func (everything) Addr(netip.Addr) bool { return true }

// Hop implements Filter.
func (everything) Hop(allowlist.Host) bool { return true }

// reply returns the Reply for a client that asks the question in capital letters.
func reply(q Question) Reply {
	name := appendName(nil, strings.ToUpper(q.Name.String()))
	return Reply{ID: 0x1234, RD: true, Question: append(name, byte(q.Type>>8), byte(q.Type), 0, 1)}
}

// show returns a response as text, parsed by the library: unusual header fields, and
// the records.
func show(tb testing.TB, packet []byte) []string {
	tb.Helper()
	var m dns.Msg
	if err := m.Unpack(packet); err != nil {
		tb.Fatalf("%v: %x", err, packet)
	}
	head := dns.RcodeToString[m.Rcode]
	for name, set := range map[string]bool{" aa": m.Authoritative, " tc": m.Truncated, " ad": m.AuthenticatedData} {
		if set {
			head += name
		}
	}
	if !m.Response || m.Opcode != 0 || !m.RecursionAvailable || len(m.Question) != 1 || len(m.Extra) != 0 {
		tb.Errorf("an unusual header: %v", m.MsgHdr)
	}
	lines := []string{head}
	for _, rr := range m.Answer {
		lines = append(lines, strings.Join(strings.Fields(rr.String()), " "))
	}
	for _, rr := range m.Ns {
		lines = append(lines, "-- "+strings.Join(strings.Fields(rr.String()), " "))
	}
	return lines
}

// answered returns what a client sees of a server's answer.
func answered(tb testing.TB, name string, typ uint16, f Filter, change func(*dns.Msg), records ...string) ([]string, Counts) {
	tb.Helper()
	q := newQuery(tb, name, typ, true)
	m, err := q.Parse(upstream(tb, q, change, records...))
	if err != nil {
		tb.Fatal(err)
	}
	packet, counts := m.Append([]byte("before"), reply(q.question), 0, false, f)
	if string(packet[:6]) != "before" {
		tb.Error("what was there before is not")
	}
	return show(tb, packet[6:]), counts
}

// TestHeaderAndOPTOfAQuery checks the header, the question and the OPT of a query.
func TestHeaderAndOPTOfAQuery(t *testing.T) {
	for _, mixed := range []bool{true, false} {
		q := newQuery(t, "_svc.api-1.example", dns.TypeSRV, mixed)
		var m dns.Msg
		if err := m.Unpack(q.Packet()); err != nil {
			t.Fatal(err)
		}
		if m.Id != q.ID() || m.Response || m.Opcode != 0 || !m.RecursionDesired || !m.AuthenticatedData || m.CheckingDisabled || m.Rcode != 0 {
			t.Errorf("header %+v", m.MsgHdr)
		}
		if len(m.Question) != 1 || len(m.Answer)+len(m.Ns) != 0 || len(m.Extra) != 1 {
			t.Fatalf("sections %v", m)
		}
		if got := m.Question[0]; strings.ToLower(got.Name) != "_svc.api-1.example." || got.Qtype != dns.TypeSRV || got.Qclass != dns.ClassINET {
			t.Errorf("question %v", got)
		}
		if opt := m.IsEdns0(); opt == nil || opt.UDPSize() != 1232 || opt.Do() || opt.Version() != 0 || len(opt.Option) != 0 {
			t.Errorf("OPT %v", opt)
		}
	}
}

// TestLetterCaseOfQueriesIsRandom checks that the letters of queries have random case.
// Of five queries of 20 letters two have the same case once in a million times, and five
// never.
func TestLetterCaseOfQueriesIsRandom(t *testing.T) {
	spellings, ids := map[string]bool{}, map[uint16]bool{}
	for range 5 {
		q := newQuery(t, "abcdefghijklmnopqrstuvwxyz.example", TypeA, true)
		spellings[string(q.questionSection())] = true
		ids[q.ID()] = true
	}
	if len(spellings) < 3 || len(ids) < 3 {
		t.Errorf("of five queries %d spellings and %d ids are different", len(spellings), len(ids))
	}
	if asked := newQuery(t, "example.com", TypeA, false).questionSection(); string(asked[:13]) != "\x07example\x03com\x00" {
		t.Errorf("without random case: %q", asked)
	}
}

// TestNamesAndTypesThatAreNeverAsked checks that a query is made only for names of hosts
// and for the listed types.
func TestNamesAndTypesThatAreNeverAsked(t *testing.T) {
	for _, q := range []Question{
		{}, {Type: TypeA}, question(t, "192.0.2.1", TypeA), question(t, "2001:db8::1", TypeAAAA),
	} {
		if got, err := NewQuery(q, true); err == nil {
			t.Errorf("%v: %x", q, got.Packet())
		}
	}
	var forwarded []string
	for typ := range 1 << 16 {
		_, err := NewQuery(question(t, "a.example", uint16(typ)), true)
		if err == nil {
			forwarded = append(forwarded, dns.TypeToString[uint16(typ)])
		} else if !errors.Is(err, ErrType) {
			t.Errorf("type %d: %v", typ, err)
		}
	}
	want := strings.Fields("A NS CNAME SOA PTR MX TXT AAAA SRV NAPTR SSHFP TLSA SVCB HTTPS URI CAA")
	if diff := cmp.Diff(want, forwarded); diff != "" {
		t.Error(diff)
	}
}

// TestAnswers checks what a client sees of each kind of answer.
func TestAnswers(t *testing.T) {
	const soa = "example. 900 IN SOA ns.example. admin.example. 1 2 3 4 200"
	tests := []struct {
		name     string
		question string
		typ      uint16
		records  []string
		change   func(*dns.Msg)
		want     []string
	}{
		{
			name: "addresses", question: "api.example", typ: TypeA,
			records: []string{"api.example. 60 IN A 192.0.2.1", "api.example. 50 IN A 192.0.2.2"},
			want:    []string{"NOERROR", "API.EXAMPLE. 60 IN A 192.0.2.1", "API.EXAMPLE. 50 IN A 192.0.2.2"},
		},
		{
			name: "a chain of aliases in order, in lower case", question: "www.example", typ: TypeAAAA,
			records: []string{
				"WWW.example. 60 IN CNAME Edge.CDN.example.", "edge.cdn.example. 30 IN CNAME node.example.",
				"Node.Example. 20 IN AAAA 2001:db8::1",
			},
			want: []string{
				"NOERROR", "WWW.EXAMPLE. 60 IN CNAME edge.cdn.example.", "edge.cdn.example. 30 IN CNAME node.example.",
				"node.example. 20 IN AAAA 2001:db8::1",
			},
		},
		{
			name: "an alias that was asked for", question: "www.example", typ: TypeCNAME,
			records: []string{"www.example. 60 IN CNAME edge.example."},
			want:    []string{"NOERROR", "WWW.EXAMPLE. 60 IN CNAME edge.example."},
		},
		{
			name: "a time to live of an hour at most, and zero for a negative one", question: "a.example", typ: TypeA,
			records: []string{"a.example. 86400 IN A 192.0.2.1", "a.example. 2147483648 IN A 192.0.2.2"},
			want:    []string{"NOERROR", "A.EXAMPLE. 3600 IN A 192.0.2.1", "A.EXAMPLE. 0 IN A 192.0.2.2"},
		},
		{
			name: "signatures and other records that were not asked for are left out", question: "a.example", typ: TypeA,
			records: []string{
				"a.example. 60 IN A 192.0.2.1", "a.example. 60 IN TXT \"x\"", "example. 60 IN DNAME b.example.",
				"--", "example. 60 IN NS ns.example.", soa,
			},
			change: func(m *dns.Msg) {
				rr, _ := dns.NewRR("ns.example. 60 IN A 192.0.2.53")
				m.Extra = append(m.Extra, rr)
				m.Authoritative = true
			},
			want: []string{"NOERROR", "A.EXAMPLE. 60 IN A 192.0.2.1"},
		},
		{
			name: "no data, for as long as the SOA's minimum", question: "a.b.example", typ: TypeAAAA,
			records: []string{"--", "example. 60 IN NS ns.example.", soa},
			want:    []string{"NOERROR", "-- EXAMPLE. 200 IN SOA ns.example. admin.example. 1 2 3 4 200"},
		},
		{
			name: "no name, for five minutes at most", question: "gone.example", typ: TypeA,
			records: []string{"--", "example. 900 IN SOA NS.example. admin.example. 1 2 3 4 900"},
			change:  func(m *dns.Msg) { m.Rcode = NXDomain },
			want:    []string{"NXDOMAIN", "-- EXAMPLE. 300 IN SOA ns.example. admin.example. 1 2 3 4 900"},
		},
		{
			name: "an alias to a name that does not exist", question: "www.example", typ: TypeA,
			records: []string{"www.example. 60 IN CNAME gone.cdn.example.net.", "--", "cdn.example.net. 60 IN SOA ns.example. admin.example. 1 2 3 4 20"},
			change:  func(m *dns.Msg) { m.Rcode = NXDomain },
			want: []string{
				"NXDOMAIN", "WWW.EXAMPLE. 60 IN CNAME gone.cdn.example.net.",
				"-- cdn.example.net. 20 IN SOA ns.example. admin.example. 1 2 3 4 20",
			},
		},
		{
			name: "the SOA of another zone is left out", question: "a.example", typ: TypeA,
			records: []string{"--", "other. 900 IN SOA ns.example. admin.example. 1 2 3 4 900"},
			want:    []string{"NOERROR"},
		},
		{
			name: "the root's SOA", question: "a.example", typ: TypeA,
			records: []string{"--", ". 10 IN SOA ns.example. admin.example. 1 2 3 4 900"},
			want:    []string{"NOERROR", "-- . 10 IN SOA ns.example. admin.example. 1 2 3 4 900"},
		},
		{
			name: "mail servers", question: "a.example", typ: dns.TypeMX,
			records: []string{"a.example. 60 IN MX 10 Mail.Example.", "a.example. 60 IN MX 20 b.example."},
			want:    []string{"NOERROR", "A.EXAMPLE. 60 IN MX 10 mail.example.", "A.EXAMPLE. 60 IN MX 20 b.example."},
		},
		{
			name: "a service", question: "_sip._tcp.a.example", typ: dns.TypeSRV,
			records: []string{"_sip._tcp.a.example. 60 IN SRV 1 2 5060 Host.Example."},
			want:    []string{"NOERROR", "_SIP._TCP.A.EXAMPLE. 60 IN SRV 1 2 5060 host.example."},
		},
		{
			name: "a text", question: "a.example", typ: dns.TypeTXT,
			records: []string{`a.example. 60 IN TXT "v=spf1 \"q\" \\ \200" "Second"`},
			want:    []string{"NOERROR", `A.EXAMPLE. 60 IN TXT "v=spf1 \"q\" \\ \200" "Second"`},
		},
		{
			name: "a naming authority pointer", question: "a.example", typ: dns.TypeNAPTR,
			records: []string{`a.example. 60 IN NAPTR 1 2 "S" "SIP+D2U" "" _sip._udp.Example.`},
			want:    []string{"NOERROR", `A.EXAMPLE. 60 IN NAPTR 1 2 "S" "SIP+D2U" "" _sip._udp.example.`},
		},
		{
			name: "fingerprints of host keys", question: "a.example", typ: dns.TypeSSHFP,
			records: []string{"a.example. 60 IN SSHFP 4 2 " + sha256Hex, "a.example. 60 IN SSHFP 6 1 00ff"},
			want:    []string{"NOERROR", "A.EXAMPLE. 60 IN SSHFP 4 2 " + strings.ToUpper(sha256Hex), "A.EXAMPLE. 60 IN SSHFP 6 1 00FF"},
		},
		{
			name: "a certificate, behind an alias", question: "_443._tcp.a.example", typ: dns.TypeTLSA,
			records: []string{"_443._tcp.a.example. 60 IN CNAME _dane.example.", "_dane.example. 60 IN TLSA 3 1 1 " + sha256Hex},
			want:    []string{"NOERROR", "_443._TCP.A.EXAMPLE. 60 IN CNAME _dane.example.", "_dane.example. 60 IN TLSA 3 1 1 " + sha256Hex},
		},
		{
			name: "a URI, with its letters", question: "_http._tcp.a.example", typ: dns.TypeURI,
			records: []string{`_http._tcp.a.example. 60 IN URI 10 1 "https://Www.Example/%C3%A9?q"`},
			want:    []string{"NOERROR", `_HTTP._TCP.A.EXAMPLE. 60 IN URI 10 1 "https://Www.Example/%C3%A9?q"`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, counts := answered(t, tt.question, tt.typ, everything{}, tt.change, tt.records...)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			answers := 0
			for _, line := range tt.want[1:] {
				if !strings.HasPrefix(line, "--") {
					answers++
				}
			}
			if (counts != Counts{Answers: answers}) {
				t.Errorf("counts %+v", counts)
			}
		})
	}
}

const sha256Hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// TestRdataWithoutNames checks that rdata of types without names passes byte for byte.
func TestRdataWithoutNames(t *testing.T) {
	octets := make([]byte, 0, 300)
	for b := range 256 {
		octets = append(octets, byte(b))
	}
	octets = append(octets, `\ \\ \065 "quoted"`...)
	long := bytes.Repeat(octets, 40)
	for typ, fields := range map[uint16][]byte{
		dns.TypeTXT: {3}, dns.TypeCAA: []byte("\x80\x05issue"), dns.TypeSSHFP: {4, 2}, dns.TypeTLSA: {3, 1, 0}, dns.TypeURI: {0, 10, 0, 1},
	} {
		values := [][]byte{octets, long, octets[:1], []byte(`\`)}
		if typ == dns.TypeTXT { // TXT has strings with lengths
			values = [][]byte{[]byte(`a\"`), []byte("\x00\xff\x80")}
			values[0] = append(values[0], append([]byte{255}, octets[:255]...)...)
			values[1] = append(values[1], 0)
		}
		for _, value := range values {
			want := slices.Concat(fields, value)
			q := newQuery(t, "a.example", typ, true)
			m, err := q.Parse(upstream(t, q, rdata(typ, want)))
			if err != nil {
				t.Errorf("%s of %d bytes: %v", dns.TypeToString[typ], len(want), err)
				continue
			}
			packet, _ := m.Append(nil, reply(q.question), 0, false, everything{})
			if !bytes.HasSuffix(packet, want) {
				t.Errorf("%s of %d bytes comes out as %x, want %x", dns.TypeToString[typ], len(want), packet, want)
			}
		}
		for short := range len(fields) + 1 { // without the last field, or with half of it
			q := newQuery(t, "a.example", typ, true)
			if m, err := q.Parse(upstream(t, q, rdata(typ, fields[:short]))); !errors.Is(err, ErrMalformed) {
				if typ != dns.TypeCAA || short != len(fields) { // a value may be empty
					t.Errorf("%s of %d bytes: %v, %v", dns.TypeToString[typ], short, m, err)
				}
			}
		}
	}
}

// rdata returns a function that adds a record with the given rdata to an answer.
func rdata(typ uint16, data []byte) func(*dns.Msg) {
	return func(m *dns.Msg) {
		h := dns.RR_Header{Name: m.Question[0].Name, Rrtype: typ, Class: dns.ClassINET, Ttl: 60}
		m.Answer = append(m.Answer, &dns.RFC3597{Hdr: h, Rdata: hex.EncodeToString(data)})
		m.Extra = nil // so that the record is the last one
	}
}

// TestTimeToLive checks for how long an answer may be kept.
func TestTimeToLive(t *testing.T) {
	tests := []struct {
		name    string
		change  func(*dns.Msg)
		records []string
		want    uint32
	}{
		{name: "the lowest of all records", records: []string{"a.example. 60 IN CNAME b.example.", "b.example. 20 IN A 192.0.2.1", "b.example. 30 IN A 192.0.2.2"}, want: 20},
		{name: "an hour at most", records: []string{"a.example. 100000 IN A 192.0.2.1"}, want: 3600},
		{name: "nothing", records: []string{"a.example. 0 IN A 192.0.2.1"}, want: 0},
		{name: "no data", records: []string{"--", "example. 90 IN SOA a. b. 1 2 3 4 100"}, want: 90},
		{name: "no data behind an alias that ends sooner", records: []string{"a.example. 5 IN CNAME b.example.", "--", "example. 90 IN SOA a. b. 1 2 3 4 100"}, want: 5},
		{name: "no data without SOA is not kept", records: []string{"a.example. 60 IN CNAME b.example."}, want: 0},
		{name: "no name without SOA is not kept", change: func(m *dns.Msg) { m.Rcode = NXDomain }, want: 0},
	}
	for _, tt := range tests {
		q := newQuery(t, "a.example", TypeA, true)
		m, err := q.Parse(upstream(t, q, tt.change, tt.records...))
		if err != nil || m.TTL() != tt.want {
			t.Errorf("%s: %v, %v; want %d", tt.name, m, err, tt.want)
		}
	}
}

// TestAging checks that the times to live in a response shrink with the age of the
// answer.
func TestAging(t *testing.T) {
	q := newQuery(t, "a.example", TypeA, true)
	m, err := q.Parse(upstream(t, q, nil, "a.example. 60 IN CNAME b.example.", "b.example. 20 IN A 192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		age   uint32
		stale bool
		want  string
	}{
		{0, false, "60 20"}, {19, false, "41 1"}, {20, false, "40 0"}, {1 << 31, false, "0 0"}, {1000, true, "30 30"},
	} {
		packet, _ := m.Append(nil, reply(q.question), row.age, row.stale, everything{})
		var ttls []string
		for _, line := range show(t, packet)[1:] {
			ttls = append(ttls, strings.Fields(line)[1])
		}
		if got := strings.Join(ttls, " "); got != row.want {
			t.Errorf("after %d s, stale %v: %s, want %s", row.age, row.stale, got, row.want)
		}
	}
}

// TestPacketsThatDoNotAnswerTheQuery checks that a packet which does not answer the
// query is an error, and that nothing of it is returned.
func TestPacketsThatDoNotAnswerTheQuery(t *testing.T) {
	good := "api.example. 60 IN A 192.0.2.1"
	tests := []struct {
		name   string
		change func(*dns.Msg)
		want   error
	}{
		{"another id", func(m *dns.Msg) { m.Id++ }, ErrStray},
		{"a query", func(m *dns.Msg) { m.Response = false }, ErrStray},
		{"another operation", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, ErrStray},
		{"no question", func(m *dns.Msg) { m.Question = nil }, ErrStray},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, ErrStray},
		{"another name", func(m *dns.Msg) { m.Question[0].Name = "apj.example." }, ErrStray},
		{"a longer name", func(m *dns.Msg) { m.Question[0].Name = "api.example.example." }, ErrStray},
		{"another type", func(m *dns.Msg) { m.Question[0].Qtype = TypeAAAA }, ErrStray},
		{"another class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, ErrStray},
		{"another letter case", func(m *dns.Msg) { m.Question[0].Name = swapCase(m.Question[0].Name) }, ErrCase},
	}
	for _, tt := range tests {
		q := newQuery(t, "api.example", TypeA, true)
		m, err := q.Parse(upstream(t, q, tt.change, good))
		if !errors.Is(err, tt.want) || m != nil {
			t.Errorf("%s: %v, %v; want %v", tt.name, m, err, tt.want)
		}
	}
	q := newQuery(t, "api.example", TypeA, true)
	packet := upstream(t, q, nil, good)
	for n := range len(packet) {
		if m, err := q.Parse(packet[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken: %v", n, len(packet), m)
		}
	}
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r ^ 0x20
		}
		return r
	}, s)
}

// TestServersThatHaveNoAnswer checks the error of each response code that says nothing
// about the name, and of a truncated answer.
func TestServersThatHaveNoAnswer(t *testing.T) {
	for _, code := range []int{1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, dns.RcodeBadVers, dns.RcodeBadMode} {
		q := newQuery(t, "api.example", TypeA, true)
		m, err := q.Parse(upstream(t, q, func(m *dns.Msg) { m.Rcode = code }))
		var said *ServerError
		if !errors.As(err, &said) || said.Code != code || m != nil || said.Error() == "" {
			t.Errorf("code %d: %v, %v", code, m, err)
		}
	}
	q := newQuery(t, "api.example", TypeA, true)
	if m, err := q.Parse(upstream(t, q, func(m *dns.Msg) { m.Truncated = true }, "api.example. 60 IN A 192.0.2.1")); !errors.Is(err, ErrTruncated) {
		t.Errorf("truncated: %v, %v", m, err)
	}
}

// TestChainsThatLeadElsewhere checks the error of answers whose records do not lead from
// the name of the question to its type.
func TestChainsThatLeadElsewhere(t *testing.T) {
	long := func(n int) []string {
		var records []string
		for i := range n {
			from := "a.example."
			if i > 0 {
				from = fmt.Sprintf("h%d.example.", i)
			}
			records = append(records, fmt.Sprintf("%s 60 IN CNAME h%d.example.", from, i+1))
		}
		return append(records, fmt.Sprintf("h%d.example. 60 IN A 192.0.2.1", n))
	}
	tests := []struct {
		name    string
		records []string
	}{
		{"the record of another name", []string{"b.example. 60 IN A 192.0.2.1"}},
		{"an alias to itself", []string{"a.example. 60 IN CNAME A.example."}},
		{"a loop", []string{"a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME c.example.", "c.example. 60 IN CNAME b.example."}},
		{"seventeen aliases", long(17)},
		{"an owner with a dot inside a label", []string{`a\.example. 60 IN A 192.0.2.1`}},
		{"an alias to the root", []string{"a.example. 60 IN CNAME ."}},
	}
	for _, tt := range tests {
		q := newQuery(t, "a.example", TypeA, true)
		m, err := q.Parse(upstream(t, q, nil, tt.records...))
		if !errors.Is(err, ErrChain) || m != nil {
			t.Errorf("%s: %v, %v", tt.name, m, err)
		}
	}
	q := newQuery(t, "a.example", TypeA, true)
	m, err := q.Parse(upstream(t, q, nil, long(MaxHops)...))
	if err != nil {
		t.Fatalf("%d aliases: %v", MaxHops, err)
	}
	if hops := slices.Collect(m.Hops()); len(hops) != MaxHops || hops[15].String() != "h16.example" {
		t.Errorf("hops %v", hops)
	}
}

// TestMalformedAnswers checks that malformed answers are refused.
func TestMalformedAnswers(t *testing.T) {
	good := "a.example. 60 IN A 192.0.2.1"
	tests := []struct {
		name   string
		typ    uint16
		record string
		change func(*dns.Msg)
		bytes  func(packet []byte) []byte
	}{
		{name: "another class", typ: TypeA, record: "a.example. 60 CH A 192.0.2.1"},
		{name: "an address without bytes", typ: TypeA, record: `a.example. 60 IN TYPE1 \# 0`},
		{name: "an address of five bytes", typ: TypeA, record: good, change: func(m *dns.Msg) {
			m.Answer = append(m.Answer, &dns.RFC3597{Hdr: *m.Answer[0].Header(), Rdata: "0102030405"})
		}},
		{name: "a mail server without a name", typ: dns.TypeMX, change: func(m *dns.Msg) {
			h := dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeMX, Class: dns.ClassINET}
			m.Answer = append(m.Answer, &dns.RFC3597{Hdr: h, Rdata: "0001"})
		}},
		{name: "a service without a target", typ: TypeHTTPS, change: func(m *dns.Msg) {
			h := dns.RR_Header{Name: m.Question[0].Name, Rrtype: TypeHTTPS, Class: dns.ClassINET}
			m.Answer = append(m.Answer, &dns.RFC3597{Hdr: h, Rdata: "0001"})
		}},
		{name: "bytes after the last record", typ: TypeA, record: good, bytes: func(p []byte) []byte { return append(p, 0) }},
		{name: "one record more than there is", typ: TypeA, record: good, bytes: func(p []byte) []byte { p[7]++; return p }},
		{name: "a count of 65,535 records", typ: TypeA, record: good, bytes: func(p []byte) []byte { p[6], p[7] = 0xff, 0xff; return p }},
		{name: "an owner that points to itself", typ: TypeA, record: good, bytes: func(p []byte) []byte {
			p[headLen+15], p[headLen+16] = 0xc0, headLen+15
			return p
		}},
		{name: "records of a name that does not exist", typ: TypeA, record: good, change: func(m *dns.Msg) { m.Rcode = NXDomain }},
	}
	for _, tt := range tests {
		q := newQuery(t, "a.example", tt.typ, true)
		var records []string
		if tt.record != "" {
			records = append(records, tt.record)
		}
		packet := upstream(t, q, tt.change, records...)
		if tt.bytes != nil {
			packet = tt.bytes(packet)
		}
		m, err := q.Parse(packet)
		if !errors.Is(err, ErrMalformed) || m != nil {
			t.Errorf("%s: %v, %v", tt.name, m, err)
		}
	}
}

// TestAnAnswerThatOutgrowsAMessage checks that an answer is malformed if it would exceed
// the length of a message with its OPT and question.
func TestAnAnswerThatOutgrowsAMessage(t *testing.T) {
	q := newQuery(t, "a.example", dns.TypeTXT, false)
	records := slices.Repeat([]string{"a.example. 60 IN TXT" + strings.Repeat(` "`+strings.Repeat("x", 249)+`"`, 4)}, MaxRecords)
	if _, err := q.Parse(upstream(t, q, nil, records...)); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
	if _, err := q.Parse(upstream(t, q, nil, records[1:]...)); err != nil {
		t.Error(err)
	}
}

// TestLocalAnswers checks the answers that the gateway makes itself of configured
// addresses.
func TestLocalAnswers(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("10.0.0.2")}
	for _, row := range []struct {
		typ  uint16
		want []string
	}{
		{TypeA, []string{"NOERROR", "A.EXAMPLE. 60 IN A 10.0.0.1", "A.EXAMPLE. 60 IN A 10.0.0.2"}},
		{TypeAAAA, []string{"NOERROR", "A.EXAMPLE. 60 IN AAAA 2001:db8::1"}},
		{dns.TypeMX, []string{"NOERROR"}},
	} {
		m := Local(row.typ, addrs, 60)
		if m.Negative() != (len(row.want) == 1) {
			t.Errorf("type %d: negative %v", row.typ, m.Negative())
		}
		packet, _ := m.Append(nil, reply(question(t, "a.example", row.typ)), 0, false, everything{})
		if diff := cmp.Diff(row.want, show(t, packet)); diff != "" {
			t.Error(diff)
		}
	}
}

// BenchmarkSizes reads answers of growing size. The time per byte must not grow.
func BenchmarkSizes(b *testing.B) {
	for typ, format := range map[uint16]string{
		TypeA:       "a.example. 60 IN A 93.184.%[2]d.%[1]d",
		TypeHTTPS:   `a.example. 60 IN HTTPS %[1]d svc%[2]d.a.example. mandatory="alpn,port" alpn="h2" port="443" ipv4hint="93.184.216.34" ech="AAAA"`,
		dns.TypeTXT: `a.example. 60 IN TXT "%[1]d-%[2]d"`,
	} {
		for records := 8; records <= 512; records *= 4 {
			b.Run(fmt.Sprintf("%s/%d", dns.TypeToString[typ], records), func(b *testing.B) {
				q := newQuery(b, "a.example", typ, false)
				var texts []string
				for i := range records {
					texts = append(texts, fmt.Sprintf(format, i%250, i/250))
				}
				packet := upstream(b, q, nil, texts...)
				b.SetBytes(int64(len(packet)))
				for b.Loop() {
					m, err := q.Parse(packet)
					if err != nil {
						b.Fatal(err)
					}
					m.Append(nil, reply(q.question), 0, false, everything{})
				}
			})
		}
	}
}

// TestAliasesOfLocalhost checks that an alias to localhost leads to loopback, whatever
// the server says.
func TestAliasesOfLocalhost(t *testing.T) {
	const soa = ". 900 IN SOA ns.example. admin.example. 1 2 3 4 200"
	missing := func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }
	for _, row := range []struct {
		name    string
		typ     uint16
		change  func(*dns.Msg)
		records []string
		want    []string
	}{
		{"with another address", TypeA, nil, []string{"a.example. 60 IN CNAME localhost.", "localhost. 50 IN A 8.8.8.8", "localhost. 50 IN A 127.0.0.1"}, []string{"NOERROR", "A.EXAMPLE. 60 IN CNAME localhost.", "localhost. 60 IN A 127.0.0.1"}},
		{"to a name below localhost", TypeAAAA, nil, []string{"a.example. 60 IN CNAME x.LOCALHOST.", "x.localhost. 50 IN AAAA 2001:db8::1"}, []string{"NOERROR", "A.EXAMPLE. 60 IN CNAME x.localhost.", "x.localhost. 60 IN AAAA ::1"}},
		{"to a localhost that does not exist", TypeA, missing, []string{"a.example. 60 IN CNAME localhost.", "--", soa}, []string{"NOERROR", "A.EXAMPLE. 60 IN CNAME localhost.", "localhost. 60 IN A 127.0.0.1"}},
		{"without a record of localhost", TypeA, nil, []string{"a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME localhost."}, []string{"NOERROR", "A.EXAMPLE. 60 IN CNAME b.example.", "b.example. 60 IN CNAME localhost.", "localhost. 60 IN A 127.0.0.1"}},
		{"with an alias of its own", TypeA, nil, []string{"a.example. 60 IN CNAME localhost.", "localhost. 60 IN CNAME localhost."}, []string{"NOERROR", "A.EXAMPLE. 60 IN CNAME localhost.", "localhost. 60 IN A 127.0.0.1"}},
		{"with an alias to another name", TypeA, nil, []string{"a.example. 60 IN CNAME localhost.", "localhost. 60 IN CNAME b.example.", "b.example. 60 IN A 8.8.8.8"}, []string{"NOERROR", "A.EXAMPLE. 60 IN CNAME localhost.", "localhost. 60 IN A 127.0.0.1"}},
		{"with a service", TypeHTTPS, nil, []string{"a.example. 60 IN CNAME localhost.", "localhost. 60 IN HTTPS 1 . ipv4hint=8.8.8.8"}, []string{"NOERROR", "A.EXAMPLE. 60 IN CNAME localhost."}},
		{"as the target of a service", TypeHTTPS, nil, []string{"a.example. 60 IN HTTPS 1 x.localhost. ipv4hint=8.8.8.8", "a.example. 60 IN HTTPS 2 . ipv4hint=192.0.2.1"}, []string{"NOERROR", `A.EXAMPLE. 60 IN HTTPS 2 . ipv4hint="192.0.2.1"`}},
	} {
		got, _ := answered(t, "a.example", row.typ, everything{}, row.change, row.records...)
		if diff := cmp.Diff(row.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
}
