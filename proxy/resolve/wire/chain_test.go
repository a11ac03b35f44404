package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// TestOnlyTheChainOfAliasesCounts checks that records at the end of the chain of aliases count,
// in any order, and that other records do not.
func TestOnlyTheChainOfAliasesCounts(t *testing.T) {
	const www, edge = "A.EXAMPLE. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"
	for name, row := range map[string]struct {
		records []string
		change  func(*dns.Msg)
		want    []string
	}{
		"the record before its alias": {records: []string{"b.example. 60 IN A 192.0.2.1", "a.example. 60 IN CNAME b.example."}, want: []string{www, edge}},
		"aliases in another order": {
			records: []string{"c.example. 60 IN A 192.0.2.1", "b.example. 60 IN CNAME c.example.", "a.example. 60 IN CNAME b.example."},
			want:    []string{www, "b.example. 60 IN CNAME c.example.", "c.example. 60 IN A 192.0.2.1"},
		},
		"a record of another name": {
			records: []string{"other.example. 60 IN A 192.0.2.66", "a.example. 60 IN A 192.0.2.1", "other.example. 60 IN CNAME a.example."},
			want:    []string{"A.EXAMPLE. 60 IN A 192.0.2.1"},
		},
		"records of one name between those of another": {
			records: []string{"a.example. 60 IN A 192.0.2.1", "b.example. 60 IN A 192.0.2.66", "a.example. 60 IN A 192.0.2.2"},
			want:    []string{"A.EXAMPLE. 60 IN A 192.0.2.1", "A.EXAMPLE. 60 IN A 192.0.2.2"},
		},
		"the same alias twice": {records: []string{"a.example. 60 IN CNAME b.example.", "a.example. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"}, want: []string{www, edge}},
		"two aliases of one name, of which the first counts": {
			records: []string{"a.example. 60 IN CNAME b.example.", "a.example. 60 IN CNAME c.example.", "c.example. 60 IN A 192.0.2.66", "b.example. 60 IN A 192.0.2.1"},
			want:    []string{www, edge},
		},
		"an alias that has records, too": {
			records: []string{"a.example. 60 IN A 192.0.2.66", "a.example. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"},
			want:    []string{www, edge},
		},
		"a loop of other names": {
			records: []string{"x.example. 60 IN CNAME y.example.", "y.example. 60 IN CNAME x.example.", "a.example. 60 IN A 192.0.2.1"},
			want:    []string{"A.EXAMPLE. 60 IN A 192.0.2.1"},
		},
		"a broken record of another name": {
			records: []string{`b.example. 60 IN TYPE1 \# 0`, "a.example. 60 IN A 192.0.2.1"},
			want:    []string{"A.EXAMPLE. 60 IN A 192.0.2.1"},
		},
		"a record of another class": {records: []string{"a.example. 60 CH A 192.0.2.66", "a.example. 60 IN A 192.0.2.1"}, want: []string{"A.EXAMPLE. 60 IN A 192.0.2.1"}},
		"the rewriting of a whole zone, and the alias that it makes": {
			records: []string{"example. 60 IN DNAME example.net.", "a.example. 0 IN CNAME a.example.net.", "a.example.net. 60 IN A 192.0.2.1"},
			want:    []string{"A.EXAMPLE. 0 IN CNAME a.example.net.", "a.example.net. 60 IN A 192.0.2.1"},
		},
		"targets that are names of no host": {
			records: []string{
				`a.example. 60 IN CNAME 1.0/25.2.example.`, `1.0/25.2.example. 60 IN CNAME -x_.b\.c.Ex\000mple.`,
				`-x_.b\.c.ex\000mple. 60 IN CNAME 192.0.2.1.`, `192.0.2.1. 60 IN CNAME xn--.example.`, "XN--.example. 60 IN A 192.0.2.1",
			},
			want: []string{
				"A.EXAMPLE. 60 IN CNAME 1.0/25.2.example.", `1.0/25.2.example. 60 IN CNAME -x_.b\.c.ex\000mple.`,
				`-x_.b\.c.ex\000mple. 60 IN CNAME 192.0.2.1.`, "192.0.2.1. 60 IN CNAME xn--.example.", "xn--.example. 60 IN A 192.0.2.1",
			},
		},
		"a record whose owner differs by a dot inside a label": {
			records: []string{`a.example. 60 IN CNAME b\.c.example.`, "b.c.example. 60 IN A 192.0.2.66", `b\.c.example. 60 IN A 192.0.2.1`},
			want:    []string{`A.EXAMPLE. 60 IN CNAME b\.c.example.`, `b\.c.example. 60 IN A 192.0.2.1`},
		},
	} {
		got, _ := answered(t, "a.example", TypeA, everything{}, row.change, row.records...)
		if diff := cmp.Diff(append([]string{"NOERROR"}, row.want...), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestOrderOfRecordsDoesNotMatter checks that the answer does not depend on the order of
// the records in a chain.
func TestOrderOfRecordsDoesNotMatter(t *testing.T) {
	records := []string{
		"a.example. 60 IN CNAME b.example.", "b.example. 50 IN CNAME c.example.", "c.example. 40 IN A 192.0.2.1",
		"c.example. 30 IN TXT beside", "x.example. 20 IN A 192.0.2.66",
	}
	want, _ := answered(t, "a.example", TypeA, everything{}, nil, records...)
	var permute func(from int)
	permute = func(from int) {
		if from == len(records) {
			if got, _ := answered(t, "a.example", TypeA, everything{}, nil, records...); !slices.Equal(got, want) {
				t.Errorf("%q gives %q, want %q", records, got, want)
			}
			return
		}
		for i := from; i < len(records); i++ {
			records[from], records[i] = records[i], records[from]
			permute(from + 1)
			records[from], records[i] = records[i], records[from]
		}
	}
	permute(0)
}

// TestUselessLargeAnswersAreReadQuickly checks that useless answers of 64 KiB are read
// quickly, and that only the records that count are kept.
func TestUselessLargeAnswersAreReadQuickly(t *testing.T) {
	long := strings.Repeat(strings.Repeat("x", 60)+".", 4)
	many := func(owner, rest string) []string { return slices.Repeat([]string{owner + " 60 IN " + rest}, 1900) }
	chains := make([]string, 0, 2000)
	for i := range cap(chains) {
		chains = append(chains, fmt.Sprintf("n%d.%s 60 IN CNAME n%d.%s", i, long[61:], i+1, long[61:]))
	}
	slices.Reverse(chains)
	for name, records := range map[string][]string{
		"aliases of one name": many(long, "CNAME "+long), "records of another": many(long, "A 192.0.2.1"), "a chain without a beginning": chains,
	} {
		records = append(records, "a.example. 60 IN A 192.0.2.1")
		q := newQuery(t, "a.example", TypeA, true)
		packet := upstream(t, q, nil, records...)
		best := time.Hour
		for range 5 {
			begin := time.Now()
			if m, err := q.Parse(packet); err != nil || len(m.data) != recordHead+4 {
				t.Fatalf("%s: %v, %v", name, m, err)
			}
			best = min(best, time.Since(begin))
		}
		if best > time.Second { // it takes one or two milliseconds
			t.Errorf("%s: %d bytes take %s", name, len(packet), best)
		}
	}
}

// TestRepliesWithoutAQuestion checks that a header with an error, or with the truncation
// bit, is an answer, and that no other header is one.
func TestRepliesWithoutAQuestion(t *testing.T) {
	q := newQuery(t, "a.example", TypeA, true)
	header := func(flags uint16, questions byte) []byte {
		p := binary.BigEndian.AppendUint16(slices.Clone(q.Packet()[:2]), flags)
		return append(p, 0, questions, 0, 0, 0, 0, 0, 0)
	}
	for code := range uint16(16) {
		var said *ServerError
		_, err := q.Parse(header(flagQR|code, 0))
		switch is := errors.As(err, &said); {
		case code == NoError:
			if !errors.Is(err, ErrStray) {
				t.Errorf("code %d: %v", code, err)
			}
		case code == NXDomain: // the header does not say which name does not exist
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("code %d: %v", code, err)
			}
		case !is || said.Code != int(code):
			t.Errorf("code %d: %v", code, err)
		}
	}
	opt := []byte{0, 0, byte(dns.TypeOPT), 4, 208, 0, 0, 0, 0, 0, 9, 0, byte(dns.EDNS0EDE), 0, 5, 0, 6, 'b', 'a', 'd'}
	withOPT := append(header(flagQR|dns.RcodeServerFailure, 0), opt...)
	withOPT[headLen-1] = 1
	var said *ServerError
	if _, err := q.Parse(withOPT); !errors.As(err, &said) || said.Error() != `SERVFAIL, DNSSEC Bogus (EDE 6): "bad"` || !said.IsBogus() {
		t.Errorf("with an OPT: %v", err)
	}
	badVersion := slices.Concat(header(flagQR, 0), []byte{0, 0, byte(dns.TypeOPT), 4, 208, 1, 0, 0, 0, 0, 0})
	badVersion[headLen-1] = 1
	if _, err := q.Parse(badVersion); !WithoutEDNS(err) {
		t.Errorf("BADVERS: %v", err)
	}
	for questions := range byte(2) {
		if _, err := q.Parse(header(flagQR|flagTC, questions)); !errors.Is(err, ErrTruncated) {
			t.Errorf("truncated to the header: %v", err)
		}
	}
	if _, err := q.Parse(header(flagQR|dns.RcodeServerFailure, 1)); !errors.As(err, &said) {
		t.Errorf("with the count of a question: %v", err)
	}
	for name, packet := range map[string][]byte{
		"another id": header(flagQR|dns.RcodeServerFailure, 0), "a query": header(dns.RcodeServerFailure, 0),
		"another operation": header(flagQR|5<<11|dns.RcodeServerFailure, 0), "eleven bytes": header(flagQR|dns.RcodeServerFailure, 0)[:11],
	} {
		if name == "another id" {
			packet[0] ^= 1
		}
		if _, err := q.Parse(packet); !errors.Is(err, ErrStray) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestExtendedErrors checks that the extended errors of servers are bounded and
// printable.
func TestExtendedErrors(t *testing.T) {
	for name, row := range map[string]struct {
		option dns.EDNS0
		want   string
	}{
		"none":            {&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}, "REFUSED"},
		"a code":          {&dns.EDNS0_EDE{InfoCode: 18}, "REFUSED, Prohibited (EDE 18)"},
		"an unknown code": {&dns.EDNS0_EDE{InfoCode: 4711}, "REFUSED (EDE 4711)"},
		"a text":          {&dns.EDNS0_EDE{InfoCode: 22, ExtraText: "no \"one\"\r\n\x1b[2J"}, `REFUSED, No Reachable Authority (EDE 22): "no \"one\"\\u000d\\u000a\\u001b[2J"`},
		"a long text":     {&dns.EDNS0_EDE{InfoCode: 23, ExtraText: strings.Repeat("x", 400)}, `REFUSED, Network Error (EDE 23): "` + strings.Repeat("x", maxExtraText) + `"`},
		"too short":       {&dns.EDNS0_LOCAL{Code: dns.EDNS0EDE, Data: []byte{0}}, "REFUSED"},
	} {
		q := newQuery(t, "a.example", TypeA, true)
		_, err := q.Parse(upstream(t, q, func(m *dns.Msg) {
			m.Rcode = dns.RcodeRefused
			m.IsEdns0().Option = []dns.EDNS0{row.option}
		}))
		if err == nil || err.Error() != row.want {
			t.Errorf("%s: %v, want %s", name, err, row.want)
		}
	}
}

// TestMostDetailedExtendedErrorCounts checks that of several extended errors the most
// detailed one counts, and the first of two equally detailed ones.
func TestMostDetailedExtendedErrorCounts(t *testing.T) {
	for _, row := range []struct {
		codes []uint16
		want  uint16
	}{
		{[]uint16{0, 6}, 6}, {[]uint16{6, 0}, 6}, {[]uint16{22, 9, 6}, 9}, {[]uint16{0, 22, 23}, 22}, {[]uint16{18, 0}, 18}, {[]uint16{0}, 0},
	} {
		q := newQuery(t, "a.example", TypeA, true)
		_, err := q.Parse(upstream(t, q, func(m *dns.Msg) {
			m.Rcode = dns.RcodeServerFailure
			for _, code := range row.codes {
				m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: fmt.Sprint(code)})
			}
		}))
		var said *ServerError
		if want := (Extended{Given: true, Code: row.want, Text: fmt.Sprint(row.want)}); !errors.As(err, &said) || said.Extended != want {
			t.Errorf("%v: %v", row.codes, err)
		}
	}
}

// TestReferrals checks that a referral is not an answer, and that a negative answer is
// one.
func TestReferrals(t *testing.T) {
	const ns, soa = "example. 60 IN NS ns.example.", "example. 60 IN SOA ns.example. admin.example. 1 2 3 4 20"
	unrecursed := func(m *dns.Msg) { m.RecursionAvailable = false }
	for name, row := range map[string]struct {
		change  func(*dns.Msg)
		records []string
		err     error
		lame    bool
	}{
		"a referral":                         {records: []string{"--", ns}, err: ErrReferral},
		"a referral upwards":                 {change: unrecursed, records: []string{"--", ". 60 IN NS a.root-servers.net."}, err: ErrReferral},
		"no record":                          {},
		"no data, with the zone's servers":   {records: []string{"--", ns, soa}},
		"no data, by authority":              {change: func(m *dns.Msg) { m.Authoritative, m.RecursionAvailable = true, false }, records: []string{"--", ns}},
		"a referral after an alias":          {records: []string{"a.example. 60 IN CNAME b.example.", "--", ns}},
		"an answer without recursion":        {change: unrecursed, records: []string{"a.example. 60 IN A 192.0.2.1"}, lame: true},
		"an answer by authority":             {change: func(m *dns.Msg) { m.Authoritative, m.RecursionAvailable = true, false }, records: []string{"a.example. 60 IN A 192.0.2.1"}},
		"no name, without recursion":         {change: func(m *dns.Msg) { unrecursed(m); m.Rcode = NXDomain }, lame: true},
		"an answer, with the zone's servers": {records: []string{"a.example. 60 IN A 192.0.2.1", "--", ns}},
		"no name, with the zone's servers":   {change: func(m *dns.Msg) { m.Rcode = NXDomain }, records: []string{"--", ns}},
	} {
		q := newQuery(t, "a.example", TypeA, true)
		m, err := q.Parse(upstream(t, q, row.change, row.records...))
		if !errors.Is(err, row.err) || err == nil && m.Lame() != row.lame {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

// TestDNAMEWithoutItsAlias checks that an answer in which a DNAME moves the name, and
// which lacks the alias that a server makes of it, is no answer: neither that there is no
// data nor that there is no such name.
func TestDNAMEWithoutItsAlias(t *testing.T) {
	const dname, soa = "example. 60 IN DNAME example.net.", "example. 40 IN SOA ns.example. admin.example. 1 2 3 4 30"
	for name, row := range map[string]struct {
		typ     uint16
		code    int
		records []string
		is      bool // says that it is an answer
	}{
		"alone":                                 {TypeA, 0, []string{dname}, false},
		"with a record of the new name":         {TypeA, 0, []string{dname, "a.example.net. 60 IN A 192.0.2.1"}, false},
		"with an SOA":                           {TypeA, 0, []string{dname, "--", soa}, false},
		"no name":                               {TypeA, NXDomain, []string{dname, "--", soa}, false},
		"behind an alias":                       {TypeA, 0, []string{"a.example. 60 IN CNAME b.other.", "other. 60 IN DNAME other.net."}, false},
		"the alias was asked for":               {TypeCNAME, 0, []string{dname}, false},
		"the alias was asked for, and is there": {TypeCNAME, 0, []string{dname, "a.example. 0 IN CNAME a.example.net."}, true},
		"of another zone":                       {TypeA, 0, []string{"other. 60 IN DNAME other.net.", "--", soa}, true},
		"of the name itself":                    {TypeA, 0, []string{"a.example. 60 IN DNAME example.net.", "--", soa}, true},
		"beside its record":                     {TypeA, 0, []string{dname, "a.example. 60 IN A 192.0.2.1"}, true},
	} {
		q := newQuery(t, "a.example", row.typ, true)
		m, err := q.Parse(upstream(t, q, func(m *dns.Msg) { m.Rcode = row.code }, row.records...))
		if (err == nil) != row.is || err != nil && !errors.Is(err, ErrChain) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// TestAliasWithoutAnAnswerForItsTarget checks that an alias whose target the server says
// nothing about differs from one whose target does not exist.
func TestAliasWithoutAnAnswerForItsTarget(t *testing.T) {
	const alias, soa = "a.example. 60 IN CNAME b.other.", "other. 40 IN SOA ns.other. admin.other. 1 2 3 4 30"
	for name, row := range map[string]struct {
		typ     uint16
		code    int
		records []string
		open    bool
	}{
		"an alias alone":               {TypeA, 0, []string{alias}, true},
		"with the SOA of its own zone": {TypeA, 0, []string{alias, "--", "example. 60 IN SOA a. b. 1 2 3 4 5"}, true},
		"with the target's servers":    {TypeA, 0, []string{alias, "--", "other. 60 IN NS ns.other."}, true},
		"no data":                      {TypeA, 0, []string{alias, "--", soa}, false},
		"no name":                      {TypeA, NXDomain, []string{alias, "--", soa}, false},
		"no name, without SOA":         {TypeA, NXDomain, []string{alias}, false},
		"the alias was asked for":      {TypeCNAME, 0, []string{alias}, false},
		"to localhost":                 {dns.TypeMX, 0, []string{"a.example. 60 IN CNAME localhost."}, false},
		"without an alias":             {TypeA, 0, nil, false},
	} {
		q := newQuery(t, "a.example", row.typ, true)
		m, err := q.Parse(upstream(t, q, func(m *dns.Msg) { m.Rcode = row.code }, row.records...))
		if err != nil || m.Open() != row.open || m.Open() && (m.TTL() != 0 || m.Life() != 60 || m.End().String() != "b.other") {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// TestJoinedAnswers checks that the answers for an alias and for its target are joined
// to one that equals the answer of one server.
func TestJoinedAnswers(t *testing.T) {
	parse := func(name string, code int, records ...string) *Message {
		q := newQuery(t, name, TypeA, true)
		m, err := q.Parse(upstream(t, q, func(m *dns.Msg) { m.Rcode = code }, records...))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	q := question(t, "a.example", TypeA)
	first := parse("a.example", 0, "a.example. 60 IN CNAME b.example.", "b.example. 50 IN CNAME c.other.")
	for name, row := range map[string]struct {
		next *Message
		want []string
		ttl  uint32
		open bool
	}{
		"addresses": {
			next: parse("c.other", 0, "c.other. 40 IN CNAME d.other.", "d.other. 30 IN A 192.0.2.1"), ttl: 25,
			want: []string{"NOERROR", "c.other. 35 IN CNAME d.other.", "d.other. 25 IN A 192.0.2.1"},
		},
		"another alias without an answer for its target": {next: parse("c.other", 0, "c.other. 40 IN CNAME d.other."), open: true, want: []string{"NOERROR", "c.other. 35 IN CNAME d.other."}},
		"no name": {
			next: parse("c.other", NXDomain, "--", "other. 20 IN SOA ns.other. admin.other. 1 2 3 4 30"), ttl: 15,
			want: []string{"NXDOMAIN", "-- other. 15 IN SOA ns.other. admin.other. 1 2 3 4 30"},
		},
		"no data, without SOA": {next: parse("c.other", 0), want: []string{"NOERROR"}},
	} {
		m, err := first.Join(10, row.next, 5, q.Name)
		if err != nil || m.TTL() != row.ttl || m.Open() != row.open {
			t.Errorf("%s: %+v, %v", name, m, err)
			continue
		}
		packet, _ := m.Append(nil, reply(q), 0, false, everything{})
		want := slices.Insert(row.want, 1, "A.EXAMPLE. 50 IN CNAME b.example.", "b.example. 40 IN CNAME c.other.")
		if diff := cmp.Diff(want, show(t, packet)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, back := range map[string]string{"the name": "a.example", "an alias": "b.example"} {
		if m, err := first.Join(0, parse("c.other", 0, "c.other. 60 IN CNAME d.other.", "d.other. 60 IN CNAME "+back+"."), 0, q.Name); !errors.Is(err, ErrChain) {
			t.Errorf("back to %s: %v, %v", name, m, err)
		}
	}
	long := []string{"c.other. 60 IN CNAME h0.other."}
	for i := range MaxHops - 2 {
		long = append(long, fmt.Sprintf("h%d.other. 60 IN CNAME h%d.other.", i, i+1))
	}
	if m, err := first.Join(0, parse("c.other", 0, long...), 0, q.Name); !errors.Is(err, ErrChain) {
		t.Errorf("too many aliases: %v, %v", m, err)
	}
	if m, err := first.Join(0, parse("c.other", 0, long[:MaxHops-2]...), 0, q.Name); err != nil || len(slices.Collect(m.Hops())) != MaxHops {
		t.Errorf("%d aliases: %v, %v", MaxHops, m, err)
	}
	gone := parse("a.example", NXDomain, "a.example. 60 IN CNAME b.example.", "--", "example. 20 IN SOA ns.example. admin.example. 1 2 3 4 30").OnlyAliases()
	m, err := gone.Join(0, parse("b.example", 0, "b.example. 60 IN A 192.0.2.1"), 0, q.Name)
	if err != nil || !gone.Open() || gone.RCode() != NoError {
		t.Fatal(gone, err)
	}
	packet, _ := m.Append(nil, reply(q), 0, false, everything{})
	if diff := cmp.Diff([]string{"NOERROR", "A.EXAMPLE. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"}, show(t, packet)); diff != "" {
		t.Error(diff)
	}
}

// TestNamesThatAreNoHostNames checks that names which are no host names are sent to
// servers byte for byte.
func TestNamesThatAreNoHostNames(t *testing.T) {
	for _, name := range []string{"\x011\x040/25\x012\x07example\x00", "\x03a.b\x07example\x00", "\x02\\0\x01\xff\x00", "\x041\\09\x01x\x00"} {
		h, err := allowlist.HostOfName([]byte(name))
		if err != nil {
			t.Fatal(err)
		}
		q, err := NewQuery(Question{Name: h, Type: TypeA}, false)
		if err != nil || string(q.questionSection()[:len(q.questionSection())-4]) != name {
			t.Errorf("%q is asked for as %q, %v", name, q.questionSection(), err)
		}
	}
}

// TestQueryWithoutEDNS checks that the query has the same question and nothing after it.
func TestQueryWithoutEDNS(t *testing.T) {
	q := newQuery(t, "a.example", TypeA, true)
	var m dns.Msg
	plain := q.WithoutEDNS()
	if err := m.Unpack(plain.Packet()); err != nil || len(m.Extra) != 0 || len(m.Question) != 1 || plain.ID() != q.ID() {
		t.Errorf("%v, %v", m, err)
	}
	if got, err := plain.Parse(upstream(t, q, func(m *dns.Msg) { m.Extra = nil }, "a.example. 60 IN A 192.0.2.1")); err != nil {
		t.Errorf("%v, %v", got, err)
	}
	for code, want := range map[int]bool{1: true, 4: true, dns.RcodeBadVers: true, 2: false, 5: false} {
		if got := WithoutEDNS(&ServerError{Code: code}); got != want {
			t.Errorf("code %d: %v", code, got)
		}
	}
}
